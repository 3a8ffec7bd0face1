"""The authors' own code of both papers, run from a clone of their repository, to time it beside ours.

Their code is not part of this package: `bench … --authors FOLDER` imports it from a clone and runs it, so pass a folder
that you trust. Paper 1: github.com/alinlab/L2T-ww (MIT licence). With current PyTorch it works only if gradients are
reset to zero rather than None; this module patches that and changes nothing else. Paper 2: github.com/hankook/IResNeXt,
without its logger, which needs TensorBoard.
"""

import ast
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtanytime.checks import require


def authors_iteration(folder: Path, batch: int, inner_steps: int, device: torch.device) -> Callable[[], None]:
    """Build the iteration of `benchmarks.transfer_iteration` in the L2T-ww authors' code.

    It makes the calls of their training loop: a step on both losses, the matching steps, the task step, and the
    meta-gradient by their optimizer. ValueError if the folder is not a clone of their repository.
    """
    script = folder / "train_l2t_ww.py"
    require(script.exists(), "authors", "a clone of alinlab/L2T-ww with train_l2t_ww.py", str(folder))
    resnets, vggs, optimizers = (
        _module(folder, n) for n in ("models.resnet_cifar", "models.vgg_cifar", "train.meta_optimizers")
    )
    definitions = _definitions(script)
    torch.manual_seed(0)
    source = (
        resnets.CResNet(4, lambda channels: resnets.BasicBlock(channels, channels), num_classes=200).to(device).eval()
    )
    target = vggs.vgg9_bn(num_classes=10).to(device).train()
    pairs = [(m, n) for m in (4, 9, 14) for n in range(5)]  # block numbers: the last of each stage
    what = definitions["WeightNetwork"]("resnet32", pairs).to(device)
    where = definitions["LossWeightNetwork"]("resnet32", pairs, "relu6", 1.0).to(device)
    regressors = definitions["FeatureMatching"]("resnet32", "vgg9_bn", pairs).to(device)
    meta = torch.optim.Adam([*what.parameters(), *where.parameters()], lr=1e-4, weight_decay=1e-4)
    optimizer = optimizers.MetaSGD(
        [*target.parameters(), *regressors.parameters()],
        [target, regressors],
        lr=1e-3,
        momentum=0.9,
        weight_decay=1e-4,
        rollback=True,
        cpu=False,
    )
    for parameter in optimizer.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def zero(self: torch.optim.SGD, set_to_none: bool = False) -> None:
        torch.optim.SGD.zero_grad(self, set_to_none=False)

    optimizers.MetaSGD.zero_grad = zero
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = images.to(device), torch.arange(batch, device=device) % 10

    def inner(data: tuple[Tensor, Tensor], matching_only: bool = False) -> Tensor:
        output, features = target.forward_with_features(data[0])
        with torch.no_grad():
            _, source_features = source.forward_with_features(data[0])
        weights, strengths = what(source_features), where(source_features)
        matching = regressors(source_features, features, weights, [0.5] * len(pairs), strengths)
        return matching if matching_only else F.cross_entropy(output, data[1]) + matching

    def outer(data: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(target(data[0])[0], data[1])

    def iteration() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their code makes calls that PyTorch has since deprecated
            optimizer.zero_grad()
            inner(data).backward()
            optimizer.step(None)
            for _ in range(inner_steps):
                optimizer.zero_grad()
                optimizer.step(inner, data, True)
            optimizer.zero_grad()
            optimizer.step(outer, data)
            optimizer.zero_grad()
            meta.zero_grad()
            outer(data).backward()
            optimizer.meta_backward()
            meta.step()

    return iteration


def authors_joint_step(
    folder: Path,
    sizes: Sequence[int],
    images: Float[Tensor, "batch 3 height width"],
    labels: Int[Tensor, " batch"],
) -> Callable[[], None]:
    """Build a training step of all exits of the authors' inclusive ResNeXt.

    It makes the calls of their training loop: a forward and a backward pass per exit, then SGD.

    Args:
        folder: a clone of their repository; ValueError if it is not.
        sizes: width, bottleneck, branches (also the number of exits) and blocks.
        images, labels: the batch, on the device to use.
    """
    model_file = folder / "models" / "anytime_resnext.py"
    require(model_file.exists(), "authors", "a clone of hankook/IResNeXt with models/anytime_resnext.py", str(folder))
    width, bottleneck, branches, blocks = sizes
    utils = ModuleType("utils")
    utils.__path__ = [str(folder / "utils")]
    sys.modules["utils"] = utils  # replaces the package's __init__, which imports the logger
    make = _module(folder, "models.anytime_resnext").AnytimeResNeXt
    network = make(blocks, 10, width, bottleneck, branches, branches, init=True).to(images.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        for k in range(network.anytime):
            loss = F.cross_entropy(network(images, k), labels)
            loss.item()
            loss.backward()
        optimizer.step()

    return step


def _module(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def _definitions(script: Path) -> dict[str, Any]:
    """The classes and functions of a script, defined without running its other statements."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(compile(tree, str(script), "exec"), names)
    return names
