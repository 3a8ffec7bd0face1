"""The grid of a sweep: which settings take which values, and one cell per combination and seed."""

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from mtanytime.checks import Words, require
from mtanytime.experiments.recipe import Recipe, Setting, as_text, changed, nearest
from mtanytime.experiments.runner import recipe
from mtanytime.training.identity import run_record

LETTERS_UP_TO = 120  # of a cell's name; a longer one ends in a hash
LISTS = ("methods", "models", "tasks")  # settings that list what to train: a cell trains one of them


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its folder's name, the values of what varies, its seed, and all of its settings."""

    name: str
    values: Mapping[str, Setting]
    seed: int
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class Grid:
    """What a sweep runs: a recipe, settings for all runs, the values of those that vary, and seeds, in sorted order."""

    recipe: str
    fixed: Mapping[str, Setting]
    over: Mapping[str, tuple[Setting, ...]]
    seeds: tuple[int, ...]

    @property
    def cells(self) -> list[Cell]:
        """Every combination of values and seeds, in the order of the table of results."""
        cells, settings = [], changed(recipe(self.recipe).settings, self.fixed)
        for combination in itertools.product(*self.over.values()):
            values = dict(zip(self.over, combination, strict=True))
            for seed in self.seeds:
                cells.append(Cell(cell_name(values, seed), values, seed, settings | values))
        return cells

    @property
    def command(self) -> str:
        """The command that runs this grid, with FOLDER for its folder."""
        parts = ["python", "-m", "mtanytime", "sweep", self.recipe, "--out", "FOLDER", "--seed", *map(str, self.seeds)]
        if self.over:
            parts += ["--over", *(f"{key}={_joined(key, values)}" for key, values in self.over.items())]
        if self.fixed:
            parts += ["--set", *(f"{key}={as_text(value)}" for key, value in self.fixed.items())]
        return shlex.join(parts)

    def record(self) -> dict[str, Any]:
        """The grid as `sweep.json` holds it: values as text, and every setting of the recipe that does not vary."""
        settings = changed(recipe(self.recipe).settings, self.fixed)
        return {
            "recipe": self.recipe,
            "settings": {key: as_text(value) for key, value in settings.items() if key not in self.over},
            "set": {key: as_text(value) for key, value in self.fixed.items()},
            "over": {key: [as_text(value) for value in values] for key, values in self.over.items()},
            "seeds": list(self.seeds),
        }


def make_grid(name: str, seeds: Sequence[int], over: Mapping[str, str], changes: Mapping[str, Setting]) -> Grid:
    """Parse and validate what a sweep varies.

    Args:
        name: the recipe.
        seeds: one or more different seeds.
        over: the values of each setting that varies, separated by commas; by slashes for settings that are several
            numbers, such as slice_widths=28,12/16,8.
        changes: settings of all runs, as `runner.run` takes them.

    Raises:
        ValueError: an unknown recipe or setting, with the nearest one; a value of another type; no value; a value or
            seed given twice; a setting that is both varied and set.
    """
    chosen = recipe(name)
    defaults = chosen.settings
    whole = all(isinstance(seed, Integral) for seed in seeds) and len(set(seeds)) == len(seeds) > 0
    require(whole, "--seed", "one or more different whole numbers", list(seeds))
    settings = changed(defaults, changes)
    both = [key for key in over if key in changes]
    require(not both, "--over", "settings that --set does not name", Words(", ".join(both)))
    remedy = "seeds are given by --seed 0 1 2"
    require("seed" not in over or "seed" in defaults, "--over", "settings of the recipe", "seed", remedy)
    varied = {key: _values(chosen, key, text) for key, text in over.items()}
    fixed = {key: value for key, value in settings.items() if value != defaults[key]}
    return Grid(name, fixed, dict(sorted(varied.items(), key=_lists_first)), tuple(sorted(map(int, seeds))))


def _lists_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return item[0] not in LISTS, item[0]


def _values(chosen: Recipe, key: str, text: str) -> tuple[Setting, ...]:
    """The values of a setting that varies, in the order of the table: as the recipe lists them, or sorted."""
    separator = "/" if _is_numbers(chosen.settings.get(key)) else ","
    parts = text.split(separator)
    require(all(parts), f"--over {key}", f"values separated by {separator!r}, each of them not empty", text)
    values = tuple(changed(chosen.settings, {key: part})[key] for part in parts)
    for part in parts if key == "methods" and chosen.methods else ():
        known, remedy = f"names among {', '.join(chosen.methods)}", nearest(part, chosen.methods)
        require(part in chosen.methods, "methods", known, part, remedy)
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    require(not twice, f"--over {key}", "each value once", Words(f"{as_text(twice[0])} twice" if twice else ""))
    return in_order(chosen, key, values)


def in_order(chosen: Recipe, key: str, values: Sequence[Setting]) -> tuple[Setting, ...]:
    """Values of a setting in the order of the table of results, without repetition."""
    known = chosen.methods if key == "methods" else ()
    rank = {(name,): i for i, name in enumerate(known)}
    return tuple(sorted(set(values), key=lambda value: (rank.get(value, len(rank)), value)))


def _is_numbers(default: Setting | None) -> bool:
    return isinstance(default, tuple) and not (default and isinstance(default[0], str))


def _joined(key: str, values: Sequence[Setting]) -> str:
    numbers = any(_is_numbers(value) for value in values)
    return ("/" if numbers else ",").join(map(as_text, values))


def cell_name(values: Mapping[str, Setting], seed: int) -> str:
    """The name of a cell's folder, such as "scratch,per_class=50,seed=0".

    A name that is too long, or that holds characters which some file system refuses, ends in a hash of its values.
    """
    parts = [as_text(value) if key in LISTS else f"{key}={as_text(value)}" for key, value in values.items()]
    exact = ",".join([*(part.replace(",", "-") for part in parts), f"seed={seed}"])
    name = re.sub(r"[^\w.,=+-]", "_", exact, flags=re.ASCII)
    if name == exact and len(name) <= LETTERS_UP_TO:
        return name
    return f"{name[: LETTERS_UP_TO - 9]}-{_hash(parts)}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:8]


def merged(grid: Grid, other: Mapping[str, Any]) -> Grid:
    """A grid that also has the values and seeds of another one, as `record` returned it."""
    chosen = recipe(grid.recipe)
    over = {}
    for key, values in grid.over.items():
        older = [changed(chosen.settings, {key: text})[key] for text in other["over"][key]]
        over[key] = in_order(chosen, key, [*values, *older])
    return replace(grid, over=over, seeds=tuple(sorted({*grid.seeds, *other["seeds"]})))


def read_grid(record: Mapping[str, Any]) -> Grid:
    """The grid that `record` describes: its settings have the values of then, also where other defaults apply now.

    Raises ValueError where a setting was chosen that this version's recipe has not, or a value that it does not take.
    """
    chosen = recipe(record["recipe"])
    over = {
        key: tuple(changed(chosen.settings, {key: text})[key] for text in texts)
        for key, texts in record["over"].items()
    }
    then = {key: text for key, text in record["settings"].items() if key in chosen.settings} | record["set"]
    fixed = {key: changed(chosen.settings, {key: text})[key] for key, text in then.items()}
    return Grid(record["recipe"], fixed, over, tuple(record["seeds"]))


def check_cells(grid: Grid, cells: Sequence[Cell]) -> dict[str, str]:
    """Validate the settings of cells before any of them runs, by building their trainers.

    Returns:
        cell's name -> a name for the sources that the recipe trains for it, "" if it trains none. Cells whose sources
        are the same, by what identifies a run, have the same name.

    Raises:
        ValueError: a bad setting, with the cell that has it.
    """
    chosen = recipe(grid.recipe)
    by_values: dict[str, str] = {}
    names = {}
    for cell in cells:
        key = json.dumps({name: as_text(value) for name, value in cell.values.items()})
        if key not in by_values:
            try:
                by_values[key] = _sources(chosen, cell.settings, cell.seed)
            except ValueError as error:
                raise ValueError(f"{error} (in {cell.name})") from error
        names[cell.name] = by_values[key]
    return names


def _sources(chosen: Recipe, settings: Mapping[str, Setting], seed: int) -> str:
    """Build all trainers of a run, which validates its settings; a hash of the sources among them, "" without any."""
    records, leading = {}, True
    for part, trainer in chosen.trainers(settings, seed, None, False):
        leading = leading and chosen.is_source(part, seed, trainer)
        if leading:
            records[part] = run_record(trainer) | trainer._config()
    return _hash(records) if records else ""
