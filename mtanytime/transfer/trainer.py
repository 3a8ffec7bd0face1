"""Learn what and where to transfer: the trainer of L2T-ww (arXiv:1905.05901, Algorithm 1)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ClassVar, Unpack, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime._moved import find
from mtanytime.checks import require_wanted
from mtanytime.data.images import ImageSet, Task
from mtanytime.devices import autocast
from mtanytime.features import Tapped, tap
from mtanytime.functional import functional_call, trial_run
from mtanytime.measure.evaluation import batch_accuracy
from mtanytime.randomness import derive_seed
from mtanytime.training.identity import fingerprint, name_of
from mtanytime.training.run_folder import Row
from mtanytime.training.trainer import Trainer, TrainerOptions, TrainingResult
from mtanytime.transfer.bilevel import Mode, Tensors
from mtanytime.transfer.double_backward import check_double_backward
from mtanytime.transfer.layers import Layers, check_pairs, choose_target_layers, join_name, own_layers, source_name
from mtanytime.transfer.lookahead import Lookahead, OuterObjective, Student
from mtanytime.transfer.matching import FeatureMatching
from mtanytime.transfer.meta_networks import MetaNetworks, Pair, PairWeights, Where, WhereStart
from mtanytime.transfer.outer import FreshBatch
from mtanytime.transfer.second_order import second_order

_REGRESSORS, _META = -3, -4  # what a derived seed is for


class TransferResult(TrainingResult):
    """How a transfer ended; see `TrainingResult`."""

    @property
    def trace(self) -> pd.DataFrame:
        """λ over time: step, source, target, weight (mean λ over the images since the last row), weight_std."""
        return self.tables["trace"]

    @property
    def channels(self) -> pd.DataFrame:
        """w over time: step, source, target, channel, weight (mean w over the images since the last)."""
        return self.tables["channels"]


class TransferTrainer(Trainer):
    """Train a target network on a task while learning what and where to transfer from trained source networks.

    One batch is one step (Algorithm 1, three stages): a real SGD step on the task's loss plus β times the weighted
    matching loss; from there, as a lookahead, `inner_steps` steps on the matching loss alone and one on the task's
    loss; the outer objective at the place reached is differentiated, exactly, with respect to the meta-networks, which
    take an Adam step; target, momentum, batch-norm buffers and random state go back to after the real step.

    Deviations from the authors' code, in `metanets`, `matching` and `bilevel`: with *what* off we average over
    channels, the lookahead leaves no trace in batch-norm statistics, and the source runs once a batch.

    Args:
        source: the trained network, or several by name; their layers are then called "name/layer". It is moved to the
            device and put in eval mode, which `notes` tells, and never trained.
        target: the network to train, or a function that makes it (see `Trainer`).
        data, test: the target task (see `Trainer`).
        source_layers, target_layers: module paths whose maps are matched, all-to-all; default: the networks' own
            `feature_layers`, which the library's backbones have.
        pairs: the (source layer, target layer) pairs to match, in place of all of them.
        what, where: learn channel weights; learn pair weights ("relu6", "relu", "constant" or "off"). With both off
            the matching is the fixed one, λ = 1 and w = 1/C, and nothing is looked ahead.
        where_start: "random" (the authors' code) or, for relu6 and relu, "even", λ = 1 for all pairs (see
            `MetaNetworks`).
        beta: β, the strength of the matching loss.
        inner_steps: T ≥ 1, the matching steps of the lookahead.
        stages: 3, or 2 for T steps on the task's loss plus the matching loss in place of matching steps and task step
            (described in the paper; the details are our reconstruction).
        meta_lr, meta_weight_decay: of Adam on the meta-networks.
        outer: the outer objective, `outer(forward, images, labels)` -> scalar, where `forward` is the target after the
            lookahead, in train mode; default: the task's loss on the same batch; `FreshBatch` draws one anew.
            It is tried once before training.
        mode, first_order: how the meta-gradient is worked out (see `bilevel.meta_gradient`).
        trace_every: steps between rows of the trace, default a hundredth of the run; channel weights are kept at
            every fifth of them.
        options: the keyword arguments of `Trainer`. Defaults there are the paper's for 32×32 images.

    Raises:
        ValueError: as `Trainer`; also for unknown or unfit layers, pairs outside them, a source that no pair uses, a
            matched target layer that gets no gradient, or an outer objective that does not work.
        RuntimeError: a target layer whose backward cannot be differentiated again, by name.
    """

    result_type: ClassVar[type[TrainingResult]] = TransferResult

    def __init__(
        self,
        source: nn.Module | Mapping[str, nn.Module],
        target: nn.Module | Callable[[], nn.Module],
        data: Task | ImageSet | DataLoader,
        test: ImageSet | DataLoader | None = None,
        *,
        source_layers: Layers | Mapping[str, Layers] | None = None,
        target_layers: Layers | None = None,
        pairs: Sequence[Pair] | None = None,
        what: bool = True,
        where: Where = "relu6",
        where_start: WhereStart = "random",
        beta: float = 0.5,
        inner_steps: int = 2,
        stages: int = 3,
        meta_lr: float = 1e-4,
        meta_weight_decay: float = 1e-4,
        outer: OuterObjective | None = None,
        mode: Mode = "keep",
        first_order: bool = False,
        trace_every: int | None = None,
        **options: Unpack[TrainerOptions],
    ) -> None:
        whole = isinstance(inner_steps, Integral) and inner_steps >= 1
        require_wanted(
            whole, "inner_steps (T) a whole number >= 1: with T = 0 the meta-networks get no gradient", inner_steps
        )
        require_wanted(stages in (2, 3), "stages 2 or 3", stages)
        require_wanted(0 < beta < math.inf, "beta > 0", beta)
        require_wanted(0 < meta_lr < math.inf, "meta_lr > 0", meta_lr)
        require_wanted(0 <= meta_weight_decay < math.inf, "meta_weight_decay >= 0", meta_weight_decay)
        require_wanted(mode in get_args(Mode), f"mode one of {get_args(Mode)}", mode)
        require_wanted(mode != "unroll" or not first_order, "mode 'keep' or 'recompute' with first_order", mode)
        whole = trace_every is None or (isinstance(trace_every, Integral) and trace_every >= 1)
        require_wanted(whole, "trace_every a whole number >= 1", trace_every)
        self.networks = dict(source) if isinstance(source, Mapping) else {"": source}
        networks = self.networks and all(isinstance(network, nn.Module) for network in self.networks.values())
        require_wanted(bool(networks), "source as a network, or as one or more networks by name", source)
        names = list(source) if isinstance(source, Mapping) else []
        require_wanted(all(name and "/" not in name for name in names), "sources with names, without a '/'", names)
        listed = pairs is None or (len(pairs) > 0 and all(len(pair) == 2 for pair in pairs))
        require_wanted(listed, "one or more pairs (source layer, target layer)", pairs)
        self._layers = (source_layers, target_layers, pairs)
        self.what, self.where, self.where_start = what, where, where_start
        self.beta, self.inner_steps, self.stages = beta, inner_steps, stages
        self.meta_lr, self.meta_weight_decay = meta_lr, meta_weight_decay
        self.outer, self.mode, self.first_order, self.trace_every = outer, mode, first_order, trace_every
        super().__init__(target, data, test, **options)

    def _build(self) -> None:
        images, labels = self._probe_batch()
        with _about("target"):
            self._try_model()
        for name, network in self.networks.items():
            if {*network.modules(), *network.parameters()} & {*self.model.modules(), *self.model.parameters()}:
                raise ValueError(f"{source_name(name)} and the target share layers or parameters; wanted two networks")
        source_layers, target_layers, pairs = self._layers
        by_source = self._source_layers(source_layers, pairs)
        self.sources = {}
        for name, layers in by_source.items():
            with _about(source_name(name)):
                self.sources[name] = tap(self.networks[name], layers)
        target_layers = choose_target_layers(self.model, target_layers, pairs)
        with _about("target"):
            target = tap(self.model, target_layers)
        names = [join_name(name, layer) for name, tapped in self.sources.items() for layer in tapped.layers]
        self.pairs = check_pairs(pairs, names, target.layers)

        source_channels = {}
        for name, tapped in self.sources.items():
            self._put_right(source_name(name), tapped.model)
            found = self._try_tapped(source_name(name), tapped, images, training=False)
            source_channels |= {join_name(name, layer): value.shape[1] for layer, value in found.items()}
        features = self._try_tapped("target", target, images, training=True)
        self._check_reached(features)
        target_channels = {layer: value.shape[1] for layer, value in features.items()}
        dtype = next(self.model.parameters()).dtype
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _REGRESSORS))
        matching = FeatureMatching(self.pairs, source_channels, target_channels, generator)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _META))
        switches = {"what": self.what, "where": self.where, "where_start": self.where_start}
        self.meta = MetaNetworks(self.pairs, source_channels, generator=generator, **switches)
        self.meta.to(self.device, dtype)
        self.student = Student(target, matching.to(self.device, dtype))
        self.modules |= {"matching": matching, "meta": self.meta}
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, **self.settings.sgd)
        self.meta_optimizer, fast_layers = None, True
        if learned := list(self.meta.parameters()):
            self.meta_optimizer = torch.optim.Adam(learned, self.meta_lr, weight_decay=self.meta_weight_decay)
            self.optimizers["meta_optimizer"] = self.meta_optimizer
            try:
                with second_order():
                    check_double_backward(self.model, images)
            except RuntimeError:
                check_double_backward(self.model, images)  # names what torch's own layers do not allow, either
                fast_layers = False
                self.notes.append(
                    "target: it takes a gradient itself, or runs a part again, so torch's own layers are used, "
                    "which are slower"
                )
            self._try_outer(images, labels)

        self.lookahead = Lookahead(
            self.student,
            self.optimizer,
            self.loss,
            beta=self.beta,
            inner_steps=self.inner_steps,
            stages=self.stages,
            outer=self.outer,
            mode=self.mode,
            first_order=self.first_order,
            precision=self.precision,
            fast_layers=fast_layers,
        )
        self.trace_every = self.trace_every or max(1, self.steps // 100)
        self.tables |= {"trace": [], "channels": []}
        self._since = {"trace": _Mean(), "channels": _Mean()}

    def _config(self) -> Row:
        return {
            "pairs": self.pairs,
            "sources": {name: fingerprint(network.state_dict()) for name, network in self.networks.items()},
            "what": self.what,
            "where": self.where,
            "where_start": self.where_start,
            "beta": self.beta,
            "inner_steps": self.inner_steps,
            "stages": self.stages,
            "meta_lr": self.meta_lr,
            "meta_weight_decay": self.meta_weight_decay,
            "outer": name_of(self.outer),
            "first_order": self.first_order,
            "trace_every": self.trace_every,
        }

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Train on one batch: the real step on θ, then the lookahead and the step on φ."""
        source_features = self.source_features(images)
        weights = self.meta(source_features)  # without autocast: bfloat16 would round λ to two digits
        losses = self.lookahead.losses(images, labels, source_features, weights)
        mean_lambda = torch.stack([weight.detach().mean() for weight in weights.pairs.values()])
        metrics = {
            "loss": self._finite(
                losses.total, "loss", f", mean λ by pair {[round(v, 3) for v in mean_lambda.tolist()]}"
            ),
            "task_loss": losses.task.item(),
            "matching_loss": losses.matching.item(),
            "accuracy": batch_accuracy(losses.output, labels),
            "mean_lambda": mean_lambda.mean().item(),
        }
        self.lookahead.step(losses)
        if self.meta_optimizer is not None:
            self.meta_optimizer.zero_grad()
            metrics["outer_loss"] = self._finite(self.lookahead.backward(losses), "outer_loss")
            self.meta_optimizer.step()
        self._note(weights)
        return metrics

    def meta_gradient(
        self, images: Float[Tensor, "batch channel height width"], labels: Int[Tensor, " batch"]
    ) -> list[Tensor]:
        """The gradient of the outer objective after a lookahead from the current weights, for one batch.

        One tensor per parameter of the meta-networks `meta`. Nothing changes, and no real step comes before the
        lookahead, unlike in training. RuntimeError where nothing is learned (`what` and `where` off).
        """
        if self.meta_optimizer is None:
            raise RuntimeError("what and where are off, so there are no meta-networks to differentiate for")
        images = images.to(self.device, next(self.model.parameters()).dtype)
        source_features = self.source_features(images)
        weights, phi = self.meta(source_features), list(self.meta.parameters())
        return self.lookahead.meta_gradient(images, labels.to(self.device), source_features, weights, phi).gradients

    @torch.no_grad()
    def source_features(self, images: Tensor) -> dict[str, Float[Tensor, "batch _ _ _"]]:
        """The maps of all sources' layers for a batch, by layer, in the dtype of the images."""
        features = {}
        for name, source in self.sources.items():
            source.eval()
            with autocast(self.device, self.precision):
                _, found = source(images.to(_dtype(source, images)))
            features |= {join_name(name, layer): value.to(images.dtype) for layer, value in found.items()}
        return features

    def _note(self, weights: PairWeights) -> None:
        """Add a batch's weights to the means that the next rows of the tables hold."""
        with torch.no_grad():
            self._since["trace"].add(torch.cat([weights.pairs[pair] for pair in self.pairs], dim=1))
            self._since["channels"].add(torch.cat([weights.channels[pair] for pair in self.pairs], dim=1))

    def _after_step(self) -> None:
        last = self.step == self.steps
        if self.step % self.trace_every == 0 or last:
            mean, std = self._since["trace"].take()
            self._add(
                "trace",
                [
                    {"step": self.step, "source": source, "target": target, "weight": m, "weight_std": s}
                    for (source, target), m, s in zip(self.pairs, mean, std, strict=True)
                ],
            )
        if self.step % (5 * self.trace_every) == 0 or last:
            mean, _ = self._since["channels"].take()
            places = [(pair, c) for pair in self.pairs for c in range(self.student.matching.source_channels[pair[0]])]
            self._add(
                "channels",
                [
                    {"step": self.step, "source": pair[0], "target": pair[1], "channel": c, "weight": m}
                    for (pair, c), m in zip(places, mean, strict=True)
                ],
            )

    def _extra_state(self) -> dict[str, Any]:
        return {name: vars(mean) for name, mean in self._since.items()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self._since = {name: _Mean(**values) for name, values in state.items()}

    # Putting right and refusing.

    def _put_right(self, what: str, network: nn.Module) -> None:
        """A source as it must be: on the run's device, in eval mode, not trained; says what it changed."""
        devices = {str(p.device) for p in network.parameters()}
        with _about(what):
            network.to(self.device)
        if devices != {str(p.device) for p in network.parameters()}:
            self.notes.append(f"{what}: moved from {', '.join(sorted(devices))} to {self.device}")
        if any(module.training for module in network.modules()):
            self.notes.append(f"{what}: was in train mode, switched to eval mode")
        network.eval()
        if any(p.requires_grad for p in network.parameters()):
            self.notes.append(f"{what}: its parameters require grad; it runs without gradients and is not trained")

    def _source_layers(
        self, layers: Layers | Mapping[str, Layers] | None, pairs: Sequence[Pair] | None
    ) -> dict[str, Layers]:
        """The layers to tap of each source: those given, else those that the pairs name, else its own."""
        if layers is not None:
            given = layers if isinstance(layers, Mapping) else {"": layers}
            names = list(self.networks)
            wanted = "source_layers as a list" if "" in names else f"source_layers as a dict with the layers of {names}"
            require_wanted(set(given) == set(names), wanted, layers)
            return {name: given[name] for name in names}
        if pairs is None:
            return {name: own_layers(source_name(name), network) for name, network in self.networks.items()}
        found: dict[str, list[str]] = {name: [] for name in self.networks}
        for joined in dict.fromkeys(source for source, _ in pairs):
            name, layer = ("", joined) if "" in found else joined.split("/", 1) if "/" in joined else (joined, "")
            require_wanted(name in found, f"a source layer as 'name/layer' with a name of {list(found)}", joined)
            found[name].append(layer)
        if unused := [name for name, tapped in found.items() if not tapped]:
            raise ValueError(f"source {unused[0]!r} is in no pair; wanted a pair for each of {list(found)}")
        return found

    def _try_tapped(self, what: str, tapped: Tapped, images: Tensor, training: bool) -> Tensors:
        """The maps of a network's layers for a few images, leaving it unchanged; ValueError that says which network."""
        with (
            torch.set_grad_enabled(training),
            trial_run(tapped, self.device, training) as buffers,
            _about(f"{what}, given images of shape {tuple(images.shape[1:])}"),
        ):
            return functional_call(tapped, buffers, images.to(_dtype(tapped, images)))[1]

    def _check_reached(self, features: Tensors) -> None:
        """Refuse a matched target layer that no trained parameter reaches."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for layer, value in features.items():
            found = [None]
            if value.requires_grad:
                found = torch.autograd.grad(value.sum(), trained, retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in found):
                raise ValueError(
                    f"target layer {layer!r} gets no gradient: no trained parameter comes before it in the forward "
                    f"pass (frozen, or run under no_grad?); wanted a layer that the matching loss can train"
                )

    def _try_outer(self, images: Tensor, labels: Tensor) -> None:
        """Call an outer objective of the user's on a few images, leaving the target unchanged."""
        if self.outer is None:
            return
        if isinstance(self.outer, FreshBatch):
            self._check_labels("outer", self.outer.labels)
        with trial_run(self.model, self.device, training=True) as buffers, _about(f"outer {name_of(self.outer)}"):
            with autocast(self.device, self.precision):
                value = self.outer(lambda x: functional_call(self.model, buffers, x), images, labels)
            fit = isinstance(value, Tensor) and value.shape == () and value.requires_grad
            require_wanted(fit, "a scalar tensor that depends on the target", value)


class _Mean:
    """Running mean and spread of rows (batch, values), in float64 on the CPU."""

    def __init__(self, count: int = 0, total: Tensor | None = None, squares: Tensor | None = None) -> None:
        self.count, self.total, self.squares = count, total, squares

    def add(self, values: Float[Tensor, "batch values"]) -> None:
        values = values.cpu().double()
        total, squares = values.sum(dim=0), values.square().sum(dim=0)
        self.count += len(values)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def take(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of what came since the last call."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        self.count, self.total, self.squares = 0, None, None
        return mean.tolist(), std.tolist()


def _dtype(network: nn.Module, images: Tensor) -> torch.dtype:
    """What a network computes in; that of the images where it has no parameters."""
    return next(network.parameters(), images).dtype


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Turn errors into a ValueError that says what they are about."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("transfer.trainer", name)
