"""A teacher: a trained network with the target's classes, whose answers are distilled into the target."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, require
from mtanytime.data.images import LabelledImages
from mtanytime.devices import Precision, autocast
from mtanytime.features import Tapped
from mtanytime.measure.logits import Pick, find_logits
from mtanytime.transfer.distillation import distillation_loss
from mtanytime.transfer.layers import dtype_of, error_context, freeze_source
from mtanytime.transfer.probe import OUTPUT, LinearProbe, fit_probe, folds_of

Images = Float[Tensor, "batch channel height width"]
Passes = Mapping[str, tuple[Any, Mapping[str, Tensor]]]
MAX_IMAGES = 5000  # to fit a probe to; more would take minutes


class Teacher:
    """A frozen teacher. A linear probe of a source reuses that source's forward pass instead of running it again.

    Args:
        network: the trained network, moved to the device and put in eval mode.
        sources: the tapped sources by name.
        device, precision: of the forward pass.

    Attributes:
        network: the trained network.
        notes: what was changed about it.
    """

    def __init__(
        self, network: nn.Module, sources: Mapping[str, Tapped], device: torch.device, precision: Precision
    ) -> None:
        require(isinstance(network, nn.Module), "teacher", 'a network, "probe" or None', network)
        self.network, self._device, self._precision = network, device, precision
        self.notes = freeze_source("teacher", network, device)
        self._source: str | None = None  # whose pass a probe reads
        if isinstance(network, LinearProbe):
            for name, source in sources.items():
                if network.source.model is source.model and set(network.layers) <= {*source.layers, OUTPUT}:
                    self._source = name

    @torch.no_grad()
    def logits(self, images: Images, passes: Passes) -> Any:
        """The teacher's output for a batch; `passes` holds each source's output and maps for the same images."""
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
        """Raise ValueError unless the teacher answers with as many logits as the target has classes."""
        with error_context("teacher"):
            logits = self.logits(images, passes)
        same = isinstance(logits, Tensor) and tuple(logits.shape) == (len(images), classes)
        got = Words(str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__)
        require(same, "teacher", f"logits of the target's {classes} classes", got)


def fit_teacher(sources: Mapping[str, Tapped], data: LabelledImages | DataLoader, seed: int) -> tuple[LinearProbe, str]:
    """The linear probe of the source with the lowest log loss in cross-validation, and a note about it.

    Raises ValueError, with the remedy, if no probe can be fitted to the labelled images.
    """
    probes, options = {}, {"folds": folds_of(data), "seed": seed, "scoring": "log_loss", "max_images": MAX_IMAGES}
    for name, source in sources.items():
        try:
            probes[name] = fit_probe(source.model, data, layers=[*source.layers, OUTPUT], **options)
        except ValueError as error:
            raise ValueError(f"teacher: no probe of the source can be fitted: {error}; or pass teacher=None") from error
    name = min(probes, key=lambda name: probes[name].table["log_loss"].min())
    best = probes[name].table.sort_values("log_loss").iloc[0]
    of = f" of {name!r}" if name else ""
    note = f"teacher: the linear probe{of} of {best['layers']}, accuracy {best['accuracy']:.1%} in cross-validation"
    return probes[name], note
