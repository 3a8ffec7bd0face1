"""What identifies a run: other settings, functions, networks or data make another run."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_runs
import torch
import torch.nn.functional as F
from tiny_runs import coloured, loader, network
from torch import Tensor, nn
from torchvision.transforms import v2

from mtanytime.anytime import JointLoss
from mtanytime.backbones import Normalized
from mtanytime.data.batches import crop_flip
from mtanytime.training.identity import describe_frozen, fingerprint, name_of, same_structure, structure_of
from mtanytime.training.run_folder import RunFolder
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import PAPER, TransferTrainer


def test_names_in_the_record() -> None:
    """The record distinguishes functions by the settings they hold, not by their addresses."""
    plain: list[tuple[Callable[..., Any] | str | None, object]] = [
        (None, None),
        ("cosine", "cosine"),
        (F.cross_entropy, "cross_entropy"),
        (partial(F.cross_entropy, label_smoothing=0.1), "cross_entropy () {'label_smoothing': 0.1}"),
    ]
    for value, name in plain:
        assert name_of(value) == name
    assert "'label_smoothing': 0.2" in str(name_of(nn.CrossEntropyLoss(label_smoothing=0.2)))
    assert name_of(crop_flip(2)) == name_of(crop_flip(2)) != name_of(crop_flip(3))


def test_other_data_or_loss_is_another_run(tmp_path: Path) -> None:
    """A folder must not return the result of other images or another loss of the same sizes."""

    def weighted(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda output, labels: F.cross_entropy(output, labels, weight=weight)

    def run(seed: int, weight: float) -> Trainer:
        data, settings = loader(coloured(seed=seed)), {"epochs": 1, "device": "cpu", "progress": False}
        return Trainer(network(), data, loss=weighted(torch.full((3,), weight)), folder=tmp_path / "run", **settings)

    run(0, 1.0).train()
    run(0, 1.0)
    with pytest.raises(ValueError, match=r"another run \(train: "):
        run(1, 1.0)
    with pytest.raises(ValueError, match=r"another run \(loss: "):
        run(0, 2.0)


def test_numbers_of_other_libraries_in_the_settings(tmp_path: Path) -> None:
    """A seed from numpy is recorded as a plain number."""
    seed = torch.tensor([7]).numpy()[0]
    with RunFolder(tmp_path, {"seed": seed}).held():
        pass
    RunFolder(tmp_path, {"seed": 7})


def test_fingerprint_tells_tensors_apart() -> None:
    """One changed pixel, name, shape or type changes the fingerprint; scalars and empty tensors have one too."""
    base = torch.arange(6.0)
    prints = [
        fingerprint(tensors)
        for tensors in (
            {"a": base},
            {"b": base},
            {"a": base.reshape(2, 3)},
            {"a": base.double()},
            {"a": base.index_fill(0, torch.tensor(5), 5.0001)},
            {"a": torch.tensor(3)},
            {"a": torch.tensor([])},
            {},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"a": base.reshape(2, 3).t()}) == fingerprint({"a": base.reshape(2, 3).t().contiguous()})


# What a loss holds.


class Weighted(nn.Module):
    """A user's loss with a buffer, a list and a loss of its own inside."""

    def __init__(self, weight: list[float], scales: list[float], smoothing: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.scales, self.inner = scales, nn.CrossEntropyLoss(label_smoothing=smoothing)


class Plain:
    """A user's loss that is no module: with a private tensor, an array and a method."""

    def __init__(self, value: float) -> None:
        self._weight, self.table = torch.full((2,), value), np.full(3, value)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Whatever."""
        return output.sum()


WEIGHTS = torch.ones(3)


def reads_a_global(output: Tensor, labels: Tensor) -> Tensor:
    """A notebook's loss, with its weights in another cell."""
    return F.cross_entropy(output, labels, weight=WEIGHTS)


def weighted_default(weight: float) -> Callable[..., Any]:
    """A lambda with its weights as a default."""
    weights = torch.full((3,), weight)
    return lambda output, labels, weight=weights: F.cross_entropy(output, labels, weight=weight)


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "class weights": (
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1, 1])),
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([9.0, 1, 1])),
    ),
    "none and some": (nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(weight=torch.ones(3))),
    "buffer": (lambda: Weighted([1.0], [1.0], 0.1), lambda: Weighted([2.0], [1.0], 0.1)),
    "list": (lambda: Weighted([1.0], [1.0], 0.1), lambda: Weighted([1.0], [2.0], 0.1)),
    "loss inside": (lambda: Weighted([1.0], [1.0], 0.1), lambda: Weighted([1.0], [1.0], 0.2)),
    "tensor in a partial": (  # a tensor of 2,000 values is printed with dots
        lambda: partial(F.cross_entropy, weight=torch.arange(2000.0)),
        lambda: partial(F.cross_entropy, weight=torch.arange(2000.0).index_fill(0, torch.tensor([1000]), 5.0)),
    ),
    "partial of a module": (
        lambda: partial(nn.CrossEntropyLoss(weight=torch.ones(3))),
        lambda: partial(nn.CrossEntropyLoss(weight=torch.zeros(3))),
    ),
    "method": (lambda: Plain(1.0).loss, lambda: Plain(2.0).loss),
    "private tensor": (lambda: Plain(1.0), lambda: Plain(2.0)),
    "default of a lambda": (lambda: weighted_default(1.0), lambda: weighted_default(2.0)),
    "joint loss": (JointLoss, lambda: JointLoss(loss=nn.CrossEntropyLoss(label_smoothing=0.1))),
    "transform": (lambda: v2.RandomErasing(value=[1.0]), lambda: v2.RandomErasing(value=[2.0])),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_functions_hold_identifies_them(kind: str) -> None:
    """Two values that compute differently have different names; the same one has the same name when made again."""
    one, other = PAIRS[kind]
    assert name_of(one()) == name_of(one())
    assert name_of(one()) != name_of(other())
    assert " at 0x" not in f"{name_of(one())}"


def test_global_variables_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in a global variable, as notebooks have them, belong to the loss that reads them."""
    before = name_of(reads_a_global)
    monkeypatch.setitem(globals(), "WEIGHTS", torch.full((3,), 2.0))
    assert name_of(reads_a_global) != before


def weighted_run(folder: Path, weight: float) -> Trainer:
    """A run with class weights."""
    loss = nn.CrossEntropyLoss(weight=torch.full((3,), weight))
    return tiny_runs.trainer(folder, loss=loss, epochs=1, validation=None)


def as_before(folder: Path) -> None:
    """Give a run the record and checkpoint of today's predecessor, which left out a loss's tensors."""
    config = json.loads((folder / "config.json").read_text())
    config["loss"] = config["loss"].rpartition(" ")[0]
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    del checkpoint["network"]
    torch.save(checkpoint, folder / "checkpoint.pt")


def test_a_record_without_the_losss_tensors_is_recognized(tmp_path: Path) -> None:
    """A run from before its loss's tensors were recorded goes on, and is recorded with them from then on."""
    next(iter(weighted_run(tmp_path, 1.0)))
    with pytest.raises(ValueError, match=r"another run \(loss: "):
        weighted_run(tmp_path, 2.0)
    as_before(tmp_path)
    weighted_run(tmp_path, 1.0).train()
    with pytest.raises(ValueError, match=r"another run \(loss: "):
        weighted_run(tmp_path, 2.0)
    weighted_run(tmp_path, 1.0)


class Printed(nn.Module):
    """A network whose printed form can change, as with a new version of a library."""

    form = "v1"

    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.body, self.slope = network(), slope

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.slope * self.body(images)

    def extra_repr(self) -> str:
        """The changing part."""
        return self.form


def test_a_changed_printed_form_is_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is printed differently goes on bit for bit; one with another setting does not."""

    def run(name: str, **options: Any) -> Trainer:
        return tiny_runs.trainer(tmp_path / name, model=Printed(**options), epochs=2, validation=None)

    expected = run("whole")
    expected.train()
    for report in run("parts"):
        if report.step == 3:
            break
    monkeypatch.setattr(Printed, "form", "v1, new_default=False")
    resumed = run("parts")
    assert resumed.step == 3
    resumed.train()
    assert tiny_runs.state_of(resumed) == tiny_runs.state_of(expected)
    monkeypatch.setattr(Printed, "form", "v1, slope=0.2")
    with pytest.raises(ValueError, match=r"another run \(model: .*printed form changed, write its new description"):
        run("parts", slope=0.2)


def test_a_new_setting_of_a_module_is_the_same_structure() -> None:
    """A torch that adds an attribute to its layers leaves the structure the same; another value, class or path not."""
    plain, newer, other, more = network(), network(), network(dropout=0.1), network()
    newer[2].new_default = False
    more.append(nn.Identity())
    assert same_structure(structure_of(plain), structure_of(newer))
    assert same_structure(structure_of(newer), structure_of(plain))
    for changed in (other, more):
        assert not same_structure(structure_of(plain), structure_of(changed))


def test_a_rewritten_function_is_another_run(tmp_path: Path) -> None:
    """Constants, operators and calls of lambdas and a notebook's functions; not comments, docstrings or libraries."""
    names = [
        name_of(lambda output, labels: F.cross_entropy(output, labels, label_smoothing=0.1)),
        name_of(lambda output, labels: F.cross_entropy(output, labels, label_smoothing=0.2)),
        name_of(lambda output, labels: F.nll_loss(output, labels)),
        name_of(lambda output, labels: F.cross_entropy(output, labels) + 1),
        name_of(lambda output, labels: F.cross_entropy(output, labels) * 1),
    ]
    assert len(set(names)) == 5

    def in_a_cell(code: str, module: str = "__main__") -> object:
        cell: dict[str, Any] = {"__name__": module}
        exec(code, cell)
        return name_of(cell["loss"])

    plain = in_a_cell("def loss(x, y):\n    return x * 2")
    assert in_a_cell("def loss(x, y):\n    'Twice.'\n    return x * 2  # as in the paper") == plain
    assert in_a_cell("def loss(x, y):\n    return x * 3") != plain
    calls = "def scale():\n    return {}\n\ndef loss(x, y):\n    return x * scale()"
    assert in_a_cell(calls.format(1)) == in_a_cell(calls.format(1)) != in_a_cell(calls.format(2))
    nested = "scale = 1\ndef add(v):\n    return v + {}\n\ndef loss(x, y):\n    return sum([add(v) * scale for v in x])"
    assert in_a_cell(nested.format(1)) != in_a_cell(nested.format(2))
    method = "class Loss:\n    def __call__(self, x, y):\n        return self.scaled(x)\n\n    def scaled(self, x):\n"
    method += "        return x * {}\n\nloss = Loss()"
    assert in_a_cell(method.format(1)) != in_a_cell(method.format(2))
    counts = "calls = []\n\ndef count():\n    calls.append(1)\n\ndef loss(x, y):\n    count()\n    return x\n{}"
    assert in_a_cell(counts.format("")) == in_a_cell(counts.format("count()"))  # a helper's state is not its code
    assert in_a_cell(calls.format(1)) == in_a_cell(calls.format(1), "train")  # imported from a script
    assert name_of(F.cross_entropy) == "cross_entropy"
    options = {"data": coloured(), "epochs": 1, "folder": tmp_path / "run", "lr": None}
    tiny_runs.trainer(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01), **options).train()
    with pytest.raises(ValueError, match=r"another run \(optimizer: "):
        tiny_runs.trainer(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), **options)


def test_how_images_are_resized_and_normalized_identifies_a_network(tmp_path: Path) -> None:
    """The weights and the printed form do not show it: a folder must not return the result of another input size."""

    def run(size: int, mean: float = 0.5) -> Trainer:
        model = Normalized(network(), (mean,) * 3, (0.2,) * 3, size)
        return Trainer(model, coloured(), steps=2, batch_size=8, folder=tmp_path / "run", progress=False, device="cpu")

    run(8).train()
    assert run(8).step == 2
    for other in (lambda: run(10), lambda: run(8, 0.1)):
        with pytest.raises(ValueError, match="model: there"):
            other()


def test_the_size_that_a_source_reads_identifies_a_transfer(tmp_path: Path) -> None:
    """Its weights are the same at every size; a record of version 0.1, without sizes, is taken over."""
    source = tiny.made(5, seed=1)

    def run(size: int | None) -> TransferTrainer:
        network = Normalized(source, (0.0,) * 3, (1.0,) * 3, size)
        options = {"epochs": 1, "batch_size": 6, "folder": tmp_path / "run", "progress": False, "device": "cpu"}
        return TransferTrainer(network, tiny.made(), tiny.images(), **PAPER | options)

    run(8).train()
    with pytest.raises(ValueError, match="sources: there"):
        run(16)
    described = describe_frozen(Normalized(source, (0.0,) * 3, (1.0,) * 3, 8))
    assert described == f"{described.older} at 8 pixels"
    folder = RunFolder(tmp_path / "other", {"sources": {"": described}})
    assert folder._older == {"sources": {"": described.older}}


class _Mode(Enum):
    A, B = 1, 2


@dataclass(slots=True)
class _Focal:
    gamma: float

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels) * self.gamma


class _Holds:
    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels)


settings_of_a_script = Namespace(scale=1.0)


def test_settings_of_every_kind_identify_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enums, types, paths and slots; what an itemgetter gets; a namespace among the global variables."""
    for one, other in (
        (_Holds(_Mode.A), _Holds(_Mode.B)),
        (_Holds(torch.float32), _Holds(torch.float64)),
        (_Holds(Path("a")), _Holds(Path("b"))),
        (_Holds(range(2)), _Holds(range(3))),
        (_Focal(0.0), _Focal(5.0)),
        (itemgetter(0), itemgetter(1)),
    ):
        assert name_of(one) == name_of(deepcopy(one)) != name_of(other)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels) * settings_of_a_script.scale

    before = name_of(loss)
    monkeypatch.setattr(sys.modules[__name__], "settings_of_a_script", Namespace(scale=9.0))
    assert name_of(loss) != before


def test_states_that_are_no_tensors() -> None:
    """`get_extra_state` may add anything to a state; it counts by its contents."""
    weights = {"weight": torch.ones(2)}
    assert fingerprint(weights | {"_extra_state": {"a": 1}}) != fingerprint(weights | {"_extra_state": {"a": 2}})


def test_a_record_without_a_network_is_another_run(tmp_path: Path) -> None:
    """Someone may have edited it: an error in one line says what differs."""
    options = {"steps": 1, "batch_size": 8, "folder": tmp_path / "run", "progress": False, "device": "cpu"}
    model = Normalized(network(), (0.5,) * 3, (0.2,) * 3)
    Trainer(model, coloured(), **options).train()
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": 5, "lr": 9.0}))
    with pytest.raises(ValueError, match=r"there 5|there 9"):
        Trainer(model, coloured(), **options)
