"""The folder of a training run: settings, tables, checkpoint, and a lock that keeps it to one process."""

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

from mtanytime.checks import Words, mismatch

Row = dict[str, Any]

_FORMAT = "mtanytime-1"
_LEFT_OVERS = {".lock", "config.json.tmp"}  # files of a run that died before it wrote config.json
_TEXT = ("source", "target")  # columns of layer names: a layer called "0" or "1.10" is not a number


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


class RunFolder:
    """A folder with one run: config.json, tables as CSV files, and checkpoint.pt.

    A checkpoint is written completely or not at all (temporary file, fsync, rename) and read without executing code
    from it. Rows are appended at every step; on resume, rows after the checkpoint's step are dropped. Before `held`,
    nothing is written and the folder is not locked.

    Args:
        path: the folder, which need not exist.
        config: the record of the run, which tells it from others.

    Raises:
        ValueError: the path is a file, or the folder holds another run (the settings that differ are named) or files
            that are not a run's.
        PermissionError: the folder is not writable.
    """

    def __init__(self, path: str | os.PathLike[str], config: Row) -> None:
        self.path = Path(path)
        self.config = json.loads(json.dumps(config, default=lambda number: number.item()))  # as read back
        self._lock = filelock.FileLock(self.path / ".lock", thread_local=False)
        self._files: dict[str, IO[str]] = {}
        self._known = self._version()
        self._check()

    def _check(self) -> None:
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not place.is_dir():
            raise mismatch("folder", f"a folder for the run at {self.path}", Words(f"{place}, which is a file"))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(f"folder: {place} is not writable; choose another folder for the run at {self.path}")
        if not self.path.exists():
            return
        expected, remedy = "an empty folder or the folder of this run", "choose another folder"
        path = self.path / "config.json"
        if not path.exists():
            if foreign := sorted({entry.name for entry in self.path.iterdir()} - _LEFT_OVERS):
                raise mismatch("folder", expected, Words(f"{self.path}, which holds {foreign[0]!r}"), remedy)
            return
        try:
            config = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise mismatch(str(path), "the record of a run", Words(f"a file that is not one ({error})")) from error
        if names := [k for k in {**self.config, **config} if config.get(k) != self.config.get(k)]:
            shown = "; ".join(f"{k}: there {config.get(k)!r}, here {self.config.get(k)!r}" for k in names[:4])
            more = f"; {len(names) - 4} more" if len(names) > 4 else ""
            came = Words(f"{self.path}, which already holds another run ({shown}{more})")
            raise mismatch("folder", expected, came, remedy)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder if needed and lock it for a block; RuntimeError if another process is training there."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RuntimeError(
                f"another process or loop is training in {self.path}; wait for its end or choose another folder"
            ) from error
        try:
            self._check()  # another run may have started here meanwhile
            if not (self.path / "config.json").exists():
                self._write("config.json", lambda file: file.write(json.dumps(self.config, indent=1).encode()))
            yield
        finally:
            for file in self._files.values():
                with suppress(OSError):  # a full disk: the rows that are lost come after the last checkpoint
                    file.close()
            self._files.clear()
            self._lock.release()

    @property
    def changed_elsewhere(self) -> bool:
        """Whether the checkpoint differs from the one that this object wrote or loaded last."""
        return self._version() != self._known

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU, or None if there is none. ValueError for a truncated or foreign file."""
        path = self.path / "checkpoint.pt"
        self._known = self._version()
        if self._known is None:
            return None
        expected = "a checkpoint that this library wrote"
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise mismatch(str(path), expected, Words(f"a truncated or foreign file ({reason})")) from error
        if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
            raise mismatch(str(path), expected, Words("a foreign file"))
        return checkpoint

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write the tables' rows and then a checkpoint to the disk. On OSError the checkpoint before it is kept."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._write("checkpoint.pt", lambda file: torch.save({"format": _FORMAT, **checkpoint}, file))
        except (OSError, RuntimeError) as error:
            # torch.save hides a failed write behind a RuntimeError about positions in the file.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            kept = "there is none before it" if self._known is None else "the one before it is kept"
            raise OSError(
                cause.errno, f"could not write a checkpoint ({cause.strerror}); {kept}", str(self.path)
            ) from cause
        self._known = self._version()

    def read(self, table: str, last_step: int) -> list[Row]:
        """A table's rows up to `last_step`."""
        rows = csv.DictReader(io.StringIO(self._rows(table, last_step).decode(), newline=""))
        return [{name: cell if name in _TEXT else _number(cell) for name, cell in row.items()} for row in rows]

    def trim(self, table: str, last_step: int) -> None:
        """Drop the rows after `last_step`, and an incomplete last line, from a table's file."""
        path = self.path / f"{table}.csv"
        if path.exists() and path.stat().st_size > (size := len(self._rows(table, last_step))):
            os.truncate(path, size)

    def append(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows to a table; a new table gets the keys of the first row as its header."""
        if table not in self._files:
            self._files[table] = (self.path / f"{table}.csv").open("a", newline="", encoding="utf-8")
        file = self._files[table]
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(rows[0])
        writer.writerows([row.values() for row in rows])
        file.flush()

    def write(self, table: str, rows: pd.DataFrame) -> None:
        """Write a complete table, which replaces the one of that name."""
        self._write(f"{table}.csv", lambda file: file.write(rows.to_csv(index=False).encode()))

    def _rows(self, table: str, last_step: int) -> bytes:
        """The bytes of a table's complete lines up to `last_step`; steps never decrease from line to line."""
        path = self.path / f"{table}.csv"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        if lines and not lines[0].startswith(b"step,"):
            columns = lines[0].decode(errors="replace").strip()
            raise mismatch(str(path), "a table with 'step' as its first column", Words(columns))
        try:
            while len(lines) > 1 and int(lines[-1].split(b",")[0]) > last_step:
                del lines[-1]
        except ValueError as error:
            step = lines[-1].split(b",")[0].decode(errors="replace")
            raise mismatch(f"{path}, column step", "whole numbers", step) from error
        return b"".join(lines)

    def _version(self) -> tuple[int, int] | None:
        """Identifies the present checkpoint file; None if there is none."""
        try:
            status = (self.path / "checkpoint.pt").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_mtime_ns

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file completely or not at all."""
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
