"""Old import paths: modules and names from before version 0.2, which still work.

A name that only moved is found silently; one that has a new name warns once, with a DeprecationWarning.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> the modules that its names are in today.
OLD_MODULES: dict[str, tuple[str, ...]] = {
    "anytime_recipes": ("experiments.anytime",),
    "authors_code": ("experiments.authors_code",),
    "benchmarks": ("experiments.benchmarks",),
    "characters": ("data.synthetic",),
    "datasets": ("data", "randomness"),
    "double_backward": ("transfer.double_backward",),
    "quick_layers": ("transfer.second_order",),
    "recipes": ("experiments.runner", "experiments.recipe"),
    "runs": ("training.run_folder", "training.identity"),
    "stateless": ("functional",),
    "transfer.metanets": ("transfer.meta_networks",),
    "transfer_recipes": ("experiments.transfer", "experiments.recipe"),
}
# Old module, old name -> new module, new name.
RENAMED: dict[tuple[str, str], tuple[str, str]] = {
    ("characters", "draw"): ("data.synthetic", "paint"),
    ("quick_layers", "quick_layers"): ("transfer.second_order", "second_order"),
    ("stateless", "call_at"): ("functional", "functional_call"),
    ("stateless", "undisturbed"): ("functional", "trial_run"),
    ("training", "share_right"): ("measure.evaluation", "fraction_correct"),
    ("transfer", "AnotherBatch"): ("transfer.outer", "FreshBatch"),
    ("transfer.outer", "AnotherBatch"): ("transfer.outer", "FreshBatch"),
}
# Names that left a module which is still there: old module -> the modules to look in.
LEFT: dict[str, tuple[str, ...]] = {
    "explore.draw": ("explore.tables",),
    "measure": ("devices",),
    "training": ("devices", "measure.evaluation"),
    "transfer.trainer": ("transfer.lookahead", "transfer.layers"),
}


def find(old: str, name: str) -> Any:
    """What `mtanytime.<old>.<name>` was, where it is today. AttributeError where there never was such a name."""
    if (old, name) in RENAMED:
        module, new = RENAMED[old, name]
        warnings.warn(
            f"mtanytime.{old}.{name} is now mtanytime.{module}.{new}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=3,
        )
        return getattr(importlib.import_module(f"mtanytime.{module}"), new)
    if not name.startswith("__"):
        for module in (*OLD_MODULES.get(old, ()), *LEFT.get(old, ())):
            found = importlib.import_module(f"mtanytime.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module 'mtanytime.{old}' has no attribute {name!r}")


class _OldModule(ModuleType):
    """A module that looks each name up where it is today."""

    def __getattr__(self, name: str) -> Any:
        return find(self.__name__.removeprefix("mtanytime."), name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        old = fullname.removeprefix("mtanytime.")
        return ModuleSpec(fullname, self) if old != fullname and old in OLD_MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OldModule(spec.name, f"Moved: see {', '.join(OLD_MODULES[spec.name.removeprefix('mtanytime.')])}.")

    def exec_module(self, module: ModuleType) -> None:
        pass


def install_old_paths() -> None:
    """Make the old modules importable; once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
