"""Settings of recipes: their types, their text form, and overrides."""

import pytest

from mtanytime.experiments.recipe import Setting, as_text, changed
from mtanytime.experiments.runner import RECIPES

SETTINGS = {
    "epochs": 10,
    "lr": 0.05,
    "images": "data",
    "widths": (19, 14),
    "weights": (1.0, 0.5),
    "names": ("a",),
    "betas": (),
}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "3", 3),
        ("lr", "1", 1.0),
        ("images", "file,with,commas.npz", "file,with,commas.npz"),
        ("widths", "8,4,2", (8, 4, 2)),
        ("weights", "2,0.25", (2.0, 0.25)),
        ("names", "b,c", ("b", "c")),
        ("names", "", ()),
        ("betas", "0.5,2", (0.5, 2.0)),
        ("betas", "", ()),
    ],
)
def test_parsing(name: str, text: str, value: Setting) -> None:
    """Text becomes a value of the default's type, a value is accepted as it is, and the other settings are kept."""
    for override in (text, value):
        settings = changed(SETTINGS, {name: override})
        assert settings == SETTINGS | {name: value}
        assert type(settings[name]) is type(value)
        assert list(settings) == list(SETTINGS)
    if isinstance(value, tuple):
        assert [type(part) for part in settings[name]] == [type(part) for part in value]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", "2.5", "epochs: expected a whole number, such as 10, got '2.5'"),
        ("lr", "fast", "lr: expected a number, such as 0.05, got 'fast'"),
        ("widths", "8,,4", "widths: expected whole numbers separated by commas, such as 19,14, got '8,,4'"),
        ("widths", (8, 0.5), "widths: expected whole numbers separated by commas, such as 19,14, got '8,0.5'"),
        ("weights", "1;2", "weights: expected numbers separated by commas, such as 1,0.5, got '1;2'"),
        ("epoch", "3", "setting: expected one of the recipe's settings, got 'epoch'; the nearest is 'epochs'"),
        ("zzz", "3", "setting: expected one of the recipe's settings, got 'zzz'; choose from epochs, lr, images, "),
    ],
)
def test_errors(name: str, value: Setting, message: str) -> None:
    """An error names the setting, the expected form with an example, and the given text."""
    with pytest.raises(ValueError, match=f"^{message}"):
        changed(SETTINGS, {name: value})


@pytest.mark.parametrize("name", RECIPES)
def test_text_form(name: str) -> None:
    """The text of every setting, as `list` prints it, can be given back to `--set`."""
    settings = RECIPES[name].settings
    assert changed(settings, {key: as_text(value) for key, value in settings.items()}) == settings
