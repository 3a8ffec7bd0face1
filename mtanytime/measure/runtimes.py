"""Ways to run a network: eager torch in two memory layouts, compiled, or ONNX Runtime; and fair timing of them."""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from tqdm import tqdm

from mtanytime.checks import require
from mtanytime.devices import best_device, synchronize
from mtanytime.graphs import installed, trace

RUNTIMES = ("eager", "channels-last", "compile", "onnxruntime")
Call = Callable[[], Any]


def prepare(network: nn.Module, images: Float[Tensor, "batch channel height width"], runtime: str) -> Call:
    """Return a function that runs a network in eval mode on these images at every call.

    Args:
        network: it is not changed.
        images: the batch, already on the network's device.
        runtime: "eager"; "channels-last", eager on images and weights in that memory layout; "compile", by
            torch.compile, whose first call compiles; or "onnxruntime", on the CPU and on as many threads as torch uses.

    Raises:
        ValueError: an unknown runtime.
        ImportError: ONNX Runtime or what exports to it is not installed.
    """
    require(runtime in RUNTIMES, "runtime", f"one of {list(RUNTIMES)}", runtime)
    network = deepcopy(network).eval()
    if runtime == "onnxruntime":
        return _onnx_call(network, images)
    if runtime == "channels-last":
        network, images = (part.to(memory_format=torch.channels_last) for part in (network, images))
    run = torch.compile(network) if runtime == "compile" else network
    return torch.no_grad()(lambda: run(images))


def write_onnx(network: nn.Module, file: Path, image_shape: Sequence[int] = (3, 32, 32)) -> None:
    """Write a network in eval mode as an ONNX file, with input "images" and output "logits", for any batch size.

    To write an exit of an anytime network: `write_onnx(fold_batch_norms(network.extract(k)), file)`. Raises ImportError
    if the packages for it are not installed.
    """
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    file.write_bytes(trace(deepcopy(network).eval().cpu(), images).onnx.SerializeToString())


def time_in_turn(
    calls: Sequence[Call],
    repeats: int = 20,
    warmup: int = 3,
    progress: bool | str = False,
    device: torch.device | None = None,
) -> Float64[np.ndarray, "calls repeats"]:
    """Milliseconds of calls, in rounds that make each call once: a slow moment of the machine affects all equally.

    The device, by default the accelerator if there is one, is waited for. `progress` shows a bar on stderr, or, as a
    text, one with this label on stdout. Raises ValueError if `repeats` is below 1 or `warmup` below 0.
    """
    require(repeats >= 1, "repeats", "a number >= 1", repeats)
    require(warmup >= 0, "warmup", "a number >= 0", warmup)
    device = best_device() if device is None else device
    times = np.empty((len(calls), warmup + repeats))
    label, file = (progress, sys.stdout) if isinstance(progress, str) else ("timing", sys.stderr)
    for i in tqdm(range(warmup + repeats), label, unit="round", file=file, disable=not progress):
        for j, call in enumerate(calls):
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            times[j, i] = 1000 * (time.perf_counter() - started)
    return times[:, warmup:]


def _onnx_call(network: nn.Module, images: Tensor) -> Call:
    runtime = installed("onnxruntime")[0]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(network, file, images.shape[1:])
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.cpu().numpy()}
    return lambda: session.run(None, inputs)
