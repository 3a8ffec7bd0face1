"""The folder of a training run: settings, tables, checkpoints, and the lock that keeps it to one process."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock
import pandas as pd
import torch

Row = dict[str, Any]


_FORMAT = "mtanytime-1"


_OURS = {".lock", "config.json.tmp"}  # what a run that died before it had a config.json may leave behind


_TEXT = ("source", "target")  # columns of names: a layer called "0" or "1.10" is no number


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


class RunFolder:
    """A folder that holds one run: config.json, its tables as CSV and checkpoint.pt.

    The checkpoint is written whole or not at all (temporary file, fsync, rename) and read without running code. Rows
    are appended as they come; on resume, those after the checkpoint's step are dropped. Nothing is written, and nobody
    kept out, before `held`.

    Raises:
        ValueError: the folder holds something else: another run (the settings that differ are named), a checkpoint
            that is truncated or not from here, or files that are not a run.
        PermissionError: nothing can be written there.
    """

    def __init__(self, path: str | os.PathLike[str], config: Row) -> None:
        self.path = Path(path)
        self.config = json.loads(json.dumps(config, default=lambda number: number.item()))  # as it will be read back
        self._lock = filelock.FileLock(self.path / ".lock", thread_local=False)
        self._files: dict[str, IO[str]] = {}
        self._known = self._mark()
        self._check()

    def _check(self) -> None:
        there = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ValueError(f"wanted a folder for the run at {self.path}; {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"wanted a folder for the run at {self.path}; {there} cannot be written to")
        if not self.path.exists():
            return
        config = self.path / "config.json"
        if not config.exists():
            if foreign := sorted({entry.name for entry in self.path.iterdir()} - _OURS):
                raise ValueError(f"{self.path} holds no run but {foreign[0]!r}; wanted an empty folder or a run's")
            return
        try:
            found = dict(json.loads(config.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{config} is not the record of a run: {error}") from error
        if names := [k for k in {**self.config, **found} if found.get(k) != self.config.get(k)]:
            shown = "; ".join(f"{k}: there {found.get(k)!r}, here {self.config.get(k)!r}" for k in names[:4])
            more = f"; {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(f"{self.path} already holds another run ({shown}{more}); choose another folder")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder where needed and keep other processes out of it; RuntimeError if one is at work there."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RuntimeError(
                f"another process or loop is training in {self.path}; wanted the folder to ourselves"
            ) from error
        try:
            self._check()  # another run may have begun here meanwhile
            if not (self.path / "config.json").exists():
                self._write("config.json", lambda file: file.write(json.dumps(self.config, indent=1).encode()))
            yield
        finally:
            for file in self._files.values():
                with suppress(OSError):  # rows that a full disk does not take come after the last checkpoint
                    file.close()
            self._files.clear()
            self._lock.release()

    @property
    def moved_on(self) -> bool:
        """Whether the checkpoint is another one than we wrote or loaded last."""
        return self._mark() != self._known

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU, or None where there is none yet."""
        path = self.path / "checkpoint.pt"
        self._known = self._mark()
        if self._known is None:
            return None
        wanted = "a checkpoint that this library wrote"
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} is truncated or foreign ({reason}); wanted {wanted}") from error
        if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
            raise ValueError(f"{path} is foreign; wanted {wanted}")
        return checkpoint

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint; what the tables hold so far reaches the disk first. OSError keeps the old one."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._write("checkpoint.pt", lambda file: torch.save({"format": _FORMAT, **checkpoint}, file))
        except (OSError, RuntimeError) as error:
            # torch.save follows a failed write with a RuntimeError about positions in the file, which says nothing.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            kept = "there is none before it" if self._known is None else "the one before it is kept"
            raise OSError(
                cause.errno, f"could not write a checkpoint ({cause.strerror}); {kept}", str(self.path)
            ) from (cause)
        self._known = self._mark()

    def read(self, table: str, last_step: int) -> list[Row]:
        """A table's rows up to `last_step`."""
        rows = csv.DictReader(io.StringIO(self._rows(table, last_step).decode(), newline=""))
        return [{name: cell if name in _TEXT else _number(cell) for name, cell in row.items()} for row in rows]

    def trim(self, table: str, last_step: int) -> None:
        """Drop the rows after `last_step`, and a line cut short, from the file."""
        path = self.path / f"{table}.csv"
        if path.exists() and path.stat().st_size > (size := len(self._rows(table, last_step))):
            os.truncate(path, size)

    def append(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows to a table; the first row names the columns."""
        if table not in self._files:
            self._files[table] = (self.path / f"{table}.csv").open("a", newline="", encoding="utf-8")
        file = self._files[table]
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(rows[0])
        writer.writerows([row.values() for row in rows])
        file.flush()

    def write(self, table: str, rows: pd.DataFrame) -> None:
        """Write a table as a whole, which replaces one that is there."""
        self._write(f"{table}.csv", lambda file: file.write(rows.to_csv(index=False).encode()))

    def _rows(self, table: str, last_step: int) -> bytes:
        """The bytes of a table up to its last whole line of `last_step` or before: the steps only grow."""
        path = self.path / f"{table}.csv"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        if lines and not lines[0].startswith(b"step,"):
            columns = lines[0].decode(errors="replace").strip()
            raise ValueError(f"{path} is not a table of this library: wanted 'step' as first column; got {columns}")
        try:
            while len(lines) > 1 and int(lines[-1].split(b",")[0]) > last_step:
                del lines[-1]
        except ValueError as error:
            raise ValueError(f"{path} is not a table of this library: {error}") from error
        return b"".join(lines)

    def _mark(self) -> tuple[int, int] | None:
        """What tells one checkpoint file from the next."""
        try:
            status = (self.path / "checkpoint.pt").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_mtime_ns

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file whole or not at all."""
        temporary = self.path / f"{name}.tmp"
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
