"""A teacher: a trained network with the target's classes, whose answers are distilled into the target."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.images import LabelledImages
from mtanytime.devices import Precision, autocast
from mtanytime.features import Tapped, bare
from mtanytime.measure.logits import Pick, describe_output, find_logits
from mtanytime.training.identity import describe_frozen
from mtanytime.training.trainer import Trainer
from mtanytime.transfer.distillation import distillation_loss
from mtanytime.transfer.layers import dtype_of, error_context, freeze_source
from mtanytime.transfer.probe import OUTPUT, LinearProbe, fit_probe

Images = Float[Tensor, "batch channel height width"]
Passes = Mapping[str, tuple[Any, Mapping[str, Tensor]]]
MAX_IMAGES = 5000  # to fit a probe to; more would take minutes


class Teacher:
    """A frozen teacher. A linear probe of a source reuses that source's forward pass instead of running it again.

    Args:
        network: the trained network, moved to the device and put in eval mode; its output holds logits as
            `find_logits` finds them.
        sources: the tapped sources by name.
        device, precision: of the forward pass.

    Attributes:
        network: the trained network.
        notes: what was changed about it.
        is_probe: whether it is a linear probe of a source, by `fit_probe`. Its weights are kept with the run: fitted
            again on another machine, they could differ in their last bits.
        identity: what a run's record says of it: of such a probe, what it was fitted with; else a hash of its weights.
    """

    def __init__(
        self, network: nn.Module, sources: Mapping[str, Tapped], device: torch.device, precision: Precision
    ) -> None:
        self.network, self._device, self._precision = network, device, precision
        self._classes: int | None = None
        self.notes = freeze_source("teacher", network, device)
        self._source: str | None = None  # whose pass a probe reads
        self.is_probe = isinstance(network, LinearProbe) and bool(network.origin)
        same: list[str] = []
        if isinstance(network, LinearProbe):
            same = [name for name, source in sources.items() if network.source.model is source.model]
            fits = [name for name in same if set(network.layers) <= {*sources[name].layers, OUTPUT}]
            self._source = fits[-1] if fits else None
        if self.is_probe:  # the run's record has the sources in use
            of = "" if same else f" of {describe_frozen(network.source.model)}"
            self.identity = f"probe {network.origin}{of}"
        else:
            self.identity = describe_frozen(network)

    def logits(self, images: Images, passes: Passes) -> Float[Tensor, "_ classes"]:
        """The teacher's logits for a batch; `passes` holds each source's output and maps for the same images."""
        return logits_of("teacher", self._output(images, passes), self._classes)

    @torch.no_grad()
    def _output(self, images: Images, passes: Passes) -> Any:
        if self._source is not None:
            return self.network.logits(*passes[self._source])
        self.network.eval()
        with autocast(self._device, self._precision):
            return self.network(images.to(dtype_of(self.network, images)))

    def loss(
        self, output: Any, images: Images, passes: Passes, pick: Pick | None = None, temperature: float = 2.0
    ) -> Float[Tensor, " batch"]:
        """The distillation loss of each image, for a target's `output`; `pick` finds its logits (see `find_logits`)."""
        logits = self.logits(images, passes)
        return distillation_loss(find_logits(output, logits.shape[1], pick), logits, temperature)

    def check(self, images: Images, classes: int | None, passes: Passes) -> None:
        """Raise ValueError unless the teacher answers with finite logits, as many as the target has classes."""
        self._classes = classes
        with error_context("teacher"):
            output = self._output(images, passes)
        logits = logits_of("teacher", output, classes)
        same = tuple(logits.shape) == (len(images), classes)
        require(same, "teacher", f"logits of the target's {classes} classes", Words(str(tuple(logits.shape))))
        check_no_probabilities("teacher", logits)


def make_teacher(trainer: Trainer, sources: Mapping[str, Tapped]) -> Teacher | None:
    """The teacher of a run, from the trainer's `teacher`, where a fitted probe replaces the word "probe".

    The weights of a source's probe are kept with the run; a probe that was given is copied first. What the user should
    know is added to the trainer's notes. Raises ValueError as `fit_teacher`.
    """
    if trainer.teacher is None:
        return None
    note, fitted = None, trainer.teacher == "probe"
    if fitted:
        trainer.teacher, note = fit_teacher(sources, trainer.batches.data, trainer.outputs, trainer.seed)
    teacher = Teacher(trainer.teacher, sources, trainer.device, trainer.precision)
    if teacher.is_probe:
        teacher.network = trainer.teacher = trainer.teacher if fitted else trainer.teacher.with_own_classifier()
        trainer.modules["teacher"] = trainer.teacher.linear
    if fitted:
        teacher.identity = "probe"
    trainer.notes += teacher.notes if note is None else [note]
    return teacher


def check_teacher(teacher: nn.Module | str | None) -> nn.Module | str | None:
    """The teacher without wrappers (see `features.bare`). ValueError unless it is a network, "probe" or None."""
    if isinstance(teacher, nn.Module):
        return bare(teacher, "teacher")
    require(teacher is None or teacher == "probe", "teacher", 'a network, "probe" or None', teacher)
    return teacher


def logits_of(name: str, output: Any, classes: int | None = None) -> Float[Tensor, "batch classes"]:
    """The logits in a frozen network's output (see `find_logits`); ValueError, which names the network, otherwise."""
    try:
        return find_logits(output, classes)
    except ValueError as error:
        remedy = "wrap it in a module that returns its logits alone"
        raise mismatch(name, "a network whose output is logits", Words(describe_output(output)), remedy) from error


def check_no_probabilities(name: str, logits: Float[Tensor, "batch classes"]) -> None:
    """Raise ValueError for logits that are not finite or are probabilities, which softmax would make nearly uniform."""
    require(bool(logits.isfinite().all()), name, "finite logits", Words("some that are not"))
    ones = torch.ones(len(logits), device=logits.device)
    sums = torch.isclose(logits.float().sum(dim=1), ones, atol=1e-2).all() and logits.shape[1] > 1
    remedy = "leave out its softmax"
    require(not (sums and (logits >= 0).all()), name, "logits", Words("probabilities, which sum to 1"), remedy)


def fit_teacher(
    sources: Mapping[str, Tapped], data: LabelledImages | DataLoader, outputs: int | None, seed: int
) -> tuple[LinearProbe, str]:
    """The linear probe of the source with the lowest log loss in cross-validation, and a note about it.

    `outputs` is the number of the target's outputs. Raises ValueError, with the remedy, if it is not the number of the
    data's classes, or if no probe can be fitted to the labelled images.
    """
    if isinstance(data, LabelledImages):
        _check_classes(len(data.classes), outputs)
    probes, options = {}, {"folds": None, "seed": seed, "scoring": "log_loss", "max_images": MAX_IMAGES}
    for name, source in sources.items():
        try:
            probes[name] = fit_probe(source.model, data, layers=[*source.layers, OUTPUT], **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # networks raise many kinds for images that they do not take
            raise ValueError(f"teacher: no probe of the source can be fitted: {error}; or pass teacher=None") from error
    name = min(probes, key=lambda name: probes[name].table["log_loss"].min())
    first = "shuffle the DataLoader, of whose first images the classes are taken, "
    _check_classes(probes[name].linear.out_features, outputs, first if isinstance(data, DataLoader) else "")
    best = probes[name].table.sort_values("log_loss").iloc[0]
    of = f" of {name!r}" if name else ""
    note = f"teacher: the linear probe{of} of {best['layers']}, accuracy {best['accuracy']:.1%} in cross-validation"
    return probes[name], note


def _check_classes(count: int, outputs: int | None, first: str = "") -> None:
    expected, remedy = f"{count} outputs, one per class of the labelled images", f"{first}or pass teacher=None"
    require(outputs == count, "target", expected, outputs, remedy)
