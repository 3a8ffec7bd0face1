"""Run or plan an experiment by name, and write its tables.

A recipe is a sequence of trainers, each with its own run folder below the recipe's. A recipe that was stopped at any
point therefore continues from there, and one that has finished only reads its results.
"""

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from mtanytime.checks import Words, mismatch, require
from mtanytime.console import say
from mtanytime.devices import processor
from mtanytime.experiments import (
    anytime_recipes,
    baseline_recipes,
    map_recipes,
    paper_recipes,
    planted_recipes,
    practitioner_recipes,
    transfer_recipes,
)
from mtanytime.experiments.recipe import Recipe, Results, Setting, changed, nearest
from mtanytime.experiments.search_run import SearchRun, trial_rows
from mtanytime.measure.operators import formulas
from mtanytime.training.stored_run import StoredRun, load_run, read_run
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import MapSearch, TransferTrainer
from mtanytime.whole_files import temporary_name, write_whole

RECIPES: dict[str, Recipe] = {
    **transfer_recipes.RECIPES,
    **baseline_recipes.RECIPES,
    **map_recipes.RECIPES,
    **planted_recipes.RECIPES,
    **practitioner_recipes.RECIPES,
    **paper_recipes.RECIPES,
    **anytime_recipes.RECIPES,
}


def recipe(name: str) -> Recipe:
    """The recipe of this name. ValueError, with the nearest name, for an unknown one."""
    if name not in RECIPES:
        raise mismatch("recipe", "the name of a recipe", name, nearest(name, RECIPES))
    return RECIPES[name]


def run(
    name: str,
    folder: str | PathLike[str],
    seeds: Sequence[int] = (0,),
    changes: Mapping[str, Setting] | None = None,
    progress: bool = True,
) -> Results:
    """Run a recipe, or what remains of it, for one seed after another.

    A run that diverges gets a row without accuracy, and the remaining runs continue.

    Args:
        name: a key of `RECIPES`.
        folder: the recipe's folder, with one run folder per trained network.
        seeds: one or more different seeds.
        changes: settings to override (see `recipe.changed`).
        progress: print the name and a progress bar of each run.

    Raises:
        ValueError: an unknown recipe or a bad setting, before anything is written; or a run folder that holds another
            run, when that run's turn comes.
        FloatingPointError: the source diverged.
    """
    chosen, folder = recipe(name), Path(folder).expanduser()
    settings = changed(chosen.settings, changes or {})
    distinct = len(set(seeds)) == len(seeds) > 0
    require(distinct, "seeds", "one or more different seeds", list(seeds))
    for _ in chosen.trainers(settings, seeds[0], None, False):
        pass  # each trainer validates its settings when it is built
    rows, maps, trials = [], [], []
    for seed in seeds:
        for part, trainer in chosen.trainers(settings, seed, folder, progress):
            trainer.origin = {"recipe": name, "part": part, "settings": settings}
            beta = getattr(trainer, "beta", 0.0)
            label = f"{part}, seed {seed}" + f", β {beta:g}" * (beta > 0)
            if progress:
                say(label)
            try:
                result = trainer.train()
            except FloatingPointError as error:
                result = None
                if not chosen.rows(part, seed, trainer, None):  # without a source there is nothing to transfer
                    raise
                say(f"{label} diverged: {error}")
            rows += chosen.rows(part, seed, trainer, result)
            if result is not None and isinstance(trainer, TransferTrainer) and trainer.meta_optimizer is not None:
                keys, trace = {"method": part, "seed": seed, "beta": beta}, result.trace
                maps.append(trace[trace["step"] == trace["step"].max()].assign(**keys)[[*keys, *trace.columns]])
            if isinstance(trainer, SearchRun) and isinstance(trainer.searched, MapSearch):
                keys, trace = {"method": part, "seed": seed, "beta": beta}, trainer.searched.map.trace
                maps.append(trace.assign(**keys)[[*keys, *trace.columns]])
                trials += [{"method": part, "seed": seed} | row for row in trial_rows(trainer.searched)]
    return Results(
        pd.DataFrame(rows),
        pd.concat(maps, ignore_index=True) if maps else None,
        pd.DataFrame(trials) if trials else None,
    )


def load_part(folder: Path, **options: Any) -> StoredRun:
    """Load a trained network of a recipe from its run folder, such as OUT/l2t-seed0; `options` are those of `load_run`.

    Raises ValueError as `load_run`, and for a run that no recipe made, or a recipe of version 0.1.
    """
    checkpoint, _ = read_run(folder)
    about = checkpoint.get("network", {})
    remedy = "load it with mtanytime.load_run(folder, model), which mtanytime.export takes"
    require(bool(about.get("origin")), "run", "the run folder of a recipe's network", str(folder), remedy)
    origin, classes = about["origin"], about.get("classes")
    kinds = {"recipe": str, "part": str, "settings": dict}
    known = bool(classes) and all(isinstance(origin.get(key), kind) for key, kind in kinds.items())
    require(known, "run", "a run with its recipe, part, settings and classes", str(folder), remedy)
    build = recipe(origin["recipe"]).network
    require(build is not None, "run", "the run folder of a recipe that builds its networks alone", str(folder), remedy)
    try:
        network = build(origin["part"], origin["settings"], len(classes))
    except (KeyError, TypeError, ValueError) as error:
        expected, came = f"the settings of a network of {origin['recipe']}", Words(f"others ({error!r})")
        raise mismatch(str(folder), expected, came, remedy) from error
    return load_run(folder, network, **options)


def plan(
    name: str, folder: Path, seeds: Sequence[int] = (0,), changes: Mapping[str, Setting] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what `run` would do with these arguments, without writing: one row per network, or search and training.

    Columns: part, seed, beta, steps, done, macs (multiply-adds of all steps) and seconds (of the remaining steps,
    without the final test). A step or two of each network are run and timed here, and their multiply-adds are counted
    by torch's flop counter: with `meta_every`, one with a lookahead and one without. Further seeds are assumed to cost
    the same as the first. A search counts as not begun, and without the steps that learn channels; each of its trials
    counts as a training with all pairs whose source runs, so as more than it costs.
    """
    chosen = recipe(name)
    settings = changed(chosen.settings, changes or {})
    costs: dict[str, tuple[float, float]] = {}
    for seed in seeds:
        for part, trainer in chosen.trainers(settings, seed, folder, False):
            if seed != seeds[0] and chosen.is_source(part, seed, trainer):
                continue  # all seeds share it
            searches = isinstance(trainer, SearchRun)
            stepping, steps = (trainer.plain, trainer.planned_steps) if searches else (trainer, trainer.steps)
            beta = getattr(stepping, "beta", 0.0)
            if part not in costs:
                costs[part] = _step_cost(stepping) if steps else (0, 0.0)  # a fitted probe has no steps
            macs, seconds = costs[part]
            yield {
                "part": part,
                "seed": seed,
                "beta": beta,
                "steps": steps,
                "done": trainer.step,
                "macs": round(macs * steps),
                "seconds": seconds * (steps - trainer.step),
            }


def _step_cost(trainer: Trainer) -> tuple[float, float]:
    """Multiply-adds and seconds of a step on the first batch, a full one; the mean over the steps of a run.

    The network's weights are restored, because it may be a later trainer's source; the trainer is no longer usable.
    """
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if isinstance(trainer, TransferTrainer):
        beta = min(trainer.beta, 0.5)  # costs the same and does not diverge
        trainer.lookahead = replace(trainer.lookahead, beta=beta)
    images, labels = (part.to(trainer.device) for part in next(trainer.batches.epoch(0)))
    trainer.model.train()
    learns = isinstance(trainer, TransferTrainer) and trainer.meta_optimizer is not None
    every = trainer.transfer_settings.meta_every if learns else 1
    done, costs = trainer.step, []
    for step in range(min(every, 2)):  # the step after the one that looks ahead is a plain one
        trainer.step = step
        counter = FlopCounterMode(display=False, custom_mapping=formulas())
        counter.mod_tracker = _NoTracker()
        with counter:
            trainer.train_on_batch(images, labels)  # also the warm-up
        started = time.perf_counter()
        trainer.train_on_batch(images, labels)
        costs.append((counter.get_total_flops() / 2, time.perf_counter() - started))
    trainer.step = done
    trainer.model.load_state_dict(before)
    looking = math.ceil(trainer.steps / every) / trainer.steps
    macs, seconds = (looking * first + (1 - looking) * last for first, last in zip(costs[0], costs[-1], strict=True))
    return macs, seconds


class _NoTracker(ModuleTracker):
    """Count the total only: the hooks of torch's tracker, which counts by module, make autograd.grad fail."""

    def __enter__(self) -> "_NoTracker":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def check_new_csv(csv: Path, maps: bool = False) -> None:
    """Check before hours of work that `write_results` can write its file, or, with `maps`, all of its files.

    ValueError if one exists, OSError if it cannot be written.
    """
    for file in (csv, *((_beside(csv, name) for name in ("maps", "trials")) if maps else ())):
        require(not file.exists(), "csv", "a file that does not exist yet", str(file), "delete or rename it first")
    csv.parent.mkdir(parents=True, exist_ok=True)
    temporary_name(csv).touch()
    temporary_name(csv).unlink()


def _beside(csv: Path, name: str) -> Path:
    return csv.with_name(f"{csv.stem}_{name}{csv.suffix}")


def write_results(results: Results, csv: Path, command: str, note: str = "") -> None:
    """Write the results to `csv`, and beside it the learned maps to NAME_maps.csv and the trials to NAME_trials.csv.

    Each file starts with a comment line that states the command, the processor and the versions; that of the results
    ends with the note. The results come last, so that a file of results is never without the others.
    """
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    header = f"# {command}; {processor()}, {threads} thread{'s' if threads > 1 else ''}; {versions}"
    for name, table in (("maps", results.maps), ("trials", results.trials)):
        if table is not None:
            write_whole(_beside(csv, name), f"{header}\n" + table.to_csv(index=False))
    write_whole(csv, f"{header}{f'; {note}' if note else ''}\n" + results.table.to_csv(index=False))


def which_weights(table: pd.DataFrame) -> str:
    """Which step's weights the accuracies in a recipe's results belong to, in words."""
    if "last_accuracy" not in table:
        return "accuracy after the last step"
    return "accuracy at the best validation epoch (the last one without validation), last_accuracy after the last"
