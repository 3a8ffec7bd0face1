"""What arrived: R² of target layers as predictors of source layers, against scikit-learn; the run stays as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transfer_runs import copied, refused, same, steps, transfer
from typechecker import unchecked

from mtanytime.data.images import ImageSet
from mtanytime.randomness import generator_for
from mtanytime.transfer.arrived import IMAGES_FROM, IMAGES_UP_TO, RIDGE, Arrived, arrived_r2

PAIR = ("s", "t")
OTHERS = tiny.images(30, seed=5)


def noise(count: int, channels: int, size: int = 4, seed: int = 0) -> Tensor:
    """Random maps with means and scales of their own per channel."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, channels, size, size, generator=generator)
    scale, mean = torch.rand(2, channels, generator=generator) * 3 + 0.1
    return values * scale[:, None, None] + mean[:, None, None]


def in_batches(source: Tensor, target: Tensor, size: int = 7) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The maps as batches of unequal size."""
    return [({"s": s}, {"t": t}) for s, t in zip(source.split(size), target.split(size), strict=True)]


def measured(source: Tensor, target: Tensor, fit: int) -> float:
    """R² fitted on the first `fit` images and scored on the others."""
    parts = (in_batches(source[:fit], target[:fit]), in_batches(source[fit:], target[fit:]))
    return arrived_r2([PAIR], *parts)[PAIR]


def by_sklearn(source: Tensor, target: Tensor, fit: int, model: Any) -> float:
    """The same by scikit-learn, on matrices with a row per value."""
    source = F.interpolate(source, size=target.shape[2:], mode="bilinear", align_corners=False)
    s, t = (maps.double().transpose(0, 1).flatten(1).T.numpy() for maps in (source, target))
    fit *= target.shape[2] * target.shape[3]
    predicted = model.fit(t[:fit], s[:fit]).predict(t[fit:])
    return r2_score(s[fit:], predicted, multioutput="variance_weighted")


def ridge(target: Tensor, fit: int) -> Any:
    """scikit-learn's ridge regression with the documented penalty."""
    return make_pipeline(StandardScaler(), Ridge(RIDGE * fit * target.shape[2] * target.shape[3]))


@settings(max_examples=examples(30), deadline=None)
@given(
    seed=st.integers(0, 1000),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    sizes=st.tuples(st.integers(1, 5), st.integers(2, 5)),
    kept=st.floats(0, 1),
)
def test_r2_is_scikit_learns(seed: int, channels: tuple[int, int], sizes: tuple[int, int], kept: float) -> None:
    """Any numbers of channels, sizes of maps that differ and any strength of the relation, in unequal batches."""
    target = noise(20, channels[1], sizes[1], seed)
    source = noise(20, channels[0], sizes[0], seed + 1)
    source = source + 3 * kept * F.adaptive_avg_pool2d(target[:, :1], sizes[0])
    ours = measured(source, target, 12)
    assert ours == pytest.approx(by_sklearn(source, target, 12, ridge(target, 12)), abs=1e-7)
    assert ours == pytest.approx(by_sklearn(source, target, 12, LinearRegression()), abs=1e-4)


def test_planted_relation_arrives_whole() -> None:
    """R² is 1 for a source that is a linear function of the target's channels, with an intercept."""
    target = noise(16, 5)
    source = torch.einsum("st,bthw->bshw", torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), target) + 7
    assert measured(source, target, 8) == pytest.approx(1, abs=1e-5)


def test_noise_does_not_arrive() -> None:
    """R² is about 0 for independent noise, and negative where few values fit many channels."""
    assert abs(measured(noise(64, 3), noise(64, 4, seed=1), 32)) < 0.05
    assert measured(noise(20, 3, 1), noise(20, 9, 1, seed=1), 10) < -0.1


def test_share_of_the_variance() -> None:
    """Half of a channel's variance is predicted: R² is one half. A larger channel counts as its variance does."""
    target = noise(200, 1)
    target = (target - target.mean()) / target.std()
    independent = noise(200, 1, seed=1)
    independent = (independent - independent.mean()) / independent.std()
    half = target + independent
    assert measured(half, target, 100) == pytest.approx(0.5, abs=0.03)
    assert measured(torch.cat([half, 10 * target], dim=1), target, 100) == pytest.approx(101 / 102, abs=1e-3)


def test_channels_that_are_constant_repeated_or_small() -> None:
    """Dead and repeated channels, and ones far from 0 or a million times smaller, do not spoil the fit."""
    clean = noise(40, 3)
    source = clean[:, :2] * torch.tensor([1.0, -2.0])[:, None, None]
    odd = torch.cat([clean[:, :1] * 1e-6, clean[:, 1:] + 1000, torch.zeros(40, 1, 4, 4)], dim=1)
    odd = torch.cat([odd, torch.full((40, 1, 4, 4), 0.1), odd[:, :2]], dim=1)
    assert measured(source, odd, 20) == pytest.approx(1, abs=1e-5)


def test_no_number_where_there_is_none() -> None:
    """A constant source has no variance to predict, and maps that are not finite have no fit: nan, not a number."""
    target = noise(20, 2)
    assert np.isnan(measured(torch.full((20, 2, 4, 4), 0.1), target, 10))
    target[3, 0, 0, 0] = torch.inf
    assert np.isnan(measured(noise(20, 2), target, 10))


def test_several_pairs_are_measured_as_each_alone() -> None:
    """Layers that share a target or a source do not mix."""
    maps = {"a": noise(20, 3), "b": noise(20, 2, 2, seed=1)}, {"u": noise(20, 4, seed=2), "v": noise(20, 2, 3, seed=3)}
    maps[0]["a"][:, :2] += maps[1]["u"][:, 1:3]
    parts = [
        [tuple({name: value[part] for name, value in side.items()} for side in maps)]
        for part in (slice(0, 10), slice(10, 20))
    ]
    pairs = [("a", "u"), ("a", "v"), ("b", "u")]
    together = arrived_r2(pairs, *parts)
    assert list(together) == pairs
    for source, target in pairs:
        assert together[source, target] == pytest.approx(measured(maps[0][source], maps[1][target], 10), abs=1e-9)


def test_table_of_a_run(tmp_path: Path) -> None:
    """R² is measured at every fifth row of the trace and at the last step, of the weights of that step."""
    trainer = transfer(tmp_path, epochs=4, trace_every=1, arrived=OTHERS, precision="float32")
    values = {}
    for report in trainer:
        if report.step in (5, 8):
            values[report.step] = by_hand(trainer)
    table = trainer.result().arrived
    assert table.columns.tolist() == ["step", "source", "target", "r2"]
    assert table["step"].tolist() == [5] * 4 + [8] * 4
    for row in table.itertuples():
        assert row.r2 == pytest.approx(values[row.step][row.source, row.target], abs=1e-6)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "arrived.csv"), table)


def by_hand(trainer: Any) -> dict[tuple[str, str], float]:
    """R² of a trainer's networks on the halves of `OTHERS`, by scikit-learn."""
    order = torch.randperm(30, generator=generator_for(0))
    images = OTHERS.images[order].float() / 255
    modes = [(module, module.training) for module in trainer.model.modules()]
    trainer.model.eval()
    with torch.no_grad():
        target = {layer: getattr(trainer.model, layer) for layer in ("first", "second")}
        maps = {"first": target["first"](images)}
        maps["second"] = target["second"](maps["first"])
        source = {"first": trainer.networks[""].first(images)}
        source["second"] = trainer.networks[""].second(source["first"])
    for module, mode in modes:
        module.training = mode
    return {(s, t): by_sklearn(source[s], maps[t], 15, ridge(maps[t], 15)) for s, t in trainer.pairs}


class Restless(tiny.TinyNet):
    """Draws random numbers and writes a buffer, also in eval mode."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        self.calls += 1
        return super().forward(images + 0.1 * torch.rand_like(images))


@pytest.mark.parametrize("target", [tiny.TinyNet, Restless])
def test_the_run_is_left_alone(target: type[nn.Module], tmp_path: Path) -> None:
    """The same bits with and without it: weights, batch-norm statistics, tables, modes and random state."""
    plain = transfer(target=target, epochs=3, trace_every=1)
    watched = transfer(target=target, epochs=3, trace_every=1, arrived=OTHERS)
    before, modes = torch.get_rng_state(), []
    for _ in watched:
        assert torch.equal(torch.get_rng_state(), before)
        modes.append(watched.model.training)
    plain.train()
    assert all(modes)
    for name in ("student", "meta"):
        assert same(copied(getattr(watched, name)), copied(getattr(plain, name)))
    assert watched.result().trace.equals(plain.result().trace)
    assert watched.result().channels.equals(plain.result().channels)
    assert plain.result().arrived is None


def test_resumed_anywhere(tmp_path: Path) -> None:
    """A run stopped between two measurements ends with the same table, in memory and in its folder."""
    options = {"epochs": 6, "trace_every": 1, "arrived": OTHERS}
    expected = transfer(**options).train().arrived
    steps(transfer(tmp_path, **options), 7)
    resumed = transfer(tmp_path, **options)
    assert resumed.step == 7
    pd.testing.assert_frame_equal(resumed.train().arrived, expected, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "arrived.csv"), expected, rtol=1e-12)


def test_it_identifies_a_run_that_has_it(tmp_path: Path) -> None:
    """Another set, or none, is another run; the record of a run without it is that of earlier versions."""
    steps(transfer(tmp_path / "with", arrived=OTHERS), 1)
    for other in (None, tiny.images(30, seed=6)):
        with pytest.raises(ValueError, match=r"already holds another run \(arrived: there "):
            transfer(tmp_path / "with", arrived=other)
    steps(transfer(tmp_path / "without"), 1)
    assert "arrived" not in (tmp_path / "without" / "config.json").read_text()
    assert not (tmp_path / "without" / "arrived.csv").exists()


def test_at_most_512_images_and_none_that_is_trained_on() -> None:
    """A large set is cut at random; training images in it are left out with a note."""
    many = tiny.images(600, size=4, seed=3)
    trained = many.subset(range(300))
    trainer = transfer(data=trained, arrived=many)
    kept = [part.images for part in trainer.arrived._parts]
    assert any("images are trained on, left out" in note for note in trainer.notes)
    training = {image.numpy().tobytes() for image in trained.images}
    assert not any(image.numpy().tobytes() in training for part in kept for image in part)
    assert 200 < sum(map(len, kept)) < 300
    parts = transfer(data=tiny.images(12, size=4), arrived=many).arrived._parts
    assert [len(part) for part in parts] == [IMAGES_UP_TO // 2] * 2
    assert parts[0].labels.unique().numel() == 3  # a set in the order of its classes is drawn from at random


def test_few_values_are_noted() -> None:
    """Few values for many channels are memorized, so that R² on other images is too low: a note names the layer."""
    few = tiny.images(12, seed=5, size=2)
    trainer = transfer(data=tiny.images(size=2), arrived=few)
    notes = [note for note in trainer.notes if "is too low" in note]
    assert notes == [
        f"arrived: R² of the target's {layer!r} is too low, as {values} values of its {channels} channels are too few "
        "to fit on"
        for layer, values, channels in (("first", 24, 4), ("second", 6, 8))
    ]
    assert not [note for note in transfer(arrived=OTHERS).notes if "is too low" in note]


def test_bad_sets_are_refused(tmp_path: Path) -> None:
    """Sets that cannot be measured on are refused before training, and nothing is written."""
    empty = OTHERS.subset([])
    bad = {
        "at least 10 images that are not trained on, got 0": empty,
        "at least 10 images that are not trained on, got 9": OTHERS.subset(range(IMAGES_FROM - 1)),
        r"images of shape \(3, 8, 8\), as the training images, got \(3, 6, 6\)": tiny.images(size=6),
        "that are not trained on, got 0": tiny.images(),  # the training images
    }
    for message, data in bad.items():
        refused(ValueError, f"arrived: expected .*{message}", tmp_path / "run", arrived=data)
    loader = DataLoader(list(zip(OTHERS.images / 255, OTHERS.labels, strict=True)), 4)
    trainer = transfer()
    images, _ = trainer._probe_batch()
    with pytest.raises(ValueError, match="arrived: expected an ImageSet, got DataLoader"):
        unchecked(Arrived.__init__)(
            Arrived.__new__(Arrived), loader, trainer.batches.data, trainer.pairs, trainer.student.target, images
        )


def test_a_target_that_fails_in_eval_mode(tmp_path: Path) -> None:
    """A target that cannot be evaluated is refused at once, not at the first measurement."""

    class Train(tiny.TinyNet):
        """Works in train mode only where its layers are tapped."""

        def forward(self, images: Tensor) -> Tensor:
            maps = self.first(images)
            return self.classifier((self.second(maps) if self.training else maps.repeat(1, 2, 1, 1)).mean(dim=(2, 3)))

    refused(ValueError, "target, given images of shape", tmp_path / "run", target=Train, arrived=OTHERS)


def test_bfloat16_and_several_sources() -> None:
    """Under autocast and with several sources, every pair has a number near that of float32."""
    sources = {"a": tiny.made(5, seed=2).eval(), "b": tiny.made(3, seed=4).eval()}
    tables = [
        transfer(source=sources, arrived=OTHERS, precision=precision).train().arrived
        for precision in ("float32", "bfloat16")
    ]
    assert tables[0]["source"].unique().tolist() == ["a/first", "a/second", "b/first", "b/second"]
    np.testing.assert_allclose(tables[1]["r2"], tables[0]["r2"], atol=0.1)


ACCELERATORS = [
    name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if there
]


@pytest.mark.parametrize("device", ACCELERATORS)
def test_on_an_accelerator(device: str) -> None:
    """Products in float32, summed in float64 on the CPU, give the numbers of the CPU."""
    values = []
    for where in ("cpu", device):
        trainer = transfer(device=where, arrived=OTHERS)
        values.append(trainer.arrived.measure(trainer.source_features, "float32"))
    assert values[1] == pytest.approx(values[0], abs=1e-3)


def test_an_image_set_as_any_other() -> None:
    """Labels are not read: any classes will do."""
    unlabelled = ImageSet(OTHERS.images, [0] * 30, ("unknown",))
    assert transfer(arrived=unlabelled).train().arrived.equals(transfer(arrived=OTHERS).train().arrived)
