"""The playground without a browser: answers by hand, every kind of model, refused input."""

import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ipywidgets import Widget
from tables import TREE, pictures
from torch import Tensor, nn
from typechecker import unchecked

from mtanytime.anytime import AnytimePredictor, InclusiveResNeXt, MSDNet, SlicedResNeXt, Taxonomy
from mtanytime.backbones import Normalized
from mtanytime.explore.contents import playground
from mtanytime.explore.playground import AnytimePlayground

CLASSES = TREE.classes


class Slow(nn.Module):
    """Three answers that come 20 ms apart: an animal without a preference, then a dog, then a car."""

    logits = torch.tensor([[2.0, 1.99, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 5.0]])

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def refine(self, images: Tensor) -> Iterator[Tensor]:
        """Yield one answer after the other."""
        for row in self.logits:
            time.sleep(0.02)
            yield row[None] + 0 * images.mean()


def images(count: int = 2) -> np.ndarray:
    """Return grey images."""
    return pictures(count)[0]


def test_answers_by_hand() -> None:
    """A coarse exit answers with the likeliest group, which need not have the likeliest class, and is rated there."""
    explorer = AnytimePlayground(Slow(), images(), CLASSES, [0, 2], TREE, [1, 2, 2])
    table = explorer.answers()
    assert table["answer"].tolist() == ["animal", "dog", "car"]
    assert table["right"].tolist() == [True, False, False]
    shares = Slow.logits.softmax(dim=1)
    wanted = [shares[0, :2].sum(), shares[1, 1], shares[2, 2]]
    np.testing.assert_allclose(table["confidence"], wanted, atol=1e-6)
    assert (table["milliseconds"].diff().iloc[1:] > 15).all()
    explorer.image = 1
    assert explorer.answers()["right"].tolist() == [False, False, True]
    content = explorer.content
    assert content["levels"] == [["animal", "vehicle"], list(CLASSES)]
    assert content["parents"] == [[], [0, 0, 1]]
    for found, wanted in zip(
        content["shares"][0][1], ([*shares[1, :2].sum()[None], shares[1, 2]], shares[1]), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_deadline_takes_the_answers_that_were_there() -> None:
    """The table, the static picture and the text of the explorer follow the deadline."""
    explorer = AnytimePlayground(Slow(), images(), CLASSES)
    explorer.deadline = explorer.answers()["milliseconds"].iloc[1]
    assert explorer.answers()["in_time"].tolist() == [True, True, False]
    assert "dog by exit 2" in explorer.picture().alt
    explorer.deadline = 0.0
    assert "no answer" in explorer.picture().alt
    data, _ = explorer._repr_mimebundle_()
    assert {"image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == "AnytimePlayground: 2 images, 3 exits, 3 classes"


@pytest.mark.parametrize("kind", ["sliced", "normalized", "predictor", "inclusive", "msdnet"])
def test_every_anytime_network_plays(kind: str) -> None:
    """For every kind of model the answers are the network's own in eval mode; its mode is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"width": 8, "bottleneck": 4, "branches": 2, "blocks": 1}
        network = {"inclusive": lambda: InclusiveResNeXt(3, **sizes), "msdnet": lambda: MSDNet(3, 2, 1, 1)}.get(
            kind, lambda: SlicedResNeXt(3, **sizes)
        )()
    model = Normalized(network, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)) if kind == "normalized" else network
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
        model.eval()
        wanted = torch.cat(model(torch.full((1, 3, 16, 16), 50 / 255))).softmax(dim=1)
    model.train()
    list(network.modules())[-1].eval()  # a part that stays frozen
    played = AnytimePredictor(model, (3, 16, 16)) if kind == "predictor" else model
    explorer = AnytimePlayground(played, images(), CLASSES, repeats=1)
    assert network.training
    assert not list(network.modules())[-1].training
    explorer.image = 1
    np.testing.assert_allclose(explorer.answers()["confidence"], wanted.amax(dim=1), atol=1e-4)
    assert explorer.answers()["answer"].tolist() == [CLASSES[k] for k in wanted.argmax(dim=1)]


def test_many_classes_are_thinned() -> None:
    """Of a thousand classes the page keeps those that matter for the image, and says so."""

    class Wide(Slow):
        logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))

    names = [f"class {i}" for i in range(1000)]
    tree = Taxonomy({f"group {g}": names[100 * g : 100 * g + 100] for g in range(10)}, names)
    explorer = AnytimePlayground(Wide(), images(64), names, None, tree, repeats=1)
    shown = explorer.content["shown"][0]
    assert 0 < len(shown[0]) <= 10
    assert 0 < len(shown[1]) <= playground.CLASSES_UP_TO + 3
    assert int(Wide.logits[2].argmax()) in shown[1]
    assert {explorer.content["parents"][1][group] for group in shown[1]} == set(shown[0])  # none without a child
    assert {answer["group"] for answer in explorer.content["answers"][0][:1]} <= set(shown[0])
    assert "likeliest" in explorer.content["note"]
    assert len(json.dumps(explorer.content)) < 1_500_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": images().astype(float)}, "images: expected a NumPy array of uint8"),
        ({"images": images()[:0]}, "images: expected 1 to 64 images, got 0"),
        ({"labels": [0]}, r"labels: expected 2 labels from 0 to 2, got \[0\]"),
        ({"labels": ["cat", "dog"]}, r"labels: expected 2 labels from 0 to 2, got \['cat', 'dog'\]"),
        ({"labels": [0, 3]}, r"labels: expected 2 labels from 0 to 2, got \[0, 3\]"),
        (
            {"model": nn.Linear(2, 2)},
            "an AnytimePredictor, or a network with refine or extract, got Linear",
        ),
        ({"classes": ["a", "b"]}, "model: expected 2 outputs, one per class, got 3"),
        (
            {"taxonomy": Taxonomy({"x": ["a"], "y": ["b", "c"]}, "abc")},
            r"taxonomy: expected .*classes \['cat'",
        ),
        ({"levels": [1, 2, 2]}, r"levels: expected None without a taxonomy, got \[1, 2, 2\]"),
        ({"taxonomy": TREE, "levels": [1, 2]}, "levels: expected one level per exit of the model, 3, got"),
        ({"repeats": 0}, "repeats: expected a number >= 1, got 0"),
    ],
)
def test_bad_input_is_refused(arguments: dict, message: str) -> None:
    """Bad arguments are refused before a widget is made."""
    whole = {"model": Slow(), "images": images(), "classes": CLASSES} | arguments
    with pytest.raises(ValueError, match=message):
        unchecked(AnytimePlayground.__init__)(AnytimePlayground.__new__(AnytimePlayground), **whole)


def test_bad_choices_are_refused() -> None:
    """A choice that is not offered is refused and does not change the explorer."""
    explorer = AnytimePlayground(Slow(), images(), CLASSES, repeats=1)
    with pytest.raises(ValueError, match="image: expected an index from 0 to 1, got 2"):
        explorer.image = 2
    for wrong in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="deadline: expected a finite number of milliseconds >= 0, got"):
            explorer.deadline = wrong
    assert (explorer.image, explorer.deadline) == (0, explorer.content["most"])


def test_nothing_is_left_after_closing() -> None:
    """Closing an explorer removes its widgets and observers."""
    before = set(Widget.get_manager_state()["state"])
    explorer = AnytimePlayground(Slow(), images(), CLASSES, repeats=1)
    explorer.observe(lambda change: None, "deadline")
    explorer.close()
    assert set(Widget.get_manager_state()["state"]) == before
    assert not explorer._trait_notifiers.get("deadline", {}).get("change")


def test_classes_of_numpy_integers() -> None:
    """Such as scikit-learn's `load_digits().target_names`: they are names in the page, too."""
    explorer = AnytimePlayground.__new__(AnytimePlayground)
    unchecked(AnytimePlayground.__init__)(explorer, Slow(), images(1), np.arange(3), [0])
    assert set(explorer.answers()["answer"]) <= {"0", "1", "2"}
    json.dumps(explorer.content)


def test_one_class_is_one() -> None:
    """The summary counts in the singular."""
    assert playground._summary(1, 2, 1, 1) == "1 image, 2 exits, 1 class"
