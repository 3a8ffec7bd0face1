"""Run one cell of a sweep in its folder, or the sources that several cells share; also a process that does so.

`python -m mtanytime.experiments.cell` reads jobs from stdin, one JSON object per line, and answers each with one line.
It stops, with a checkpoint, when stdin ends: also when the sweep that started it was killed.
"""

import _thread
import contextlib
import errno
import json
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from mtanytime.checks import Words, mismatch, one_line
from mtanytime.whole_files import whole_file, write_whole

SOURCES = "sources"  # folder of the sources that cells share
RESULT, LOG, LOCK = "result.json", "log.txt", "sweep.lock"
BEAT = 5.0  # seconds between signs of life in a cell's lock
STALE = 90.0  # seconds without one after which a lock is that of a dead machine
PATIENCE = 60.0  # seconds for running cells to reach the end of their step when the sweep is stopped
WAIT = 600.0  # seconds to wait for another process in the cell's folder
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

Job = Mapping[str, Any]  # folder, name, recipe, settings (as text), seed, sources (a name, or ""), threads


def run_job(job: Job) -> str | None:
    """Run a cell, or what remains of it, write its rows to result.json and return None, or one line of error.

    What the run prints goes to log.txt in the cell's folder, with the traceback of an error. A cell that has a result
    is left as it is.
    """
    folder = Path(job["folder"])
    place = folder / job["name"]
    if not (folder / "sweep.json").exists():
        return f"{folder}: the sweep's folder is not on {platform.node()}; all machines must share it"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / LOG).open("a", encoding="utf-8") as log, _output_to(log):
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} on {platform.node()}, process {os.getpid()}", flush=True)
            try:
                with held(place):
                    if read_result(place) is None:
                        _write_result(place, job, _rows(job, folder, place))
            except Exception:
                traceback.print_exc(file=log)
                raise
    except Exception as error:
        return one_line(f"{type(error).__name__}: {error}", 300)
    return None


def _rows(job: Job, folder: Path, place: Path) -> list[dict[str, Any]]:
    """The rows of a cell; none for sources."""
    import torch

    from mtanytime.experiments.recipe import changed
    from mtanytime.experiments.runner import recipe, run

    torch.set_num_threads(job["threads"])
    if Path(job["name"]).parent.name != SOURCES:
        if job["sources"]:
            _link_sources(folder / SOURCES / job["sources"], place)
        return run(job["recipe"], place, [job["seed"]], job["settings"], progress=False).table.to_dict("records")
    chosen = recipe(job["recipe"])
    settings = changed(chosen.settings, job["settings"])
    for part, trainer in chosen.trainers(settings, job["seed"], place, False):
        if not chosen.is_source(part, job["seed"], trainer):
            break
        trainer.origin = {"recipe": job["recipe"], "part": part, "settings": settings}
        trainer.train()
    return []


def _link_sources(sources: Path, place: Path) -> None:
    """Give a cell the finished runs of its sources: the checkpoint as a hard link, if possible, or else as a copy."""
    for run in sorted(path.parent for path in sources.glob("*/checkpoint.pt")):
        here = place / run.name
        if (here / "checkpoint.pt").exists():
            continue
        here.mkdir(exist_ok=True)
        for table in [*run.glob("*.csv"), run / "config.json"]:
            shutil.copyfile(table, here / table.name)
        try:
            os.link(run / "checkpoint.pt", here / "checkpoint.pt")
        except OSError:
            with (run / "checkpoint.pt").open("rb") as file, whole_file(here / "checkpoint.pt") as copy:
                shutil.copyfileobj(file, copy)


def read_result(place: Path) -> dict[str, Any] | None:
    """What a cell's result.json holds; None if the cell is not done. ValueError for a file that is not one."""
    path = place / RESULT
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise mismatch(str(path), "the result of a cell", Words(f"a file that is not one ({error})")) from error
    known = isinstance(result, dict) and isinstance(result.get("rows"), list)
    if not known or not all(isinstance(row, dict) for row in result["rows"]):
        raise mismatch(str(path), "the result of a cell", Words("a file that is not one (no rows)"))
    return result


def _write_result(place: Path, job: Job, rows: list[dict[str, Any]]) -> None:
    result = {name: job[name] for name in ("recipe", "settings", "seed")} | {"rows": rows}
    write_whole(place / RESULT, json.dumps(result, indent=1, default=lambda number: number.item()))


@contextlib.contextmanager
def held(place: Path, wait: float = WAIT) -> Iterator[None]:
    """Lock a cell's folder for a block, after waiting for a process that is still stopping there.

    The owner of the lock gives signs of life. A lock without any is that of a machine that died, which some network
    file systems keep: it is removed, with those of the cell's runs. RuntimeError after `wait` seconds.
    """
    path = place / LOCK
    lock = filelock.FileLock(path, thread_local=False)
    started = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except filelock.Timeout as error:
            if _silent(path) > STALE:
                for left in place.rglob("*.lock"):
                    left.unlink(missing_ok=True)
                lock = filelock.FileLock(path, thread_local=False)
            elif time.monotonic() - started > wait:
                raise RuntimeError(f"another process is training in {place}; wait for its end") from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            yield  # a file system without locks, of which the run folders warn
            return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        lock.release()


def _beat(path: Path, ended: threading.Event) -> None:
    while True:
        try:
            os.utime(path)
        except FileNotFoundError:  # the lock was taken away: its signs of life were not seen
            return
        except OSError:  # such as a network file system that is gone for a moment
            pass
        if ended.wait(BEAT):
            return


def _silent(path: Path) -> float:
    """Seconds since a lock's last sign of life, by the clock of its file system."""
    now = path.with_name(f".now-{os.getpid()}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        now.unlink(missing_ok=True)


@contextlib.contextmanager
def _output_to(log: Any) -> Iterator[None]:
    """Write what the block prints to a file, also what libraries print past Python."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        log.flush()
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def main() -> None:
    """Run the jobs that come on stdin until it ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        import mtanytime.experiments.runner  # noqa: F401  # takes seconds, meanwhile the sweep prepares the first job

        while line := jobs.get():
            job = json.loads(line)
            error = run_job(job)
            print(json.dumps({"name": job["name"], "error": error}), file=answers, flush=True)
    os._exit(0)  # a thread that still waits for stdin would delay the end


def _read(jobs: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        jobs.put(line)
    jobs.put("")
    _thread.interrupt_main()  # stop what is running, at the end of its step; os.kill would kill on Windows


if __name__ == "__main__":
    main()
