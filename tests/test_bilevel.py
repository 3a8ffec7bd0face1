"""The meta-gradient against the authors' numbers, a plain unroll and finite differences."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mtanytime import backbones
from mtanytime.datasets import ImageSet
from mtanytime.transfer import TransferTrainer, bilevel

REFERENCE = Path(os.environ.get("MTANYTIME_REFERENCE", Path(__file__).parent / "reference"))
CHECKPOINT = Path(__file__).parents[2] / "shared" / "data" / "tinyimagenet_resnet32.pth.tar"
CASES = sorted(REFERENCE.glob("l2t_*.npz"))


def test_reference_folder_holds_cases() -> None:
    """A wrong MTANYTIME_REFERENCE must not pass by running no case."""
    assert CASES, f"no l2t_*.npz in {REFERENCE}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reference(path: Path) -> None:
    """Both iterations agree with the authors' code run in float64, tensor by tensor."""
    case = np.load(path)
    config, order = json.loads(str(case["config"])), json.loads(str(case["order"]))
    trainer = reference_trainer(config, order)
    classes = next(shape[0] for name, shape, _ in order if name == "target.classifier.bias")
    x = np.random.RandomState(config["seed"] - 1).standard_normal((config["B"], 3, 32, 32))
    images, labels = torch.from_numpy(x), torch.arange(config["B"]) % classes

    def compare(name: str, ours: torch.Tensor) -> None:
        theirs = torch.from_numpy(np.asarray(case[name])).double()
        error = (ours.detach().double() - theirs).norm() / theirs.norm().clamp(min=1e-300)
        assert error <= 1e-10, f"{name}: relative error {error:.2e}"

    for i in range(2):
        with torch.no_grad():
            weights = trainer.meta(trainer._source_features(images))
        compare(f"iter{i}/lambda", torch.stack([weights.pairs[pair][:, 0] for pair in trainer.pairs]))
        trainer.model.train()
        figures = trainer._step(images, labels)
        compare(f"iter{i}/match_loss", torch.tensor(figures["matching_loss"], dtype=torch.float64))
        compare(f"iter{i}/ce_loss", torch.tensor(figures["task_loss"], dtype=torch.float64))
        compare(f"iter{i}/outer_loss", torch.tensor(figures["outer_loss"], dtype=torch.float64))
        ours = target_tensors(trainer)
        names = [name for name, _, _ in order if name.startswith(("target.", "regressor."))]
        compare(f"iter{i}/theta_norm", torch.stack([ours[name].norm() for name in names]))
        for kind, networks in (("what", trainer.meta.what), ("where", trainer.meta.where)):
            for k, network in enumerate(networks):
                for part, parameter in network.named_parameters():
                    compare(f"iter{i}/grad/{kind}.{k}.{part}", parameter.grad)


def reference_trainer(config: dict, order: list) -> TransferTrainer:
    """The stored case's networks, filled as ../shared/reference/README.md says."""
    filled = {}
    for name, shape, seed in order:
        values = torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))
        source, part = name.startswith("source."), name.split(".")[0]
        if len(shape) >= 2:
            values *= ((1 if source else 2) / np.prod(shape[1:])) ** 0.5
            values *= config.get(f"{part}_scale", 1) if part in ("what", "where") else 1
        elif name.endswith("weight") or (part == "where" and name.endswith("bias")):
            values = (0.5 if source else 1) + 0.1 * values
        else:
            values *= 0.05
        filled[name] = values

    if config["kw_source"] == "checkpoint":
        if not CHECKPOINT.exists():
            pytest.skip(f"{CHECKPOINT.name} is not at ../shared/data")
        source = backbones.load_l2t_resnet32(CHECKPOINT).network.double()
    else:
        source = backbones.resnet(32, len(filled["source.fc.bias"])).double()
        theirs = backbones.l2t_resnet32_names()
        state = source.state_dict()
        source.load_state_dict({ours: filled.get(f"source.{theirs[ours]}", value) for ours, value in state.items()})
    target = backbones.vgg9(len(filled["target.classifier.bias"])).double()
    for name, parameter in target.named_parameters():
        parameter.data = filled[f"target.{name}"]

    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(5)]
    tiny = ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    trainer = TransferTrainer(
        source.eval(),
        target,
        tiny,
        pairs=[(blocks[s], target.feature_layers[t]) for s, t in config["pairs"]],
        epochs=1,
        lr=config["lr"],
        momentum=config["mom"],
        weight_decay=config["wd"],
        beta=config["beta"],
        inner_steps=config["T"],
        meta_lr=config["mlr"],
        meta_weight_decay=1e-4,
        device="cpu",
        progress=False,
    )
    with torch.no_grad():
        for name, tensor in target_tensors(trainer).items():
            tensor.copy_(filled[name])
        for kind in ("what", "where"):
            for k, network in enumerate(getattr(trainer.meta, kind)):
                for part, parameter in network.named_parameters():
                    parameter.copy_(filled[f"{kind}.{k}.{part}"])
    return trainer


def target_tensors(trainer: TransferTrainer) -> dict[str, torch.Tensor]:
    """θ under the authors' names; the regressors as views into ours."""
    tensors = {f"target.{name}": p for name, p in trainer.model.named_parameters()}
    for k, pair in enumerate(trainer.pairs):
        weight, bias = trainer.student.matching.regressor(pair)
        tensors |= {f"regressor.{k}.weight": weight, f"regressor.{k}.bias": bias}
    return tensors
