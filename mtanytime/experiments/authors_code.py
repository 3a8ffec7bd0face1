"""The authors' own code of either paper, from a clone of their repository, to time it beside ours.

Their code is not part of this package: `bench … --authors FOLDER` reads it from a clone and runs it, so pass a folder
that you trust. Paper 1: github.com/alinlab/L2T-ww (MIT licence); on present PyTorch it runs only where gradients are
set to zero and not to None, which is done here from outside; nothing else of it is changed. Paper 2:
github.com/hankook/IResNeXt; its logger, which needs TensorBoard, is left out.
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
from torch import Tensor, nn


def authors_iteration(folder: Path, batch: int, inner_steps: int, device: torch.device) -> Callable[[], None]:
    """The fixed work of `benchmarks.transfer_iteration`, by their training loop's calls: a step on both losses, the
    matching steps, the task step, and the meta-gradient by their optimiser. ValueError where the folder is no clone."""
    script = folder / "train_l2t_ww.py"
    if not script.exists():
        raise ValueError(f"wanted a clone of alinlab/L2T-ww, with train_l2t_ww.py in it; got {folder}")
    resnets, vggs, optimizers = (
        _module(folder, n) for n in ("models.resnet_cifar", "models.vgg_cifar", "train.meta_optimizers")
    )
    theirs = _definitions(script)
    torch.manual_seed(0)
    source = (
        resnets.CResNet(4, lambda channels: resnets.BasicBlock(channels, channels), num_classes=200).to(device).eval()
    )
    target = vggs.vgg9_bn(num_classes=10).to(device).train()
    pairs = [(m, n) for m in (4, 9, 14) for n in range(5)]  # the last block of each stage, by its number
    what = theirs["WeightNetwork"]("resnet32", pairs).to(device)
    where = theirs["LossWeightNetwork"]("resnet32", pairs, "relu6", 1.0).to(device)
    regressors = theirs["FeatureMatching"]("resnet32", "vgg9_bn", pairs).to(device)
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
            warnings.simplefilter("ignore")  # of calls that PyTorch has since deprecated
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


def authors_joint_step(folder: Path, sizes: Sequence[int], images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A training step of all exits of the authors' inclusive ResNeXt, by their training loop's calls: a pass and its
    gradient for each exit, then SGD. `sizes`: width, bottleneck, branches (as many exits), blocks.

    ValueError where the folder is no clone.
    """
    if not (folder / "models" / "anytime_resnext.py").exists():
        raise ValueError(f"wanted a clone of hankook/IResNeXt, with models/anytime_resnext.py in it; got {folder}")
    width, bottleneck, branches, blocks = sizes
    utils = ModuleType("utils")
    utils.__path__ = [str(folder / "utils")]
    sys.modules["utils"] = utils  # in place of the package, which would load the logger
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
    """Its classes and functions, without running the script itself."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(compile(tree, str(script), "exec"), names)
    return names
