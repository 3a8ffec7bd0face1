"""From a module to graphs: an ONNX model and a program of torch.export, for batches of any size."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, one_line

HOW_TO_INSTALL = "pip install 'mtanytime[export]'"
IMAGES, LOGITS = "images", "logits"  # the names of every graph's first input and first output
FOLD_UP_TO = 1 << 20  # numbers of a constant that is computed when the graph is written, not when it runs


@dataclass(frozen=True)
class Graph:
    """A traced module: `onnx` is an `onnx.ModelProto`, `program` a `torch.export.ExportedProgram`.

    The first input is "images", the first output "logits"; the others are what graphs of a chain hand on.
    """

    onnx: Any
    program: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@torch.no_grad()
def trace(
    module: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    state: Sequence[Tensor] = (),
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Graph:
    """Trace `module(images)`, or `module(images, state)`, in eval mode, with a batch of any size.

    Args:
        module: it returns logits, or logits followed by what it hands on.
        images: an example of two or more images.
        state: further inputs, an example of each, with the images along the first dimension.
        inputs, outputs: the names of the further inputs and outputs.

    Raises:
        ImportError: the packages for ONNX are not installed.
        ValueError: a module that torch.export cannot trace, or only for one size of batch.
    """
    onnx_ir = installed("onnx", "onnxscript")[1].ir
    arguments = (images, tuple(state)) if state else (images,)
    size = {0: torch.export.Dim("batch", min=1)}
    sizes = (size, tuple(size for _ in state)) if state else (size,)
    names = (IMAGES, *inputs), (LOGITS, *outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about their own insides
        try:
            program = torch.export.export(module.eval(), arguments, dynamic_shapes=sizes)
            made = torch.onnx.export(
                program, input_names=names[0], output_names=names[1], dynamo=True, optimize=True, verbose=False
            )
        except Exception as error:  # the exporters raise errors of many kinds
            cause = Words(f"{type(module).__name__} ({type(error).__name__}: {one_line(str(error), 300)})")
            raise mismatch("network", "one that torch.export traces for a batch of any size", cause) from error
    _fold_constants(made.model)
    return Graph(onnx_ir.to_proto(made.model), program, *names)


def _fold_constants(model: Any) -> None:
    """Compute what depends on constants only, such as a slice of a weight: the file then holds the slice alone."""
    optimizer = installed("onnxscript.optimizer")[0].optimizer
    optimizer.fold_constants(model, input_size_limit=FOLD_UP_TO, output_size_limit=FOLD_UP_TO)
    optimizer.remove_unused_nodes(model)


def installed(*names: str) -> list[ModuleType]:
    """Import packages that are optional. ImportError that says how to install them."""
    try:
        return [__import__(name) for name in names]
    except ImportError as error:
        raise ImportError(f"{error.name}: expected to be installed for ONNX; {HOW_TO_INSTALL}") from error
