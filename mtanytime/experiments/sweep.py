"""Run a grid of short runs, each in its own folder, on this machine or on a cluster, and collect their results."""

import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import filelock
import pandas as pd
import torch
from tqdm import tqdm

from mtanytime.checks import Words, mismatch, require
from mtanytime.console import printable, say
from mtanytime.experiments.cell import LOG, SOURCES, Job, read_result
from mtanytime.experiments.grid import Cell, Grid, check_cells, merged, read_grid
from mtanytime.experiments.recipe import as_text
from mtanytime.whole_files import write_whole

VERSION = sys.modules["mtanytime"].__version__  # imports go down only, and the package is loaded in any case
PACE = "checkpoint_seconds"  # a setting that changes no result
LISTED = {"methods": "method", "models": "model", "tasks": "task"}  # setting -> column of the results that it fills


@runtime_checkable
class Executor(Protocol):
    """Where jobs run: processes of this machine, or a cluster."""

    def prepare(self, count: int) -> None:
        """Get ready for this many jobs, as far as there is room."""
        ...

    def has_room(self) -> bool:
        """Whether another job may be started."""
        ...

    def start(self, job: Job) -> None:
        """Start a job."""
        ...

    def wait(self) -> list[tuple[str, str | None]]:
        """Wait a while for jobs to end: the name and error (None: it has a result) of each that did."""
        ...

    def stop(self) -> None:
        """Stop the running jobs at the end of their steps, so that they keep their checkpoints."""
        ...


class Outcome(NamedTuple):
    """A sweep's table of results, and one line of error for each cell that failed, by name."""

    table: pd.DataFrame
    failed: dict[str, str]


def sweep(grid: Grid, folder: Path, executor: Executor, threads: int = 1, progress: bool = True) -> Outcome:
    """Run the cells of a grid that are not done, and write FOLDER/results.csv.

    A cell that fails does not stop the others. A run that diverges is done: its row has no accuracy. Cells whose
    sources are the same share them.

    Args:
        grid: what to run. A folder with a sweep of the same recipe and settings gets further values and seeds.
        folder: the sweep's folder, which all machines must see at this path.
        executor: where to run; it is stopped at the end.
        threads: of torch per run; the last bits of results depend on it.
        progress: show a bar over the cells, and a line for each that ends.

    Raises:
        ValueError: a bad setting, or a folder that holds another sweep or other files; before anything is written.
        RuntimeError: another sweep is running in the folder.
        OSError: the results could not be written (a full disk); finished cells are kept.
    """
    try:
        folder = folder.absolute()
        kept = check_folder(grid, folder)
        missing = [cell for cell in grid.cells if _result(folder, grid, cell) is None]
        executor.prepare(len(missing))
        sources = check_cells(grid, missing)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            write_whole(folder / "sweep.json", json.dumps(kept.record() | {"versions": _versions(folder)}, indent=1))
            jobs = _jobs(grid, folder, missing, sources, threads)
            try:
                failed = _run(jobs, executor, len(grid.cells) - len(missing), progress)
            finally:
                table = collect(folder)
                header = f"# {kept.command}; mtanytime {VERSION}, torch {torch.__version__}\n"
                write_whole(folder / "results.csv", header + table.to_csv(index=False))
    finally:
        executor.stop()
    return Outcome(table, failed)


def check_folder(grid: Grid, folder: Path) -> Grid:
    """The grid with what the folder's sweep has beside it. ValueError for a folder with anything else."""
    expected, remedy = "an empty folder or the folder of this sweep", "choose another folder"
    if not folder.exists():
        return grid
    require(folder.is_dir(), "--out", expected, Words(f"{folder}, which is a file"), remedy)
    if not (folder / "sweep.json").exists():
        foreign = sorted({path.name for path in folder.iterdir()} - {".lock", "sweep.json.tmp"})
        require(not foreign, "--out", expected, Words(f"{folder}, which holds {', '.join(foreign[:1])!r}"), remedy)
        return grid
    there, here = read_sweep(folder), grid.record()
    different = []
    if there["recipe"] != here["recipe"]:
        different.append(f"recipe: there {there['recipe']}, here {here['recipe']}")
    elif list(there["over"]) != list(here["over"]):
        different.append(f"what varies: there {', '.join(there['over'])}, here {', '.join(here['over'])}")
    else:
        both = {**here["settings"], **there["settings"]}
        pairs = {key: (there["settings"].get(key), here["settings"].get(key)) for key in both}
        different += [f"{key}: there {a}, here {b}" for key, (a, b) in pairs.items() if a != b and key != PACE]
    came = Words(f"{folder}, which holds another sweep ({'; '.join(different[:4])})")
    require(not different, "--out", expected, came, remedy)
    return merged(grid, there)


def read_sweep(folder: Path) -> dict[str, Any]:
    """What a sweep's sweep.json holds. ValueError for a folder without one, or a file that is none."""
    path = folder / "sweep.json"
    require(
        path.is_file(),
        str(folder),
        "the folder of a sweep",
        Words("a folder without sweep.json"),
        "or a CSV file of results",
    )
    kinds = {"recipe": str, "settings": dict, "set": dict, "over": dict, "seeds": list}
    try:
        record = json.loads(path.read_bytes())
        if all(isinstance(record[name], kind) for name, kind in kinds.items()):
            return record
        reason = "values of other types"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise mismatch(str(path), "the record of a sweep", Words(f"a file that is not one ({reason})"))


def collect(folder: Path) -> pd.DataFrame:
    """The results of a sweep's finished cells, in the order of the grid: what was listed, what varied, and the rows.

    A column of the rows that has the name of a setting that varied, and other values, is called "used_NAME".
    """
    grid, rows = read_grid(read_sweep(folder)), []
    for cell in grid.cells:
        for row in (_result(folder, grid, cell) or {"rows": []})["rows"]:
            values = {key: value for key, value in cell.values.items() if LISTED.get(key) not in row}
            values = {key: as_text(value) if isinstance(value, tuple) else value for key, value in values.items()}
            used = {f"used_{key}": row[key] for key in values if key in row}
            listed = {column: row[column] for column in LISTED.values() if column in row}
            rows.append({**listed, **values, **{key: row[key] for key in row if key not in values}, **used})
    table = pd.DataFrame(rows)
    same = [f"used_{key}" for key in grid.over if f"used_{key}" in table and (table[key] == table[f"used_{key}"]).all()]
    return table.drop(columns=same)


def _result(folder: Path, grid: Grid, cell: Cell) -> dict[str, Any] | None:
    """A cell's result, None if it is not done. ValueError if the folder is that of another cell."""
    result = read_result(folder / cell.name)
    if result is not None:
        wanted = {"recipe": grid.recipe, "seed": cell.seed}
        wanted |= {key: as_text(value) for key, value in cell.settings.items() if key != PACE}
        there = {"recipe": result.get("recipe"), "seed": result.get("seed"), **result.get("settings", {})}
        # A setting that is newer than the result is not in it.
        other = [f"{key} {there[key]}, not {value}" for key, value in wanted.items() if there.get(key, value) != value]
        came = Words(f"one with {', '.join(other[:4])}")
        require(not other, str(folder / cell.name), "the result of this cell", came, "delete that folder")
    return result


def _versions(folder: Path) -> dict[str, str]:
    """The versions that the sweep was begun with; a line says so if they are others now."""
    here = {"mtanytime": VERSION, "torch": torch.__version__, "python": platform.python_version()}
    if not (folder / "sweep.json").exists():
        return here
    there = read_sweep(folder).get("versions", here)
    if there != here:
        say(f"note: the sweep was begun with {there} and goes on with {here}, so its last bits may differ")
    return there


def _jobs(
    grid: Grid, folder: Path, missing: Sequence[Cell], sources: Mapping[str, str], threads: int
) -> dict[str, tuple[Job, str | None]]:
    """Each job with the name of the job that must be done before it: that of the cell's sources."""
    jobs: dict[str, tuple[Job, str | None]] = {}
    for cell in missing:
        job = {"folder": str(folder), "name": cell.name, "recipe": grid.recipe, "seed": cell.seed, "threads": threads}
        job["settings"] = {key: as_text(value) for key, value in cell.settings.items()}
        job["sources"], before = sources[cell.name], None
        if job["sources"]:
            before = f"{SOURCES}/{job['sources']}"
            if read_result(folder / before) is None:
                jobs.setdefault(before, (job | {"name": before}, None))
            else:
                before = None
        jobs[cell.name] = (job, before)
    return jobs


def _run(jobs: Mapping[str, tuple[Job, str | None]], executor: Executor, done: int, progress: bool) -> dict[str, str]:
    """Run jobs as there is room, sources first. Returns the errors of those that failed."""
    waiting = sorted(jobs, key=lambda name: jobs[name][1] is not None)
    open_jobs, failed = set(jobs), {}
    with tqdm(total=done + len(jobs), initial=done, unit="run", disable=not progress, file=sys.stdout) as bar:
        while open_jobs:
            for name in list(waiting):
                job, before = jobs[name]
                if before in failed:
                    waiting.remove(name)
                    open_jobs.remove(name)
                    failed[name] = f"its source, {before}, failed"
                    bar.update()
                elif before not in open_jobs and executor.has_room():
                    waiting.remove(name)
                    executor.start(job)
            if not open_jobs:
                break
            for name, error in executor.wait():
                open_jobs.remove(name)
                if error is None and read_result(Path(jobs[name][0]["folder"]) / name) is None:
                    error = "it ended without a result"
                if error is not None:
                    failed[name] = error
                if progress:
                    bar.write(printable(_line(jobs[name][0], error)))
                bar.update()
    return failed


def _line(job: Job, error: str | None) -> str:
    """One line about a job that ended."""
    place = Path(job["folder"]) / job["name"]
    if error is not None:
        return f"{job['name']}: failed: {error}; see {place / LOG}"
    told = []
    for row in read_result(place)["rows"]:
        accuracy = row.get("accuracy", float("nan"))
        told.append("diverged" if accuracy != accuracy else f"{accuracy:.1%}")
    return f"{job['name']}: {' '.join(told) or 'trained'}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep the folder to one sweep, where its file system has locks; each cell has a lock of its own."""
    lock = filelock.FileLock(folder / ".lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RuntimeError(f"another sweep is running in {folder}; wait for its end") from error
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
