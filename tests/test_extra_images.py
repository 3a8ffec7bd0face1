"""Images without labels beside each batch: matched and distilled, never in the task's loss; the same when resumed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset
from torchvision.transforms import v2

from mtanytime.data.batches import Batches
from mtanytime.data.images import ImageSet
from mtanytime.data.views import StrongViews
from mtanytime.transfer.distillation import distillation_loss
from mtanytime.transfer.extra_images import ExtraImages
from mtanytime.transfer.probe import fit_probe
from mtanytime.transfer.settings import PAPER
from mtanytime.transfer.trainer import TransferTrainer

SOURCE, TEACHER = tiny.made(5, seed=2).eval(), tiny.made(6, seed=7).eval()
LABELLED, UNLABELLED = tiny.images(12), tiny.images(20, seed=9)


def transfer(folder: Path | None = None, **options: Any) -> TransferTrainer:
    """Three epochs of two batches of six images."""
    settings = PAPER | {"epochs": 3, "batch_size": 6, "lr": 0.05, "meta_lr": 0.01, "device": "cpu", "progress": False}
    target = options.pop("target", None) or tiny.made(4, seed=1)
    source, data = options.pop("source", SOURCE), options.pop("data", LABELLED)
    return TransferTrainer(source, target, data, folder=folder, **settings | options)


def first_batch(trainer: TransferTrainer) -> tuple[Tensor, Tensor]:
    """The first labelled batch."""
    trainer.model.train()
    return next(trainer.batches.epoch(0))


def test_labels_belong_to_the_first_images() -> None:
    """The task's loss is that of the labelled part of one joint pass; the matching loss is a mean over all images."""
    trainer = transfer()
    images, labels = first_batch(trainer)
    joint = torch.cat([images, UNLABELLED.images[:4] / 255])
    features = trainer.source_features(joint)
    losses = trainer.lookahead.losses(joint, labels, features, trainer.meta(features))
    trainer_again = transfer()
    output, maps = trainer_again.student.target.train()(joint)
    torch.testing.assert_close(losses.task, F.cross_entropy(output[:6], labels))
    matching = trainer_again.student.matching(features, maps, trainer_again.meta(features))
    torch.testing.assert_close(losses.matching, 0.5 * matching.mean())
    torch.testing.assert_close(losses.total, losses.task + losses.matching)
    torch.testing.assert_close(losses.output, output)
    more = losses.plus(losses.output.square().mean())
    torch.testing.assert_close(more.total, losses.total + output.square().mean())


def test_the_teachers_answers_join_the_loss() -> None:
    """The total is the sum of task, matching and distillation; the last is that of all images, with its weight."""
    options = {"teacher": TEACHER, "teacher_weight": 0.5, "temperature": 3.0}
    images, _ = first_batch(transfer(**options))
    answers = transfer(**options).model.train()(images)
    with torch.no_grad():
        expected = 0.5 * distillation_loss(answers, TEACHER(images), 3.0).mean()
    metrics = next(iter(transfer(**options))).metrics
    assert metrics["distillation_loss"] == pytest.approx(expected.item(), rel=1e-5)
    parts = [metrics[f"{name}_loss"] for name in ("task", "matching", "distillation")]
    assert metrics["loss"] == pytest.approx(sum(parts), rel=1e-6)


@pytest.mark.parametrize("stages", [2, 3])
def test_meta_gradient_with_extra_images(stages: int) -> None:
    """Step by step in reverse, it is that of plain autograd through one long graph, in float64."""
    trainer = transfer(target=tiny.made(4, seed=1).double(), source=tiny.made(5, seed=2).double().eval(), stages=stages)
    images, labels = first_batch(trainer)
    joint = torch.cat([images, UNLABELLED.images[:4] / 255]).double()
    features = trainer.source_features(joint)
    gradients = []
    for mode in ("keep", "unroll"):
        lookahead = replace(trainer.lookahead, mode=mode)
        phi = list(trainer.meta.parameters())
        gradients.append(lookahead.meta_gradient(joint, labels, features, trainer.meta(features), phi).gradients)
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


EXTRAS: dict[str, dict[str, Any]] = {
    "views": {"views": 4},
    "unlabelled": {"unlabelled": UNLABELLED, "unlabelled_per_step": 7},
    "loader": {"unlabelled": DataLoader(TensorDataset(UNLABELLED.images / 255, UNLABELLED.labels), 8, shuffle=True)},
    "teacher": {"teacher": TEACHER},
    "all, learned": {"views": 3, "unlabelled": UNLABELLED, "teacher": TEACHER, "teacher_weight": 0.5},
    "all, fixed": {"views": 3, "unlabelled": UNLABELLED, "teacher": TEACHER, "what": False, "where": "off"},
    "normalized": {"views": 3, "standardize": True, "beta": 0.01, "what": False, "where": "off"},
}


@pytest.mark.parametrize("name", EXTRAS)
def test_resumed_anywhere(name: str, tmp_path: Path) -> None:
    """A run stopped within an epoch ends as an uninterrupted one does, bit for bit."""
    whole = transfer(**EXTRAS[name])
    expected = whole.train()
    begun = transfer(tmp_path, **EXTRAS[name])
    for report in begun:
        if report.step == 3:
            break
    resumed = transfer(tmp_path, **EXTRAS[name])
    log = resumed.train().log
    assert log.drop(columns="seconds").equals(expected.log.drop(columns="seconds"))
    for ours, theirs in zip(resumed.student.state_dict().values(), whole.student.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert ("distillation_loss" in log) == ("teacher" in EXTRAS[name])


def test_extras_change_the_run(tmp_path: Path) -> None:
    """A folder trained with other extra images, or another teacher, is another run."""
    transfer(tmp_path, views=4, unlabelled=UNLABELLED, teacher=TEACHER).train()
    changed = [
        {"views": 5, "unlabelled": UNLABELLED, "teacher": TEACHER},
        {"views": 4, "unlabelled": tiny.images(20, seed=8), "teacher": TEACHER},
        {"views": 4, "unlabelled": UNLABELLED, "teacher": tiny.made(6, seed=8)},
        {"views": 4, "unlabelled": UNLABELLED, "teacher": TEACHER, "view_augment": StrongViews(mixup=False)},
        {},
    ]
    for options in changed:
        with pytest.raises(ValueError, match="another run"):
            transfer(tmp_path, **options)


def test_what_a_step_gets() -> None:
    """Views are of labelled images; unlabelled images come in whole epochs; steps may be asked for in any order."""
    batches = Batches(LABELLED, 6, seed=0)

    def plain(images: Tensor, generator: torch.Generator) -> Tensor:
        return images

    extra = ExtraImages(batches, 5, plain, UNLABELLED, 4, (3, 8, 8), seed=3)
    labelled = torch.rand(6, 3, 8, 8)
    drawn = [extra.draw(step, labelled) for step in range(10)]
    assert drawn[0].shape == (9, 3, 8, 8)
    known = {tuple(image.flatten().tolist()) for image in LABELLED.images / 255}
    assert all(tuple(view.flatten().tolist()) in known for view in drawn[0][:5])
    seen = torch.cat([part[5:] for part in drawn[:5]])
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 20
    for step in (7, 2, 3, 9, 0):
        assert torch.equal(extra.draw(step, labelled), drawn[step])


def test_a_probe_teaches() -> None:
    """The source's logistic regression as the teacher; nothing of it is trained."""
    probe = fit_probe(SOURCE, LABELLED, folds=2, strengths=(1e3,))
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    loss = transfer(teacher=probe, views=4, epochs=15, lr=0.02).train().log["distillation_loss"]
    assert loss.iloc[-6:].mean() < loss.iloc[:6].mean()
    assert all(torch.equal(value, before[name]) for name, value in probe.state_dict().items())


def test_a_probe_of_a_source_that_is_not_used() -> None:
    """What it was fitted with identifies it, as its weights' last bits may differ on another machine."""
    probe = fit_probe(SOURCE, LABELLED, folds=2, strengths=(1e3,))
    trainer = transfer(source=tiny.made(5, seed=7).eval(), teacher=probe)
    identity = trainer._config()["teacher"]
    assert identity.startswith(f"probe {probe.origin} of ")
    assert trainer.modules["teacher"] is trainer.teacher.linear
    other = tiny.made(5, seed=9).eval()
    assert transfer(source=other, teacher=fit_probe(other, LABELLED, folds=2))._config()["teacher"] != identity


def test_a_folder_of_unlabelled_images(tmp_path: Path) -> None:
    """Read at the labelled images' size, whatever folders they are in."""
    (tmp_path / "deep").mkdir()
    for i in range(7):
        Image.new("RGB", (20, 30), (30 * i, 0, 0)).save(tmp_path / ("deep" if i % 2 else ".") / f"{i}.png")
    trainer = transfer(unlabelled=tmp_path, unlabelled_per_step=7)
    drawn = trainer.extra_images.draw(0, torch.rand(6, 3, 8, 8))
    assert sorted((drawn[:, 0, 4, 4] * 255).round().tolist()) == [30 * i for i in range(7)]


def test_a_folder_where_the_augmentation_changes_the_size(tmp_path: Path) -> None:
    """The folder's images are what an image set of the same files is: they are augmented once."""
    for i in range(7):
        pixels = torch.full((16, 16, 3), 255, dtype=torch.uint8)
        pixels[4:12, 4:12] = 30 * i  # the middle
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    data = tiny.images(size=16)
    trainer = transfer(data=data, augment=v2.CenterCrop(8), unlabelled=tmp_path, unlabelled_per_step=7)
    drawn = trainer.extra_images.draw(0, torch.rand(6, 3, 8, 8))
    assert sorted((drawn.mean((1, 2, 3)) * 255).round().tolist()) == [30 * i for i in range(7)]


class Broken(tiny.TinyNet):
    """A network whose training diverged."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits that are not numbers."""
        return super().forward(images) * torch.nan


class InDict(nn.Module):
    """A network whose output is a dict of its logits and an embedding."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The embedding first."""
        return {"embedding": images.mean((2, 3)), "logits": self.network(images)}


def test_a_teacher_with_an_output_of_its_own() -> None:
    """Its logits are found as the target's are; wrappers are taken off."""
    logs = [
        transfer(teacher=teacher, what=False, where="off").train().log.drop(columns="seconds")
        for teacher in (TEACHER, InDict(TEACHER).eval(), nn.DataParallel(TEACHER).eval())
    ]
    assert logs[0].equals(logs[1])
    assert logs[0].equals(logs[2])
    sources = {"teacher": tiny.made(5, seed=2).eval()}  # its name must not hide it from the check for shared layers
    with pytest.raises(ValueError, match="shares no layer or parameter with the source 'teacher'"):
        transfer(source=sources, teacher=TEACHER, target=sources["teacher"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views: expected a whole number >= 1, got 0"),
        ({"unlabelled_per_step": 0}, "unlabelled_per_step: expected a whole number >= 1, got 0"),
        ({"unlabelled_per_step": 4}, "unlabelled: expected images to take unlabelled_per_step from, got None"),
        ({"teacher_weight": 0.0}, "teacher_weight: expected a number > 0, got 0.0"),
        ({"unlabelled": tiny.images(9, size=12)}, r"unlabelled: expected images of shape .*, got \(3, 12, 12\)"),
        ({"unlabelled": LABELLED.subset([])}, "unlabelled: expected a set with images, got an empty one"),
        (
            {"teacher": tiny.made(4, classes=5)},
            r"teacher: expected logits of the target's 3 classes, got \(4, 5\)",
        ),
        ({"teacher": nn.Sequential(TEACHER, nn.Softmax(1))}, "^teacher: expected logits, got probabilities, .*softmax"),
        ({"teacher": nn.Linear(5, 3)}, "^teacher: mat1 and mat2 shapes cannot be multiplied"),
        ({"teacher": Broken()}, "^teacher: expected finite logits"),
        ({"teacher": "prob"}, r"^teacher: expected a network, \"probe\" or None, got 'prob'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_extras(options: dict[str, Any], message: str) -> None:
    """Refused before training."""
    with pytest.raises(ValueError, match=message):
        transfer(**options)


def test_an_empty_folder(tmp_path: Path) -> None:
    """The path is named, and what is wrong with it."""
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: expected a folder with images, got none"):
        transfer(unlabelled=tmp_path)
    with pytest.raises(ValueError, match="missing: expected a folder with images, got no such folder"):
        transfer(unlabelled=tmp_path / "missing")
    with pytest.raises(ValueError, match=r"notes\.txt: expected a folder with images, got a file"):
        transfer(unlabelled=tmp_path / "notes.txt")


PIXELS = UNLABELLED.images / 255
BATCHES = {
    "tensors": list(PIXELS),
    "tuples": [(image,) for image in PIXELS],
    "named": [(image, "unknown") for image in PIXELS],
    "scored": [(image, 0.5) for image in PIXELS],
    "dicts": [{"name": "unknown", "image": image} for image in PIXELS],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_loader_without_labels(kind: str) -> None:
    """Labels are never asked for: images alone, or with anything beside them, train as those with labels do."""
    logs = [
        transfer(unlabelled=DataLoader(data, 5), what=False, where="off").train().log.drop(columns="seconds")
        for data in (BATCHES[kind], TensorDataset(PIXELS, UNLABELLED.labels))
    ]
    assert logs[0].equals(logs[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([("a", 0)] * 4, "^unlabelled: batches of the DataLoader: expected images, .* got list; .*map_batches"),
        (list(UNLABELLED.images), "^unlabelled: images: expected float .*, got uint8"),
        (list(PIXELS * 9 - 4), r"^unlabelled: images: expected values in \[0, 1\].*Normalized"),
    ],
)
def test_a_loader_of_no_images(data: Any, message: str) -> None:
    """The argument is named."""
    with pytest.raises(ValueError, match=message):
        transfer(unlabelled=DataLoader(data, 4))


def test_loaders_whose_batches_differ() -> None:
    """A batch of another size is named, not torch.cat; a length is needed, and an unused number is refused."""
    with pytest.raises(ValueError, match=r"^unlabelled: expected images of shape \(3, 8, 8\).*got \(3, 9, 9\)"):
        list(transfer(unlabelled=DataLoader([torch.zeros(3, 8, 8)] * 4 + [torch.zeros(3, 9, 9)] * 4, 4)))

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            yield from PIXELS

    with pytest.raises(ValueError, match=r"^unlabelled: expected a DataLoader with a length"):
        transfer(unlabelled=DataLoader(Endless(), 4))
    with pytest.raises(ValueError, match=r"^unlabelled_per_step: expected None beside a DataLoader, got 3; leave it"):
        transfer(unlabelled=DataLoader(list(PIXELS), 4), unlabelled_per_step=3)


def test_views_where_the_augmentation_changes_the_size() -> None:
    """Views of stored images get the size of the training batches; it was an error of torch.cat at the first step."""
    run = transfer(data=tiny.images(12, size=12), augment=v2.RandomResizedCrop(8), views=4, epochs=1)
    assert run.extra_images.draw(0, torch.rand(6, 3, 8, 8)).shape == (4, 3, 8, 8)
    assert len(run.train().log) == 2


def test_labels_of_unlabelled_images_are_not_read() -> None:
    """Other labels, and classes that the target does not know, change nothing."""
    relabelled = ImageSet(UNLABELLED.images, UNLABELLED.labels * 0 + 4, tuple("abcde"))
    logs = [transfer(unlabelled=data, what=False, where="off").train().log for data in (UNLABELLED, relabelled)]
    assert logs[0].drop(columns="seconds").equals(logs[1].drop(columns="seconds"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"views": 2, "view_augment": v2.Resize(6)},
            r"view_augment: expected views of shape \(3, 8, 8\), got \(3, 6, 6\)",
        ),
        (
            {"views": 2, "view_augment": lambda images: images},
            r"^view_augment: expected a function .* got one that fai",
        ),
        ({"views": 2, "view_augment": None}, "^view_augment: expected a function of images and a generator"),
        ({"views": 2, "view_augment": lambda images, _: images[:1]}, "^view_augment: expected .* as many images"),
        ({"teacher": SOURCE, "source": SOURCE, "target": SOURCE}, "target: expected a network that shares no layer"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refused_before_training(options: dict[str, Any], message: str) -> None:
    """Further bad input, with one message each."""
    with pytest.raises(ValueError, match=message):
        transfer(**options)


def test_a_teacher_shares_nothing_with_the_target() -> None:
    """Its batch norms would move with the target's."""
    target = tiny.made(4, seed=1)
    with pytest.raises(ValueError, match="shares no layer or parameter with the teacher"):
        transfer(target=target, teacher=nn.Sequential(target))


def test_views_by_the_batch_size_of_a_loader() -> None:
    """A batch sampler has it, too; a loader without one must not silently do without views."""
    data = TensorDataset(LABELLED.images / 255, LABELLED.labels)
    sampler = BatchSampler(SequentialSampler(data), 4, drop_last=False)
    options = {"views": "batch", "teacher": None}
    assert transfer(data=DataLoader(data, batch_sampler=sampler), **options).extra_images.views == 4
    batches = DataLoader([data[:6], data[6:12]], batch_size=None)
    with pytest.raises(ValueError, match=r"^views: expected a number of images beside a DataLoader without a batch"):
        transfer(data=batches, **options)
    with pytest.raises(ValueError, match=r"^unlabelled_per_step: expected a number of images beside a DataLoader"):
        transfer(data=batches, unlabelled=UNLABELLED, **options)
    assert transfer(data=batches, **options | {"views": 2}).train().last_accuracy is None


def test_a_loader_that_ends_early() -> None:
    """A DataLoader that promises more batches than it gives is named."""

    class Short(torch.utils.data.IterableDataset):
        def __len__(self) -> int:
            return 20

        def __iter__(self) -> Any:
            yield from ((UNLABELLED.images[i] / 255, 0) for i in range(4))

    with pytest.raises(ValueError, match="unlabelled: expected a DataLoader of 10 batches, got one that ends after 2"):
        list(transfer(unlabelled=DataLoader(Short(), 2)))


def test_views_of_a_loader_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has a part of a loader's batch only, so views of it would not be those of one process."""
    monkeypatch.setattr("mtanytime.transfer.extra_images.Processes", lambda: SimpleNamespace(count=2))
    batches = Batches(DataLoader(TensorDataset(LABELLED.images / 255, LABELLED.labels), 6), None, seed=3)
    with pytest.raises(ValueError, match="views: expected None with a DataLoader and several processes"):
        ExtraImages(batches, 5, StrongViews(), None, None, (3, 8, 8), seed=3)
