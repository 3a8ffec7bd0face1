"""The folder of a training run: settings, tables, checkpoint, and a lock that keeps it to one process."""

import csv
import errno
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import filelock
import pandas as pd

from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.training.checkpoint import check_contents, read_checkpoint, write_checkpoint
from mtanytime.training.identity import Row, same_structure
from mtanytime.whole_files import whole_file, write_whole

_LEFT_OVERS = {".lock", "config.json.tmp"}  # files of a run that died before it wrote config.json
_TEXT = ("source", "target")  # columns of layer names: a layer called "0" or "1.10" is not a number


_BOM = b"\xef\xbb\xbf"  # the byte-order mark that Excel and Windows editors write before UTF-8
_LONE = "surrogatepass"  # names that are not UTF-8
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # NFS without a lock daemon and others
_LENGTH = ("epochs", "steps")  # settings that may grow from one session of a run to the next


def _number(text: str) -> int | float:
    if "_" in text:  # Python reads 1_000, which no table has
        raise ValueError(f"{text!r} is no number")
    try:
        return int(text)
    except ValueError:
        return float(text)


def _older(value: Any) -> Any:
    """What earlier versions recorded for a description or a dictionary of them; None for other values."""
    if isinstance(value, dict) and any(hasattr(part, "older") for part in value.values()):
        return {name: getattr(part, "older", part) for name, part in value.items()}
    return getattr(value, "older", None)


class RunFolder:
    """A folder with one run: config.json, tables as CSV files, and checkpoint.pt.

    A checkpoint is written completely or not at all (temporary file, fsync, rename) and read without executing code
    from it. Rows are appended at every step; on resume, rows after the checkpoint's step are dropped. Before `held`,
    nothing is written and the folder is not locked. If the file system has no locks, a warning says so once.

    A folder belongs to the run if its record is the same or differs only in descriptions: of a network with the same
    modules that prints differently, or in the form of an earlier version. It may also be of a run with fewer epochs or
    steps (`extends`).

    Args:
        path: the folder, which need not exist.
        config: the record of the run, which identifies it.
        structure: of the run's network, see `identity.structure_of`.

    Raises:
        ValueError: the path is a file, or the folder holds another run (the settings that differ are named) or files
            that are not a run's.
        PermissionError: the folder is not writable and holds no checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str], config: Row, structure: str | None = None) -> None:
        self.path = Path(path).expanduser()
        self.config = json.loads(json.dumps(config, default=lambda number: number.item()))  # as read back
        self._older = {k: older for k, v in config.items() if (older := _older(v)) is not None}
        self._structure = structure
        self._lock: filelock.BaseFileLock | None = filelock.FileLock(self.path / ".lock", thread_local=False)
        self._files: dict[str, IO[str]] = {}
        self._columns: dict[str, list[str]] = {}
        self.extends = False  # whether the folder's record has fewer epochs or steps
        self._known = self._version()
        self._check()

    def _check(self) -> None:
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not place.is_dir():
            raise mismatch("folder", f"a folder for the run at {self.path}", Words(f"{place}, which is a file"))
        self.read_only = not os.access(place, os.W_OK | os.X_OK)
        if self.read_only and self._version() is None:
            self.deny()
        if not self.path.exists():
            return
        expected, remedy = "an empty folder or the folder of this run", "choose another folder"
        path = self.path / "config.json"
        if not path.exists():
            if foreign := sorted({entry.name for entry in self.path.iterdir()} - _LEFT_OVERS):
                raise mismatch("folder", expected, Words(f"{self.path}, which holds {foreign[0]!r}"), remedy)
            return
        recorded = read_record(self.path)
        names = [k for k in {**self.config, **recorded} if recorded.get(k) != self.config.get(k)]
        others = [name for name in names if not self._takes(name, recorded)] if names else []
        self.extends = any(name in _LENGTH for name in names)
        if not others:
            return
        shown = "; ".join(f"{k}: there {recorded.get(k)!r}, here {self.config.get(k)!r}" for k in names[:4])
        more = f"; {len(names) - 4} more" if len(names) > 4 else ""
        if others == ["model"]:
            remedy += f", or, if only the network's printed form changed, write its new description into {path}"
        elif others == ["trace_every"] and self.extends:
            remedy += f", or give trace_every={recorded['trace_every']}, as there"
        came = Words(f"{self.path}, which already holds another run ({shown}{more})")
        raise mismatch("folder", expected, came, remedy)

    def _takes(self, name: str, recorded: Row) -> bool:
        """Whether a setting that differs from the recorded one leaves the recorded run the same, or makes it longer."""
        there, here = recorded.get(name), self.config.get(name)
        if name in _LENGTH:
            return isinstance(there, int) and isinstance(here, int) and there < here
        if name != "model" and name not in self._older:
            return False
        try:
            checkpoint = self._read()
            if checkpoint is None:
                return False
            check_contents(checkpoint)
        except ValueError:  # a damaged checkpoint says nothing about its run
            return False
        if "network" not in checkpoint:  # of an earlier version
            return there == self._older.get(name)
        if name != "model" or self._structure is None:
            return False
        inputs = [str(description).split()[2:] for description in (there, here)]  # of a `Normalized`, since version 0.2
        if all(inputs) and inputs[0] != inputs[1]:
            return False
        return same_structure(checkpoint["network"]["structure"], self._structure)

    def deny(self) -> NoReturn:
        """Raise PermissionError: the folder is not writable."""
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        raise PermissionError(f"folder: {place} is not writable; choose another folder for the run at {self.path}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder if needed and lock it for a block; RuntimeError if another process is training there."""
        if self.read_only:
            self.deny()
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            self._check()  # another run may have started here since
            if not (self.path / "config.json").exists() or read_record(self.path) != self.config:
                write_whole(self.path / "config.json", json.dumps(self.config, indent=1))
            if self.extends or self._version() is None:  # a curve is of a shorter run's end, or of a run begun again
                (self.path / "curve.csv").unlink(missing_ok=True)
                self.extends = False
            yield
        finally:
            for file in self._files.values():
                with suppress(OSError):  # a full disk: the rows that are lost come after the last checkpoint
                    file.close()
            self._files.clear()
            if self._lock is not None:
                self._lock.release()

    def _acquire(self) -> None:
        """Lock the folder, where its file system has locks."""
        if self._lock is None:
            return
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RuntimeError(
                f"another process or loop is training in {self.path}; wait for its end or choose another folder"
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            self._lock = None
            warnings.warn(
                f"{self.path}: its file system has no locks ({error}), so see to it that only one process trains there",
                stacklevel=2,
            )

    @property
    def changed_elsewhere(self) -> bool:
        """Whether the checkpoint differs from the one that this object wrote or loaded last."""
        return self._version() != self._known

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU, or None if there is none. ValueError for a damaged or foreign file."""
        self._known = self._version()
        return self._read()

    def _read(self) -> dict[str, Any] | None:
        return None if self._version() is None else read_checkpoint(self.path / "checkpoint.pt")

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write the tables' rows and then a checkpoint to the disk. On OSError the previous checkpoint is kept."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            with whole_file(self.path / "checkpoint.pt") as file:
                write_checkpoint(checkpoint, file)
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

    def read(self, table: str, last_step: int, steps: int = 0, every: int | None = None) -> list[Row]:
        """A table's rows up to `last_step`.

        Raises ValueError, with the line, for a table that cannot be read, and for one that has lost rows. A complete
        one has rows at every `every`-th step, if that is known, and at the last of the run's `steps`.
        """
        path, line = self.path / f"{table}.csv", 1
        try:
            lines = csv.reader(
                io.StringIO(self._rows(table, last_step).removeprefix(_BOM).decode(errors=_LONE), newline="")
            )
            header, rows, step = next(lines, []), [], 0
            if len(set(header)) < len(header):
                raise ValueError(f"two columns of one name: {', '.join(header)}")
            for cells in lines:
                line = lines.line_num
                row = zip(header, cells, strict=True)
                rows.append({name: cell if name in _TEXT else _number(cell) for name, cell in row})
                before, step = step, rows[-1]["step"]
                if not (type(step) is int and before <= step <= last_step):
                    raise ValueError(f"step {step} after step {before}")
        except (ValueError, csv.Error) as error:
            if str(error).startswith(one_line(str(path))):
                raise
            reason = Words(f"one that cannot be read in line {line} ({error})")
            raise mismatch(str(path), "a table as this library writes it", reason, "restore the file") from error
        counts = Counter(row["step"] for row in rows)
        due = [] if every is None else [*range(every, last_step + 1, every), *([steps] if last_step == steps else [])]
        short = next((step for step in due if counts[step] < max(counts.values(), default=1)), None)
        if short is not None:
            raise mismatch(str(path), f"all rows of step {short}", counts[short], "restore the file")
        return rows

    def trim(self, table: str, last_step: int) -> None:
        """Drop the rows after `last_step`, and an incomplete last line, from a table's file."""
        path = self.path / f"{table}.csv"
        if path.exists() and path.stat().st_size > (size := len(self._rows(table, last_step))):
            os.truncate(path, size)

    def append(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows to a table; a new table gets the keys of the first row as its header.

        Raises ValueError for a file or a row with other columns, which would be misread.
        """
        file = self._files.get(table) or self._opened(table, list(rows[0]))
        columns = self._columns[table]
        for row in rows:
            same, remedy = list(row) == columns, "give the same metrics at every step"
            require(same, table, f"a row with the columns {', '.join(columns)}", Words(", ".join(row)), remedy)
        writer = csv.writer(file, lineterminator="\n")
        in_quotes = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )  # before Python 3.13, "\r" needs it
        for row in rows:
            (in_quotes if any("\r" in str(cell) for cell in row.values()) else writer).writerow(row.values())
        file.flush()

    def _opened(self, table: str, columns: list[str]) -> IO[str]:
        """Open a table's file for appending rows with these columns, which a new file gets as its header."""
        path = self.path / f"{table}.csv"
        self._files[table] = file = path.open("a", newline="", encoding="utf-8", errors=_LONE)
        if file.tell() == 0:
            csv.writer(file, lineterminator="\n").writerow(columns)
        else:
            with path.open(newline="", encoding="utf-8-sig", errors=_LONE) as present:
                header = next(csv.reader(present))
            require(header == columns, str(path), f"the columns {', '.join(columns)}", Words(", ".join(header)))
        self._columns[table] = columns
        return file

    def write(self, table: str, rows: pd.DataFrame) -> None:
        """Write a complete table, which replaces the one of that name."""
        write_whole(self.path / f"{table}.csv", rows.to_csv(index=False))

    def _rows(self, table: str, last_step: int) -> bytes:
        """The bytes of a table's complete lines up to `last_step`; steps never decrease from line to line."""
        path = self.path / f"{table}.csv"
        lines = _records(path.read_bytes()) if path.exists() else []
        if lines and (not lines[-1].endswith(b"\n") or _opens_a_quote(lines[-1])):
            if re.search(rb"\n\d+,", lines[-1]):
                came = Words(f"a quotation mark without its end in the row of step {lines[-1].split(b',')[0].decode()}")
                raise mismatch(str(path), "a table as this library writes it", came, "restore the file")
            del lines[-1]
        if lines and not lines[0].removeprefix(_BOM).startswith(b"step,"):
            columns = lines[0].decode(errors="replace").strip()[:80]
            raise mismatch(str(path), "a table with 'step' as its first column", Words(columns))
        try:
            while len(lines) > 1 and int(lines[-1].split(b",")[0]) > last_step:
                del lines[-1]
        except ValueError as error:
            step = lines[-1].split(b",")[0].decode(errors="replace")[:80]
            raise mismatch(f"{path}, column step", "whole numbers", step) from error
        return b"".join(lines)

    def _version(self) -> tuple[int, int] | None:
        """Identifies the present checkpoint file; None if there is none."""
        try:
            status = (self.path / "checkpoint.pt").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_mtime_ns


def _records(data: bytes) -> list[bytes]:
    """The rows of a CSV file with their ends; a layer's name in quotes may hold line breaks."""
    records: list[bytes] = []
    for line in io.BytesIO(data):
        if records and _opens_a_quote(records[-1]):
            records[-1] += line
        else:
            records.append(line)
    return records


def _opens_a_quote(record: bytes) -> bool:
    return record.count(b'"') % 2 == 1


def read_record(folder: Path) -> Row:
    """The record of the run in a folder, its config.json. ValueError for a file that is not one."""
    path, reason = folder / "config.json", "it holds no settings by name"
    try:
        record = json.loads(path.read_bytes())
        if isinstance(record, dict):
            return record
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise mismatch(str(path), "the record of a run", Words(f"a file that is not one ({reason})"))
