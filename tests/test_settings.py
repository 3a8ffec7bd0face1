"""The settings of trainers: said once in a dataclass, shown by help(), recorded, and refused by name."""

import inspect
from dataclasses import FrozenInstanceError, dataclass, field, fields

import pytest
import torch.nn.functional as F
from tiny_runs import network, task, trainer

from mtanytime.anytime import AnytimeTrainer
from mtanytime.training import Trainer, TrainerSettings
from mtanytime.training.identity import record
from mtanytime.training.settings import split_settings, with_keywords_of
from mtanytime.transfer import TransferTrainer

# The keyword arguments of `Trainer` in version 0.1, with their defaults.
KEYWORDS = {
    "validation": None,
    "epochs": None,
    "steps": None,
    "batch_size": 128,
    "remainder": "keep",
    "lr": None,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "nesterov": False,
    "schedule": "cosine",
    "loss": F.cross_entropy,
    "augment": None,
    "seed": 0,
    "device": None,
    "precision": "float32",
    "optimizer": None,
    "logits": None,
    "folder": None,
    "checkpoint_seconds": 60.0,
    "progress": True,
}


def test_every_keyword_and_its_default_is_shown() -> None:
    """`help(Trainer)` names each argument with its default, though the class itself hands them on."""
    shown = inspect.signature(Trainer).parameters
    assert list(shown)[:3] == ["model", "data", "test"]
    keywords = {name: p.default for name, p in shown.items() if p.kind is p.KEYWORD_ONLY}
    assert keywords == KEYWORDS
    anytime = inspect.signature(AnytimeTrainer).parameters
    assert {name: anytime[name].default for name in KEYWORDS} == KEYWORDS | {"loss": None}


def test_settings_are_kept_as_given() -> None:
    """A trainer's settings are those of its arguments and cannot be changed afterwards."""
    run = trainer(momentum=0.8, schedule="steps")
    assert (run.settings.momentum, run.settings.schedule, run.settings.nesterov) == (0.8, "steps", False)
    assert (run.epochs, run.seed, run.precision, run.loss) == (3, 0, "float32", F.cross_entropy)
    assert run.settings.sgd == {"lr": 0.05, "momentum": 0.8, "weight_decay": 1e-4, "nesterov": False}
    assert run.optimizer.defaults.items() >= run.settings.sgd.items()
    with pytest.raises(FrozenInstanceError):
        run.settings.momentum = 0.9


@pytest.mark.parametrize("cls", [Trainer, AnytimeTrainer])
def test_an_unknown_keyword_is_named_with_the_nearest_one(cls: type[Trainer]) -> None:
    """A mistyped setting must not be ignored."""
    with pytest.raises(TypeError, match=rf"^{cls.__name__} got an unexpected .* 'epoch'; did you mean 'epochs'\?$"):
        cls(network(), task(), epoch=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'$"):
        cls(network(), task(), zzz=3)


def test_an_unknown_keyword_of_a_transfer() -> None:
    """The keywords that a subclass hands on are checked as well."""
    with pytest.raises(TypeError, match="'moment'; did you mean 'momentum'"):
        TransferTrainer(network(), network(), task(), moment=0.9)


def test_settings_of_another_trainer() -> None:
    """A subclass adds a dataclass of its own: its fields are shown first, split off and recorded, but for switches."""

    @dataclass(frozen=True, kw_only=True)
    class Extra:
        beta: float = 0.5
        mode: str = field(default="keep", metadata={"identifies": False})

    @with_keywords_of(Extra, Trainer)
    class Sub(Trainer):
        def __init__(self, *args: object, progress: bool = False, **settings: object) -> None:
            own, shared = split_settings(settings, Extra)
            self.extra = Extra(**own)
            super().__init__(*args, progress=progress, **shared)

    shown = inspect.signature(Sub).parameters
    assert list(shown)[:4] == ["args", "progress", "beta", "mode"]
    assert KEYWORDS.keys() <= shown.keys()
    assert shown["progress"].default is False
    run = Sub(network(), task(), beta=2.0, mode="recompute", lr=0.2, device="cpu")
    assert (run.extra.beta, run.settings.lr) == (2.0, 0.2)
    assert record(run.extra) == {"beta": 2.0}


def test_the_record_has_every_setting_in_order() -> None:
    """Numbers are recorded as they are and functions by name, in the order of the fields."""
    values = record(TrainerSettings(epochs=3, schedule="steps"))
    new = [field.name for field in fields(TrainerSettings) if "before" in field.metadata]
    assert list(values) == [name for name in inspect.signature(TrainerSettings).parameters if name not in new]
    assert record(TrainerSettings(steps=7, remainder="drop")).items() >= {"steps": 7, "remainder": "drop"}.items()
    assert values["epochs"] == 3
    assert values["schedule"] == "steps"
    assert values["loss"] == "cross_entropy"
    assert values["augment"] is None
