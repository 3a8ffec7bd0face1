"""The rivals in the same trainer: their terms are added with their weights, they learn, resume and refuse."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtanytime.transfer.baselines import TERMS, BaselineTrainer
from mtanytime.transfer.distillation import distillation_loss
from mtanytime.transfer.probe import fit_probe
from mtanytime.transfer.settings import FEW_LABELS

SOURCE, TEACHER = tiny.made(5, classes=7, seed=2).eval(), tiny.made(6, seed=7).eval()
LABELLED, UNLABELLED = tiny.images(12), tiny.images(20, seed=9)
FROZEN, SOFT = tiny.made(4, seed=1), nn.Sequential(SOURCE, nn.Softmax(1)).eval()
FROZEN.first.requires_grad_(False)
FROZEN.second.requires_grad_(False)
with torch.no_grad():
    TEACHER.classifier.weight.mul_(20)  # so that it is sure of its answers


class TwoHeads(tiny.TinyNet):
    """A network whose output is a tuple of two classifiers' logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits twice."""
        logits = super().forward(images)
        return logits, logits


def baseline(folder: Path | None = None, **options: Any) -> BaselineTrainer:
    """Three epochs of two batches of six images."""
    settings = {"epochs": 3, "batch_size": 6, "lr": 0.02, "device": "cpu", "progress": False}
    if "teacher" in options["terms"]:
        settings["teacher"] = TEACHER
    settings |= {"source": SOURCE, "target": tiny.made(4, seed=1), "data": LABELLED}
    return BaselineTrainer(folder=folder, **settings | options)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_added_with_its_weight(name: str) -> None:
    """The first step's loss is the task's plus weight times term; the term falls when it alone counts."""
    metrics = next(iter(baseline(terms={name: 3.0}))).metrics
    assert metrics["loss"] == pytest.approx(metrics["task_loss"] + 3 * metrics[f"{name}_loss"], rel=1e-5)
    log = baseline(terms={name: 30.0 if name == "at" else 3.0}, epochs=15).train().log
    assert log[f"{name}_loss"].iloc[-6:].mean() < log[f"{name}_loss"].iloc[:6].mean()


def test_terms_read_all_images_and_the_task_those_with_labels() -> None:
    """By hand, from the same initial weights."""
    run = baseline(terms={"teacher": 2.0}, views=3, unlabelled=UNLABELLED, unlabelled_per_step=4)
    images, labels = next(run.batches.epoch(0))
    everything = torch.cat([images, run.extra_images.draw(0, images)])
    assert len(everything) == 13
    model = tiny.made(4, seed=1).train()
    output = model(everything)
    metrics = next(iter(run)).metrics
    assert metrics["task_loss"] == pytest.approx(F.cross_entropy(output[:6], labels).item(), rel=1e-5)
    expected = distillation_loss(output, TEACHER(everything)).mean().item()
    assert metrics["teacher_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("terms", [{"lwf": 1.0, "at": 10.0}, {"semckd": 1.0}, {"reviewkd": 1.0, "teacher": 1.0}])
def test_resumed_anywhere(terms: dict[str, float], tmp_path: Path) -> None:
    """Bit for bit, the terms' own weights included; other terms are another run."""
    extras = {"views": 2, "unlabelled": UNLABELLED}
    whole = baseline(terms=terms, **extras)
    expected = whole.train().log.drop(columns="seconds")
    for report in baseline(tmp_path, terms=terms, **extras):
        if report.step == 3:
            break
    resumed = baseline(tmp_path, terms=terms, **extras)
    assert resumed.train().log.drop(columns="seconds").equals(expected)
    for ours, theirs in zip(resumed.terms.state_dict().values(), whole.terms.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="another run"):
        baseline(tmp_path, terms={name: 2 * weight for name, weight in terms.items()}, **extras)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {}}, r"terms: expected some of .*, got \[\]"),
        ({"terms": {"other": 1.0}}, "terms: expected some of"),
        ({"terms": ["at"]}, r"terms: expected weights by name, of some of .*, got \['at'\]"),
        ({"terms": {"at": 1.0}, "source": {"a": SOURCE}}, "source: expected one network, got {'a': "),
        ({"terms": {"at": 0.0}}, r"terms\['at'\]: expected a weight > 0, got 0.0"),
        (
            {"terms": {"at": 1.0}, "teacher": TEACHER},
            "teacher: expected a network or 'probe' with the t",
        ),
        (
            {"terms": {"semckd": 1.0}, "batch_size": 5, "remainder": "keep"},
            'data: expected batches of one size .*; remainder="drop"',
        ),
        (
            {"terms": {"lwf": 1.0}, "source": TwoHeads(5).eval()},
            r"^source: expected a network whose output is logits, got tuple of \(4, 3\), \(4, 3\); wrap it in a module",
        ),
        ({"terms": {"at": "1"}}, r"terms\['at'\]: expected a weight > 0, got '1'"),
        ({"terms": {"teacher": 1.0}, "teacher": "prob"}, "teacher: expected a network, \"probe\" or None, got 'prob'"),
        ({"terms": {"at": 1.0}, "pairs": [("first", "first")] * 2}, "pairs: expected each pair once, got "),
        ({"terms": {"at": 1.0}, "target": FROZEN}, "target_layers: expected layers .* got 'first', which gets no grad"),
        ({"terms": {"lwf": 1.0}, "source": SOFT, "source_layers": ["0.second"]}, "^source: expected logits, got proba"),
        ({"terms": {"at": 1.0}, "views": 0}, "views: expected a whole number >= 1, got 0"),
        ({"terms": {"at": 1.0}, "pairs": []}, "pairs: expected one or more"),
        ({"terms": {"at": 1.0}, "pairs": [("first", "third")]}, "pairs: expected a layer of the source .*'third'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(options: dict[str, Any], message: str) -> None:
    """Refused before training."""
    with pytest.raises(ValueError, match=message):
        baseline(**options)


def test_an_optimizer_of_your_own(tmp_path: Path) -> None:
    """It trains the network and the terms, and the run resumes; SGD's learning rate is not needed beside it."""
    options = {"terms": {"lwf": 1.0}, "optimizer": partial(torch.optim.AdamW, lr=1e-3), "lr": None}
    run = baseline(**options)
    assert type(run.optimizer) is torch.optim.AdamW
    trained = {id(p) for p in run.optimizer.param_groups[0]["params"]}
    assert trained == {id(p) for p in [*run.model.parameters(), *run.terms.parameters()]}
    next(iter(baseline(tmp_path, **options)))
    log = baseline(tmp_path, **options).train().log.drop(columns="seconds")
    assert log.equals(run.train().log.drop(columns="seconds"))


class WithExtras(tiny.TinyNet):
    """A network whose output is a dict, of its logits and a scalar."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (batch, classes) and the mean pixel."""
        return {"logits": super().forward(images), "brightness": images.mean()}


def test_an_output_with_extras() -> None:
    """The same steps as those of a network that returns its logits alone."""
    extras = {"terms": {"at": 1.0, "teacher": 1.0}, "views": "batch"}
    plain = baseline(**extras).train().log.drop(columns="seconds")
    network = WithExtras(4)
    network.load_state_dict(tiny.made(4, seed=1).state_dict())
    loss = lambda output, labels: F.cross_entropy(output["logits"], labels)  # noqa: E731
    run = baseline(target=network, loss=loss, **extras)
    assert run.train().log.drop(columns="seconds").equals(plain)


def test_the_defaults_are_those_of_the_transfer() -> None:
    """Equal batches, warm-up and 4,000 steps: a rival with other settings would be no rival. Epochs rule out steps."""
    shown = inspect.signature(BaselineTrainer).parameters
    assert {name: shown[name].default for name in FEW_LABELS} == FEW_LABELS
    assert baseline(terms={"at": 1.0}).settings.remainder == "drop"
    assert baseline(terms={"at": 1.0}).steps == 6


def test_the_probes_answers(tmp_path: Path) -> None:
    """By name, as `TransferTrainer` takes them: the log is that with the probe itself; a resumed run keeps its own."""
    by_name = {"terms": {"teacher": 1.0}, "teacher": "probe"}
    probe = fit_probe(SOURCE, LABELLED, folds=None, scoring="log_loss")
    log = baseline(terms={"teacher": 1.0}, teacher=probe).train().log.drop(columns="seconds")
    assert baseline(**by_name).train().log.drop(columns="seconds").equals(log)
    next(iter(baseline(tmp_path, **by_name)))
    assert baseline(tmp_path, **by_name).train().log.drop(columns="seconds").equals(log)


def test_networks_of_their_own() -> None:
    """A wrapped source, one whose answers are in a dict, and networks that name no layers but in pairs."""
    terms = {"lwf": 1.0, "at": 1.0}
    plain = baseline(terms=terms).train().log.drop(columns="seconds")
    named = WithExtras(5, classes=7).eval()
    named.load_state_dict(SOURCE.state_dict())
    compiled = torch.compile(SOURCE, backend="eager")
    for source in (nn.DataParallel(SOURCE), compiled, named):
        assert baseline(source=source, terms=terms).train().log.drop(columns="seconds").equals(plain)
    source, target = nn.Sequential(SOURCE).eval(), nn.Sequential(tiny.made(4, seed=1))
    run = baseline(source=source, target=target, terms=terms, pairs=[("0.second", "0.first")])
    assert (run.tapped_source.layers, run.target.layers) == (("0.second",), ("0.first",))


def test_semckd_with_loaders() -> None:
    """Its embeddings have the size of a step's images, labelled and unlabelled, whichever form these have."""
    pixels, labels = LABELLED.images / 255, LABELLED.labels

    def loader(size: int, **options: Any) -> DataLoader:
        return DataLoader(TensorDataset(pixels, labels), size, **options)

    def run(data: Any, **options: Any) -> BaselineTrainer:
        settings = {"epochs": 1, "lr": 0.02, "device": "cpu", "progress": False} | options
        return BaselineTrainer(SOURCE, tiny.made(4, seed=1), data, terms={"semckd": 1.0}, **settings)

    trainer = run(loader(5, drop_last=True), unlabelled=loader(4))
    assert trainer.terms["semckd"].batch_size == 9
    trainer.train()
    assert run(LABELLED, batch_size=50, remainder="drop").terms["semckd"].batch_size == 12
    with pytest.raises(ValueError, match=r"data: .*one size.*got the last of 2, the others of 5; drop_last=True"):
        run(loader(5))
    with pytest.raises(ValueError, match=r"unlabelled: .*one size.*got the last of 2, the others of 5; drop_last=True"):
        run(LABELLED, batch_size=4, unlabelled=loader(5))


class Skipping(tiny.TinyNet):
    """A network that skips its second layer in some training steps."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        if self.training and torch.rand(()) < 0.2:
            return self.classifier(self.first(images).mean(dim=(2, 3)).repeat(1, 2))
        return super().forward(images)


def test_layers_that_are_skipped_at_random() -> None:
    """Refused before training: a term reads them in every step."""
    message = r"target_layers: expected layers that run in every step, got 'second', skipped"
    for term in ("at", "teacher"):
        with pytest.raises(ValueError, match=message):
            baseline(terms={term: 1.0}, target=Skipping(4))
