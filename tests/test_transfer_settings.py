"""Settings of a transfer: validation, and the keywords that help() shows."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import tiny
from transfer_runs import refused
from typechecker import unchecked

from mtanytime.training.settings import TrainerSettings
from mtanytime.transfer import TransferTrainer
from mtanytime.transfer.settings import TransferSettings


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"inner_steps": 0},
            r"^inner_steps: expected a whole number >= 1, got 0; without a matching step the .* no gradient$",
        ),
        ({"inner_steps": -1}, r"^inner_steps: expected a whole number >= 1, got -1"),
        ({"inner_steps": 1.5}, r"^inner_steps: expected a whole number >= 1, got 1.5"),
        ({"stages": 4}, "^stages: expected 2 or 3, got 4$"),
        ({"beta": 0.0}, "^beta: expected a number > 0, got 0.0"),
        ({"beta": -1.0}, "^beta: expected a number > 0, got -1.0"),
        ({"beta": float("nan")}, "^beta: expected a number > 0, got nan"),
        ({"beta": float("inf")}, "^beta: expected a number > 0, got inf"),
        ({"meta_lr": 0.0}, "^meta_lr: expected a number > 0, got 0.0"),
        ({"meta_lr": -1e-4}, "^meta_lr: expected a number > 0, got -0.0001"),
        ({"meta_weight_decay": -1e-4}, "^meta_weight_decay: expected a number >= 0, got -0.0001"),
        ({"trace_every": 0}, "^trace_every: expected a whole number >= 1, got 0"),
        ({"trace_every": 2.5}, "^trace_every: expected a whole number >= 1, got 2.5"),
        ({"mode": "fast"}, "^mode: expected one of keep, recompute, unroll, got 'fast'$"),
        ({"mode": "unroll", "first_order": True}, "^mode: expected keep or recompute with first_order, got 'unroll'$"),
        ({"where": "sigmoid"}, "^where: expected one of relu6, relu, constant, off, got 'sigmoid'"),
        ({"where_start": "zero"}, "^where_start: expected one of random, even, got 'zero'"),
        ({"source": {}}, "^source: expected a network, or one or more networks by name, got {}"),
        ({"source": "resnet18"}, "^source: expected a network, or one or more networks by name, got 'resnet18'"),
        ({"source": {"a/b": tiny.made(3)}}, r"^source: expected names without '/', got \['a/b'\]"),
        ({"source": {"": tiny.made(3)}}, r"^source: expected names without '/', got \[''\]"),
        ({"source": {1: tiny.made(3)}}, r"^source: expected names without '/', got \[1\]"),
        ({"map": {("first", "first"): 1.0}}, r"^map: expected a TransferMap or the file of one, got dict"),
        ({"teacher": "prob"}, "^teacher: expected a network, \"probe\" or None, got 'prob'"),
        ({"what": "off"}, "^what: expected True or False, got 'off'"),
        ({"views": True}, "^views: expected a whole number >= 1, got True"),
        ({"unlabelled": [1, 2]}, "^unlabelled: expected an ImageSet, a DataLoader or a folder, got list$"),
        (
            {"pairs": ["ab"]},
            r"^pairs: expected one or more \(source layer, target layer\), or 'not later', got \['ab'\]",
        ),
        ({"pairs": []}, r"^pairs: expected one or more \(source layer, target layer\), or 'not later', got \[\]"),
        (
            {"pairs": [("first", "first", "first")]},
            r"^pairs: expected one or more .source layer, target layer.*, got \[\('first'",
        ),
    ],
    ids=lambda value: str(value).split(" at 0x")[0][:40],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Each bad setting is refused by name, with what was expected, also one of the wrong type."""
    refused(ValueError, match, tmp_path / "run", **options)


def test_unknown_keyword(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt keyword is refused."""
    monkeypatch.setattr(TransferTrainer, "__init__", unchecked(TransferTrainer.__init__))
    refused(TypeError, "unexpected keyword argument 'epoch'", tmp_path / "run", epoch=3)


def test_help_shows_every_keyword() -> None:
    """Each setting of a transfer and of a training is a keyword with its default, and none is there twice."""
    shown = inspect.signature(TransferTrainer).parameters
    for settings in (TransferSettings, TrainerSettings):
        for name, setting in inspect.signature(settings).parameters.items():
            assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert shown[name].default == TransferTrainer.defaults.get(name, setting.default)
    assert {"source_layers", "target_layers", "pairs", "validation", "device", "folder", "progress"} <= set(shown)
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in shown.values())
