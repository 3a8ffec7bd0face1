"""The trainer of L2T-ww (arXiv:1905.05901): the training loop around `Lookahead`, with its trace."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime._moved import find
from mtanytime.checks import Words, require
from mtanytime.data.batches import batches_of, changes_size, class_names
from mtanytime.data.images import LabelledImages, Task
from mtanytime.devices import autocast
from mtanytime.features import Tapped
from mtanytime.measure.evaluation import batch_accuracy
from mtanytime.randomness import generator_for
from mtanytime.training.contents import contents_hash
from mtanytime.training.identity import describe_data, describe_frozen, record
from mtanytime.training.optimizers import make_optimizer
from mtanytime.training.run_folder import Row
from mtanytime.training.settings import split_settings, with_keywords_of
from mtanytime.training.shared_batch_norm import shared_batch_norm
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer.arrived import Arrived
from mtanytime.transfer.bilevel import SGDState
from mtanytime.transfer.double_backward import allows_fast_layers
from mtanytime.transfer.extra_images import ExtraImages, Unlabelled
from mtanytime.transfer.layers import (
    NOT_LATER,
    Layers,
    Maps,
    Pairs,
    check_apart,
    check_pair_form,
    check_trainable,
    dtype_of,
    error_context,
    freeze_source,
    join_name,
    name_sources,
    source_name,
    tap_layers,
    try_layers,
)
from mtanytime.transfer.lookahead import Lookahead, Losses, Shares, Student
from mtanytime.transfer.matching import FeatureMatching, source_standards
from mtanytime.transfer.meta_networks import MetaNetworks
from mtanytime.transfer.outer import FreshBatch, try_outer
from mtanytime.transfer.settings import FEW_LABELS, TransferSettings, unused_settings
from mtanytime.transfer.teacher import check_teacher, make_teacher
from mtanytime.transfer.trace import Trace
from mtanytime.transfer.transfer_map import FixedWeights, TransferMap, as_map

Images = Float[Tensor, "batch channel height width"]
Labels = Int[Tensor, " batch"]

_REGRESSORS, _META = -3, -4  # purposes of derived seeds
_MEASURED = 512  # images that mean and scale of the source's features are estimated from


class TransferResult(TrainingResult):
    """The result of a transfer; see `TrainingResult`."""

    @property
    def trace(self) -> pd.DataFrame:
        """λ over time: step, source, target, weight (mean over the images since the last row), weight_std."""
        return self.tables["trace"]

    @property
    def channels(self) -> pd.DataFrame:
        """w over time: step, source, target, channel, weight (mean over the images since the last rows)."""
        return self.tables["channels"]

    @property
    def arrived(self) -> pd.DataFrame | None:
        """What arrived over time: step, source, target, r2 (see `transfer.arrived`); None if it was not measured."""
        return self.tables.get("arrived")

    @property
    def map(self) -> TransferMap:
        """What and where: the means of λ and w over the images and the steps of the run.

        Raises ValueError if the *where* networks switched every pair off.
        """
        on = bool(self.trace["weight"].max() > 0)
        remedy = 'where_start="even" or a smaller meta_lr may prevent it'
        require(on, "map", "a run with a pair weight above 0", Words("λ = 0 for every pair, at every step"), remedy)
        return TransferMap.from_tables(self.trace, self.channels)


@with_keywords_of(TransferSettings, Trainer)
class TransferTrainer(Trainer):
    """Train a target network on a task by matching its features with those of trained source networks.

    Each batch gives one SGD step on the task's loss plus β times the matching loss. With `what` or `where`, this is
    L2T-ww's Algorithm 1 (see `lookahead`): a lookahead follows each step, and its meta-gradient gives an Adam step on
    the meta-networks, which learn what and where to transfer.

    The defaults are not the paper's, but follow what wins on CIFAR-10 with few labels: matching with fixed weights on
    labelled images and strong views of them, where the answers of the source's linear probe are distilled, too.
    `TransferTrainer(..., **PAPER)` is the paper's L2T-ww. Deviations from the authors' code are named in
    `meta_networks`, `matching` and `lookahead`. One more: the source runs once per batch.

    On a CPU, training with fixed weights is faster if both networks have torch's memory format `channels_last`
    (`network.to(memory_format=torch.channels_last)`; `python -m mtanytime bench transfer` measures it).

    Args:
        source: the trained network, or several by name; their layers are then called "name/layer". Moved to the
            device and put in eval mode, which `notes` reports; never trained.
        target: the network to train, or a function that makes it (see `Trainer`).
        data, test: the target task (see `Trainer`).
        source_layers, target_layers: module paths of the layers to match; default: the networks' own
            `feature_layers`, which the library's backbones have.
        pairs: the (source layer, target layer) pairs to match; default: every source layer with every target layer.
            "not later": our rule, those whose target layer comes no later in its network (see `layers.tap_layers`).
        map: what and where to transfer, held fixed: a `TransferMap` or the file of one. Nothing is then learned (`what`
            and `where` are off), and the pairs are those of the map, except those with λ = 0. Listed layers that the
            map does not use are left out.
        unlabelled: further images for matching and distillation, of the labelled images' size: an image set, a
            `DataLoader` or a folder. Labels, if there are any, are not read.
        teacher: a trained network with the target's classes. It is frozen, and its answers on all images of a step are
            distilled into the target. "probe": a linear probe of the source, fitted to the labelled images when the
            trainer is made (see `teacher.fit_teacher`). None: no distillation.
        arrived: images not trained on, for `TransferResult.arrived`: what the target has learned of each source layer,
            measured at every fifth row of the trace and at the last step (see `arrived.Arrived`). Labels are not read.
        settings: the fields of `TransferSettings`: what, where, beta, …; and the keyword arguments of `Trainer`, some
            with defaults for few labels.

    Raises:
        ValueError: as `Trainer`. Layers: unknown or unsuitable ones, pairs outside them, a source that no pair uses, or
            a matched target layer that gets no gradient. Images: unlabelled ones of another size, too few for
            `arrived`, or labels that no probe fits. An outer objective that fails, or a teacher of other classes.
        RuntimeError: a target layer whose backward cannot be differentiated again, by name.
    """

    result_type: ClassVar[type[TrainingResult]] = TransferResult
    defaults: ClassVar[Mapping[str, Any]] = FEW_LABELS

    def __init__(
        self,
        source: nn.Module | Mapping[str, nn.Module],
        target: nn.Module | Callable[[], nn.Module],
        data: Task | LabelledImages | DataLoader,
        test: LabelledImages | DataLoader | None = None,
        *,
        source_layers: Layers | Mapping[str, Layers] | None = None,
        target_layers: Layers | None = None,
        pairs: Pairs | None = None,
        map: TransferMap | str | PathLike[str] | None = None,
        unlabelled: Unlabelled | None = None,
        teacher: nn.Module | Literal["probe"] | None = "probe",
        arrived: LabelledImages | None = None,
        **settings: Any,
    ) -> None:
        own, settings = split_settings(settings, TransferSettings)
        self.transfer_settings = TransferSettings(**own)
        self.map = None if map is None else as_map(map, self.transfer_settings.normalize_weights)
        if self.map is not None:
            self.transfer_settings = replace(self.transfer_settings, what=False, where="off", where_start="random")
            pairs = [pair for pair, weight in self.map.pairs.items() if weight > 0] if pairs is None else pairs
        self.teacher, self._unlabelled, self._arrived_data = check_teacher(teacher), unlabelled, arrived
        self.networks = name_sources(source)
        check_pair_form(pairs, (NOT_LATER,))
        if self.map is not None:
            self.networks, source_layers = _only_used(self.networks, source_layers, pairs)
            target_layers = _paired(target_layers, {layer for _, layer in pairs})
        self._layers = source_layers, target_layers, pairs
        super().__init__(target, data, test, **settings)

    def _build(self) -> None:
        settings = self.transfer_settings
        if settings.trace_every is None:
            self.transfer_settings = settings = replace(settings, trace_every=max(1, self.steps // 100))
        images, labels = self._probe_batch()
        target, source_maps, target_maps = self._tap(images)
        source_channels = {layer: maps.shape[1] for layer, maps in source_maps.items()}
        self._make_student(target, source_channels, target_maps)
        fast_layers = self._make_meta_optimizer(images, labels)
        self.extra_images = ExtraImages(
            self.batches,
            settings.views,
            settings.view_augment,
            self._unlabelled,
            settings.unlabelled_per_step,
            tuple(images.shape[1:]),
            self.seed,
        )
        self._teacher = make_teacher(self, self.sources)
        if self._teacher is not None:
            self._teacher.check(images, self.outputs, self._source_passes(images))
        self.lookahead = Lookahead(
            self.student,
            self.optimizer,
            self.loss,
            beta=settings.beta,
            inner_steps=settings.inner_steps,
            stages=settings.stages,
            outer=settings.outer,
            mode=settings.mode,
            first_order=settings.first_order,
            precision=self.precision,
            fast_layers=fast_layers,
            processes=self.processes,
        )
        self.arrived: Arrived | None = None
        if self._arrived_data is not None:
            self.arrived = Arrived(self._arrived_data, self.batches.data, self.pairs, target, images)
            self.notes += self.arrived.notes
            self.tables["arrived"] = []
        self.tables |= {"trace": [], "channels": []}
        self._rows_every |= {"trace": settings.trace_every, "channels": 5 * settings.trace_every}
        self.trace = Trace(self.pairs, source_channels)

    def _tap(self, images: Images) -> tuple[Tapped, Maps, Maps]:
        """Check and tap the layers; return the target, and the features of sources and target for the images."""
        with error_context("target"):
            self._try_model()
        teacher = {"teacher": self.teacher} if isinstance(self.teacher, nn.Module) else {}
        check_apart({source_name(name): network for name, network in self.networks.items()} | teacher, self.model)
        self.sources, target, self.pairs = tap_layers(self.networks, self.model, *self._layers)
        source_maps: Maps = {}
        for name, source in self.sources.items():
            self.notes += freeze_source(source_name(name), source.model, self.device)
            maps = try_layers(source_name(name), source, images, training=False)
            source_maps |= {join_name(name, layer): value for layer, value in maps.items()}
        target_maps = try_layers("target", target, images, training=True)
        check_trainable(self.model, target_maps)
        return target, source_maps, target_maps

    def _make_student(self, target: Tapped, source_channels: Mapping[str, int], target_maps: Maps) -> None:
        """Make the student (the target with its regressors) and the meta-networks, or the weights of a map."""
        target_channels = {layer: maps.shape[1] for layer, maps in target_maps.items()}
        dtype, generator = next(self.model.parameters()).dtype, generator_for(self.seed, _REGRESSORS)
        matching = FeatureMatching(self.pairs, source_channels, target_channels, generator).to(self.device, dtype)
        self.meta = self._make_meta(source_channels).to(self.device, dtype)
        self.student = Student(target, matching)
        self.modules |= {"matching": matching, "meta": self.meta}
        if units := self.transfer_settings.standardize:
            sizes = {layer: tuple(maps.shape[2:]) for layer, maps in target_maps.items()}
            maps = (self.source_features(images) for images in _measured_images(self))
            networks, weights = list(self.networks) if units == "network" else None, self.map and self.map.pairs
            matching.standards = source_standards(maps, self.pairs, sizes, networks, weights)
        self.optimizer = make_optimizer(self.settings, self.student)

    def _make_meta_optimizer(self, images: Images, labels: Labels) -> bool:
        """Make Adam for the meta-networks, if they learn; return whether the lookahead may use fast layers."""
        settings, self.meta_optimizer = self.transfer_settings, None
        learned = list(self.meta.parameters())
        if not learned:
            self.notes += unused_settings(settings)
            return True
        differentiable, kind = type(self.optimizer) is torch.optim.SGD, Words(type(self.optimizer).__name__)
        remedy = 'leave optimizer out, or learn nothing: what=False, where="off"'
        require(differentiable, "optimizer", "torch.optim.SGD, whose steps the lookahead repeats", kind, remedy)
        SGDState.read(self.student, self.optimizer)  # raises for settings that the lookahead does not cover
        self.meta_optimizer = torch.optim.Adam(learned, settings.meta_lr, weight_decay=settings.meta_weight_decay)
        self.optimizers["meta_optimizer"] = self.meta_optimizer
        fast_layers = allows_fast_layers(self.model, images)
        if not fast_layers:
            self.notes.append(
                "target: it takes a gradient itself or recomputes activations, so torch's own layers are used, which "
                "are slower"
            )
        if settings.outer is not None:
            if isinstance(settings.outer, FreshBatch):
                settings.outer.check_classes(class_names(self.batches.data), self.outputs)
            try_outer(settings.outer, self.model, images, labels, self.precision)
        return fast_layers

    def _make_meta(self, source_channels: Mapping[str, int]) -> MetaNetworks | FixedWeights:
        if self.map is not None:
            return FixedWeights(self.map, self.pairs, source_channels)
        chosen = {name: getattr(self.transfer_settings, name) for name in ("what", "where", "where_start")}
        chosen |= {"normalize": self.transfer_settings.normalize_weights, "generator": generator_for(self.seed, _META)}
        return MetaNetworks(self.pairs, source_channels, **chosen)

    def _config(self) -> Row:
        fingerprints = {name: describe_frozen(network) for name, network in self.networks.items()}
        row = {"pairs": self.pairs, "sources": fingerprints, **record(self.transfer_settings)}
        if self.map is not None:
            row["map"] = contents_hash({"pairs": dict(self.map.pairs), "channels": dict(self.map.channels)})
        if self.extra_images.unlabelled is not None:
            row["unlabelled"] = describe_data(self.extra_images.unlabelled.data)
        if self._teacher is not None:
            row["teacher"] = self._teacher.identity
        if self.arrived is not None:
            row["arrived"] = describe_data(self.arrived.data)
        return row

    @property
    def beta(self) -> float:
        """β, the weight of the matching loss."""
        return self.transfer_settings.beta

    def train_on_batch(self, images: Images, labels: Labels) -> dict[str, float]:
        """Do one step of Algorithm 1 and return its metrics: the losses, accuracy and the mean of λ."""
        shares = Shares(self.share, self.share)
        if self.extra_images:
            extra = self.extra_images.draw(self.step, images)
            own = self.processes.part(extra)
            count = len(images) / self.share + len(extra)  # of all processes
            shares = Shares(self.share, (len(images) + len(own)) / count)
            images = torch.cat([images, own])
        passes = self._source_passes(images)
        source_features = _joined(passes)
        weights = self.meta(source_features)  # without autocast: bfloat16 would round λ to two digits
        losses = self.lookahead.losses(images, labels, source_features, weights, shares)
        mean_lambda = torch.stack([weight.detach().mean() for weight in weights.pairs.values()])
        by_pair = _in_words(mean_lambda, self.map is None or self.transfer_settings.normalize_weights)
        metrics = {
            "loss": losses.total.item(),
            "task_loss": losses.task.item(),
            "matching_loss": losses.matching.item(),
            "accuracy": shares.labelled * batch_accuracy(self._logits(losses.output)[: len(labels)], labels),
            "mean_lambda": shares.all * mean_lambda.mean().item(),
        }
        if self._teacher is not None:
            settings = self.transfer_settings
            answers = self._teacher.loss(losses.output, images, passes, self.settings.logits, settings.temperature)
            distillation = settings.teacher_weight * answers.mean() * shares.all
            losses = losses.plus(distillation)
            metrics |= {"loss": losses.total.item(), "distillation_loss": distillation.item()}
        metrics = self.processes.metrics(metrics, 1.0)  # each process has the parts of its images
        self._finite(metrics["loss"], "loss", by_pair)
        self.lookahead.step(losses)
        if self.meta_optimizer is not None:
            metrics["outer_loss"] = self._meta_step(losses)
        self.trace.add(weights, self.processes.sums)
        return metrics

    def _meta_step(self, losses: Losses) -> float:
        """Do a step on the meta-networks and return the outer loss; nan, without a step, between two lookaheads."""
        if self.step % self.transfer_settings.meta_every:
            return math.nan
        self.meta_optimizer.zero_grad()
        (outer_loss,) = self.processes.sums([self.lookahead.backward(losses)])
        value = self._finite(outer_loss, "outer_loss")
        self.processes.sum_gradients(list(self.meta.parameters()))
        if self.transfer_settings.meta_clip is not None:
            nn.utils.clip_grad_norm_(self.meta.parameters(), self.transfer_settings.meta_clip)
        self.meta_optimizer.step()
        return value

    def meta_gradient(self, images: Images, labels: Labels) -> list[Tensor]:
        """The gradient of the outer objective after a lookahead from the current weights, for one batch.

        One tensor per parameter of the meta-networks `meta`. Nothing changes, and no real step comes before the
        lookahead, unlike in training. All of several processes must call it, with the same batch. RuntimeError if
        nothing is learned (`what` and `where` off).
        """
        if self.meta_optimizer is None:
            raise RuntimeError("what and where are off, so there are no meta-networks to differentiate for")
        images = images.to(self.device, next(self.model.parameters()).dtype)
        source_features = self.source_features(images)
        weights, phi = self.meta(source_features), list(self.meta.parameters())
        shares = Shares(1 / self.processes.count, 1 / self.processes.count)  # each has the whole batch
        with shared_batch_norm(self.processes):
            batch = images, labels.to(self.device), source_features
            return self.processes.sums(self.lookahead.meta_gradient(*batch, weights, phi, shares).gradients)

    def source_features(self, images: Images) -> Maps:
        """The features of the sources' layers for a batch on the run's device, in the dtype of the images."""
        return _joined(self._source_passes(images))

    @torch.no_grad()
    def _source_passes(self, images: Images) -> dict[str, tuple[Any, Maps]]:
        """The output and the features of each source by name; the features are in the dtype of the images."""
        passes = {}
        for name, source in self.sources.items():
            source.eval()
            with autocast(self.device, self.precision):
                output, maps = source(images.to(dtype_of(source, images)))
            passes[name] = output, {layer: value.to(images.dtype) for layer, value in maps.items()}
        return passes

    def _after_step(self) -> None:
        last, every = self.step == self.steps, self.transfer_settings.trace_every
        if self.step % every == 0 or last:
            self._add("trace", self.trace.pair_rows(self.step))
        if self.step % (5 * every) == 0 or last:
            self._add("channels", self.trace.channel_rows(self.step))
            if self.arrived is not None:
                r2 = self.arrived.measure(self.source_features, self.precision).items()
                rows = [{"step": self.step, "source": pair[0], "target": pair[1], "r2": value} for pair, value in r2]
                self._add("arrived", rows)

    def _extra_state(self) -> dict[str, Any]:
        return self.trace.state()

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.trace.load_state(state)


def _only_used(networks: dict[str, nn.Module], layers: Any, pairs: Pairs) -> tuple[dict[str, nn.Module], Any]:
    """The sources, and their layers by name, without those that no pair of a map uses. ValueError for "not later"."""
    require(not isinstance(pairs, str), "pairs", "None or a list of pairs beside a map", pairs)
    used, paired = {pair[0].partition("/")[0] for pair in pairs}, {source for source, _ in pairs}
    kept = {name: network for name, network in networks.items() if name in used} or networks  # a single one has no name
    if not isinstance(layers, Mapping):
        return kept, _paired(layers, paired)
    return kept, {
        name: _paired(value, {layer.removeprefix(f"{name}/") for layer in paired})
        for name, value in layers.items()
        if name in kept or name not in networks
    }


def _paired(layers: Any, paired: set[str]) -> Any:
    """The listed layers that a pair has; anything but a list is left for the check of layers."""
    return [layer for layer in layers if layer in paired] or layers if isinstance(layers, (list, tuple)) else layers


def _measured_images(trainer: Trainer) -> Iterator[Images]:
    """Training images on the run's device, batch by batch, until there are `_MEASURED`.

    They are not augmented, unless that changes their size.
    """
    like, count, size = next(trainer.model.parameters()), 0, min(trainer.settings.batch_size, _MEASURED)
    augment = trainer.batches.augment if changes_size(trainer.batches) else None
    batches = batches_of(trainer.batches.data, size, seed=trainer.seed, augment=augment)
    for images, _ in batches.epoch(0):
        yield images.to(trainer.device, like.dtype)
        count += len(images)
        if count >= _MEASURED:
            return


def _in_words(mean_lambda: Float[Tensor, " pairs"], normalized: bool) -> str:
    """A step's mean λ, as text for a divergence error."""
    remedy = "" if normalized else "; with normalize_weights=True, the map's λ have the mean 1"
    return f", mean λ by pair {[round(value, 3) for value in mean_lambda.tolist()]}{remedy}"


def _joined(passes: Mapping[str, tuple[Any, Maps]]) -> Maps:
    """The features of all sources by the layers' names in pairs."""
    return {join_name(name, layer): value for name, (_, maps) in passes.items() for layer, value in maps.items()}


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("transfer.trainer", name)
