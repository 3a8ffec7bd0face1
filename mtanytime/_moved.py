"""Old import paths: modules and names from before version 0.2 still work.

A name that only moved is found silently. A name that was renamed gives a DeprecationWarning with its new name.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> the modules that hold its names now. A module that still exists is here if names have left it.
MOVED: dict[str, tuple[str, ...]] = {
    "anytime.inference": ("anytime.early_exit",),
    "anytime_recipes": ("experiments.anytime_recipes",),
    "authors_code": ("experiments.authors_code",),
    "benchmarks": ("experiments.benchmarks", "devices"),
    "characters": ("data.synthetic",),
    "datasets": ("data", "randomness"),
    "double_backward": ("transfer.double_backward",),
    "explore.contents": ("explore.contents.common", "explore.contents.images", "explore.contents.transfer"),
    "explore.draw": ("explore.tables",),
    "explore.export": ("explore.kinds",),
    "explore.playground": ("explore.contents.playground",),
    "measure": ("devices",),
    "quick_layers": ("transfer.second_order",),
    "recipes": ("experiments.runner", "experiments.recipe"),
    "runs": ("training.run_folder", "training.identity"),
    "stateless": ("functional",),
    "training": ("devices", "measure.evaluation"),
    "transfer.metanets": ("transfer.meta_networks",),
    "transfer.trainer": ("transfer.lookahead", "transfer.layers"),
    "transfer_recipes": ("experiments.transfer_recipes", "experiments.recipe"),
}
# Old name -> new name.
RENAMED: dict[str, str] = {
    "anytime_recipes.VALIDATION_A_CLASS": "experiments.anytime_recipes.VALIDATION_PER_CLASS",
    "characters.draw": "data.synthetic.paint",
    "explore.contents.check_images": "explore.contents.images.require_images",
    "explore.contents.refuse_doubles": "measure.tables.require_unique",
    "explore.contents.wide": "explore.contents.transfer.by_pair",
    "explore.draw.some": "explore.tables.first_few",
    "explore.draw.worded": "explore.tables.format_cost",
    "explore.widget.one_of": "explore.widget.require_choice",
    "quick_layers.quick_layers": "transfer.second_order.second_order",
    "stateless.call_at": "functional.functional_call",
    "stateless.undisturbed": "functional.trial_run",
    "training.TrainerOptions": "training.settings.TrainerSettings",
    "training.share_right": "measure.evaluation.fraction_correct",
    "transfer.AnotherBatch": "transfer.outer.FreshBatch",
    "transfer.outer.AnotherBatch": "transfer.outer.FreshBatch",
    "transfer_recipes.whole_cifar10": "experiments.recipe.load_cifar10",
}


def find(module: str, name: str) -> Any:
    """Return the object that `mtanytime.<module>.<name>` was. Raises AttributeError if there was none.

    A module that still exists calls this from its `__getattr__`.
    """
    old = f"{module}.{name}"
    if old in RENAMED:
        message = f"mtanytime.{old} is now mtanytime.{RENAMED[old]}; the old name will go in the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        home, _, new_name = RENAMED[old].rpartition(".")
        return getattr(importlib.import_module(f"mtanytime.{home}"), new_name)
    if not name.startswith("_"):
        for home in MOVED.get(module, ()):
            candidate = importlib.import_module(f"mtanytime.{home}")
            if hasattr(candidate, name):
                return getattr(candidate, name)
    raise AttributeError(f"module 'mtanytime.{module}' has no attribute {name!r}")


class _OldModule(ModuleType):
    """Stands for a module that no longer exists and looks up its names where they are now."""

    def __getattr__(self, name: str) -> Any:
        return find(self.__name__.removeprefix("mtanytime."), name)


class _Finder(MetaPathFinder, Loader):
    """Makes old modules importable; Python asks it last, so modules that still exist are loaded from their files."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        package, _, module = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "mtanytime" and module in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        homes = ", ".join(f"mtanytime.{home}" for home in MOVED[spec.name.removeprefix("mtanytime.")])
        return _OldModule(spec.name, f"Moved to {homes}.")

    def exec_module(self, module: ModuleType) -> None:
        pass


def install_old_paths() -> None:
    """Make the old modules importable. Further calls have no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
