"""A teacher: a trained network with the target's classes, whose answers are distilled into the target."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, require
from mtanytime.devices import Precision, autocast
from mtanytime.features import Tapped
from mtanytime.transfer.layers import dtype_of, error_context, freeze_source
from mtanytime.transfer.probe import OUTPUT, LinearProbe

Images = Float[Tensor, "batch channel height width"]
Passes = Mapping[str, tuple[Any, Mapping[str, Tensor]]]


class Teacher:
    """A frozen teacher. One that is a linear probe of a source reads that source's pass in place of another one.

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

    def check(self, images: Images, classes: int | None, passes: Passes) -> None:
        """Raise ValueError unless the teacher answers with as many logits as the target has classes."""
        with error_context("teacher"):
            logits = self.logits(images, passes)
        same = isinstance(logits, Tensor) and tuple(logits.shape) == (len(images), classes)
        got = Words(str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__)
        require(same, "teacher", f"logits of the target's {classes} classes", got)
