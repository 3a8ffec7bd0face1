"""Alternatives to matching features with learned weights, in the same training loop, log and tables.

Each method is a loss term in its own file; `BaselineTrainer` adds one or more of these terms to the task's loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, require
from mtanytime.data.batches import Batches
from mtanytime.data.images import LabelledImages, Task
from mtanytime.data.transforms import Augment
from mtanytime.data.views import StrongViews
from mtanytime.devices import autocast
from mtanytime.features import bare, unwrapped
from mtanytime.measure.evaluation import batch_accuracy
from mtanytime.randomness import derive_seed, seeded
from mtanytime.training.distributed import Processes
from mtanytime.training.identity import describe_data, describe_frozen, name_of
from mtanytime.training.optimizers import make_optimizer
from mtanytime.training.run_folder import Row
from mtanytime.training.settings import with_keywords_of
from mtanytime.training.trainer import Trainer
from mtanytime.training.trial import smallest_batch
from mtanytime.transfer.attention import AttentionTransfer
from mtanytime.transfer.distillation import LearningWithoutForgetting
from mtanytime.transfer.extra_images import ExtraImages, Unlabelled
from mtanytime.transfer.layers import (
    Layers,
    check_always_run,
    check_apart,
    check_pair_form,
    check_trainable,
    dtype_of,
    freeze_source,
    tap_layers,
    try_layers,
)
from mtanytime.transfer.lookahead import first_images
from mtanytime.transfer.meta_networks import Pair
from mtanytime.transfer.reviewkd import ReviewKD
from mtanytime.transfer.semckd import SemCKD
from mtanytime.transfer.settings import FEW_LABELS
from mtanytime.transfer.teacher import check_no_probabilities, check_teacher, logits_of, make_teacher

_TERMS = -7  # purpose of a derived seed


class Pass(NamedTuple):
    """A network's output for a batch, and the maps of its tapped layers."""

    output: Any
    maps: Mapping[str, Float[Tensor, "batch _ _ _"]]


TERMS = ("lwf", "at", "semckd", "reviewkd", "teacher")


@with_keywords_of(Trainer)
class BaselineTrainer(Trainer):
    """Train a target network on a task with loss terms that transfer from a frozen source network.

    The loss is the task's loss on the labelled images plus Σ weight · term on all images of a step.

    Args:
        source: the trained network; never trained.
        target: the network to train, or a function that makes it (see `Trainer`).
        data, test: the target task (see `Trainer`).
        terms: weights by name. "lwf": the source's own answers through an extra head (`LearningWithoutForgetting`),
            "at": attention transfer of `pairs`, "semckd", "reviewkd": see their files; "teacher": the answers of
            `teacher`, a network with the target's classes.
        source_layers, target_layers: layers to read; default: those in `pairs` if a network names none itself, else its
            own `feature_layers`.
        pairs: for "at", default: the last source layers with the last target layers, one to one.
        teacher: the network of the term "teacher", such as a probe from `probe.fit_probe`, or "probe" (see
            `TransferTrainer`).
        views, view_augment, unlabelled, unlabelled_per_step: further images, see `ExtraImages`.
        settings: the keyword arguments of `Trainer`, some with `TransferTrainer`'s defaults, which suit few labels.

    Raises:
        ValueError: as `Trainer`; also an unknown term, a weight that is not above 0, a term that lacks its teacher, or
            a layer that a term reads and cannot train.
    """

    defaults: ClassVar[Mapping[str, Any]] = FEW_LABELS

    def __init__(
        self,
        source: nn.Module,
        target: nn.Module | Callable[[], nn.Module],
        data: Task | LabelledImages | DataLoader,
        test: LabelledImages | DataLoader | None = None,
        *,
        terms: Mapping[str, float],
        source_layers: Layers | None = None,
        target_layers: Layers | None = None,
        pairs: Sequence[Pair] | None = None,
        teacher: nn.Module | Literal["probe"] | None = None,
        views: int | Literal["batch"] | None = None,
        view_augment: Augment = StrongViews(),  # noqa: B008
        unlabelled: Unlabelled | None = None,
        unlabelled_per_step: int | None = None,
        **settings: Any,
    ) -> None:
        require(isinstance(source, nn.Module), "source", "one network", source)
        source, teacher = bare(source, "source"), check_teacher(teacher)
        require(isinstance(terms, Mapping), "terms", f"weights by name, of some of {TERMS}", terms)
        require(len(terms) > 0 and set(terms) <= set(TERMS), "terms", f"some of {TERMS}", list(terms))
        for name, weight in terms.items():
            number = isinstance(weight, Real) and 0 < weight < math.inf
            require(number, f"terms[{name!r}]", "a weight > 0", weight)
        alone = "semckd" not in terms or Processes().count == 1
        require(alone, "terms", "none of 'semckd', which compares all images of a step", Words("several processes"))
        needed = "teacher" in terms
        got = Words("none" if teacher is None else type(teacher).__name__)
        expected = "a network or 'probe' with the term 'teacher', else None"
        require(needed == (teacher is not None), "teacher", expected, got)
        check_pair_form(pairs)
        for pair in pairs or ():
            require(list(pairs).count(pair) == 1, "pairs", "each pair once", pair)
        self.term_weights, self.source, self.teacher, self._pairs = dict(terms), source, teacher, pairs
        self._layers = source_layers, target_layers
        self._extra = views, view_augment, unlabelled, unlabelled_per_step
        super().__init__(target, data, test, **settings)

    def _build(self) -> None:
        self._try_model()
        images, _ = self._probe_batch()
        teacher = {"teacher": self.teacher} if isinstance(self.teacher, nn.Module) else {}
        check_apart({"source": self.source} | teacher, self.model)
        sources, self.target, _ = tap_layers({"": self.source}, self.model, *self._layers_to_read(), None)
        self.tapped_source = sources[""]
        self.notes += freeze_source("source", self.source, self.device)
        self._teacher = make_teacher(self, sources)
        if self._teacher is not None:
            self._teacher.check(images, self.outputs, {"": self._source_pass(images)})
        shape = tuple(images.shape[1:])
        self.extra_images = ExtraImages(self.batches, *self._extra, shape, self.seed)
        source_maps = try_layers("source", self.tapped_source, images, training=False)
        target_maps = try_layers("target", self.target, images, training=True)
        if set(self.term_weights) != {"teacher"}:
            check_trainable(self.model, target_maps)
        with seeded(derive_seed(self.seed, _TERMS), self.device):
            check_always_run("target", self.target, images)
        with seeded(derive_seed(self.seed, _TERMS), self.device):
            self.terms = nn.ModuleDict(self._make_terms(source_maps, target_maps, images)).to(images)
        self.modules["terms"] = self.terms
        self.optimizer = make_optimizer(self.settings, nn.ModuleList([self.model, self.terms]))

    def _layers_to_read(self) -> list[Layers | None]:
        """The layers of the source and of the target: the given ones, else the networks' own, else those in pairs."""
        layers = []
        for given, network, side in zip(self._layers, (self.source, self.model), (0, 1), strict=True):
            own = getattr(unwrapped(network), "feature_layers", None)
            of_pairs = given is None and own is None and self._pairs
            layers.append(list(dict.fromkeys(pair[side] for pair in self._pairs)) if of_pairs else given)
        return layers

    def _make_terms(
        self, source_maps: Mapping[str, Tensor], target_maps: Mapping[str, Tensor], images: Tensor
    ) -> dict[str, nn.Module]:
        source_channels = {layer: maps.shape[1] for layer, maps in source_maps.items()}
        target_channels = {layer: maps.shape[1] for layer, maps in target_maps.items()}
        within = f"a layer of the source ({', '.join(source_channels)}) and one of the target"
        for source, target in self._pairs or ():
            known = source in source_channels and target in target_channels
            require(known, "pairs", f"{within} ({', '.join(target_channels)})", (source, target))
        last = list(target_channels)[-1]
        count = min(len(source_channels), len(target_channels))
        pairs = self._pairs or list(zip(list(source_channels)[-count:], list(target_channels)[-count:], strict=True))

        def lwf() -> nn.Module:
            logits = logits_of("source", self._source_pass(images).output)
            check_no_probabilities("source", logits)
            return LearningWithoutForgetting(target_channels[last], logits.shape[1], last)

        makers = {
            "lwf": lwf,
            "at": partial(AttentionTransfer, pairs),
            "semckd": lambda: SemCKD(source_channels, target_channels, self._images_per_step()),
            "reviewkd": partial(ReviewKD, source_channels, target_channels),
        }
        return {name: makers[name]() for name in self.term_weights if name in makers}

    def _images_per_step(self) -> int:
        """The images of every step; ValueError where steps differ."""
        sizes = [_equal_size(self.batches, "data")]
        if self.extra_images.unlabelled is not None:
            sizes.append(_equal_size(self.extra_images.unlabelled, "unlabelled"))
        return sum(sizes) + (self.extra_images.views or 0)

    def _config(self) -> Row:
        views, view_augment, _, per_step = self._extra
        row: Row = {"terms": self.term_weights, "source": describe_frozen(self.source)}
        row |= {"source_layers": self.tapped_source.layers, "target_layers": self.target.layers, "pairs": self._pairs}
        row |= {"views": views, "view_augment": name_of(view_augment), "unlabelled_per_step": per_step}
        unlabelled = self.extra_images.unlabelled
        row["unlabelled"] = None if unlabelled is None else describe_data(unlabelled.data)
        row["teacher"] = None if self._teacher is None else self._teacher.identity
        return row

    @torch.no_grad()
    def _source_pass(self, images: Tensor) -> Pass:
        self.tapped_source.eval()
        with autocast(self.device, self.precision):
            return Pass(*self.tapped_source(images.to(dtype_of(self.tapped_source, images))))

    def train_on_batch(
        self, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"]
    ) -> dict[str, float]:
        """Do one SGD step on the task's loss plus the weighted terms and return the metrics."""
        everything, weight = images, 1.0
        if self.extra_images:
            extra = self.extra_images.draw(self.step, images)
            everything = torch.cat([images, self.processes.part(extra)])
            # With several processes: this one's share of all images, relative to its share of the labelled ones.
            weight = len(everything) / (len(images) + self.share * len(extra))
        self.terms.train()
        source = self._source_pass(everything)
        with autocast(self.device, self.precision):
            target = Pass(*self.target(everything))
            output = first_images(target.output, len(everything), len(labels))
            task = self.loss(output, labels)
        # Outside autocast, like the matching loss: bfloat16 has too few digits for differences of features.
        source, target = (
            Pass(one.output, {layer: maps.to(images.dtype) for layer, maps in one.maps.items()})
            for one in (source, target)
        )
        losses = {name: weight * self._term(name, everything, source, target).mean() for name in self.term_weights}
        total = task + sum(self.term_weights[name] * loss for name, loss in losses.items())
        means = {"loss": total, "task_loss": task} | {f"{name}_loss": loss for name, loss in losses.items()}
        metrics = self._metrics(means | {"accuracy": batch_accuracy(self._logits(output), labels)})
        self._descend(total)
        return metrics

    def _term(self, name: str, images: Tensor, source: Pass, target: Pass) -> Float[Tensor, " batch"]:
        if name == "teacher":
            return self._teacher.loss(target.output, images, {"": source}, self.settings.logits)
        if name == "lwf":
            return self.terms[name](target.maps, logits_of("source", source.output))
        return self.terms[name](source.maps, target.maps)


def _equal_size(batches: Batches, name: str) -> int:
    """The size of all batches. Raises ValueError if sizes differ."""
    data, size = batches.data, smallest_batch(batches)
    largest = min(batches.batch_size, len(data)) if isinstance(data, LabelledImages) else data.batch_size
    option = 'remainder="drop"' if isinstance(data, LabelledImages) else "drop_last=True in the DataLoader"
    sizes = Words(f"the last of {size}, the others of {largest}" if size else "unknown sizes")
    require(size is not None and size == largest, name, "batches of one size with the term 'semckd'", sizes, option)
    return size
