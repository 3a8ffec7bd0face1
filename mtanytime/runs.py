"""The folder of a training run: settings, tables, checkpoints, and the lock that keeps it to one process."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import torch
from torch import Tensor

Row = dict[str, Any]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors, values included."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


class RunFolder:
    """A folder that holds one run: config.json, its tables as CSV and checkpoint.pt.

    The checkpoint is written whole or not at all (temporary file, fsync, rename) and read without running code. Rows
    are appended as they come; on resume, those after the checkpoint's step are dropped. A second process is refused.

    Raises:
        ValueError: the folder holds something else: another run (the settings that differ are named), a checkpoint
            that is truncated or not from here, or files that are not a run.
        RuntimeError: another process is at work in it.
    """

    def __init__(self, path: str | os.PathLike[str], config: Row) -> None:
        self.path = Path(path)
        self.config = json.loads(json.dumps(config))
        self._lock = filelock.FileLock(self.path / ".lock")
        self._files: dict[str, Any] = {}
        self._check()

    def _check(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"wanted a folder for the run; {self.path} is a file")
        config = self.path / "config.json"
        if not config.exists():
            if any(entry.name != ".lock" for entry in self.path.iterdir()):
                raise ValueError(
                    f"{self.path} holds files but no config.json; wanted an empty folder or a run's folder"
                )
            return
        try:
            found = json.loads(config.read_text())
        except ValueError as error:
            raise ValueError(f"{config} is not readable: {error}") from error
        if found != self.config:
            names = sorted(k for k in {*found, *self.config} if found.get(k) != self.config.get(k))
            shown = "; ".join(f"{k}: there {found.get(k)!r}, here {self.config.get(k)!r}" for k in names[:4])
            raise ValueError(f"{self.path} already holds another run ({shown}); choose another folder")

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, on the CPU, or None where there is none yet."""
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        wanted = "a checkpoint that this library wrote"
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} is truncated or foreign ({reason}); wanted {wanted}") from error
        if not isinstance(checkpoint, dict) or checkpoint.get("format") != "mtanytime-1":
            raise ValueError(f"{path} is foreign; wanted {wanted}")
        return checkpoint

    def open(self) -> None:
        """Make the folder where needed and take it for this process."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RuntimeError(f"another process is training in {self.path}; wanted the folder to ourselves") from error
        if not (self.path / "config.json").exists():
            self._write("config.json", json.dumps(self.config, indent=1).encode())

    def close(self) -> None:
        """Give the folder back."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._lock.release()

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint; what the tables hold so far reaches the disk first."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        temporary = self.path / "checkpoint.pt.tmp"
        with temporary.open("wb") as file:
            torch.save({"format": "mtanytime-1", **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / "checkpoint.pt")

    def read(self, table: str, last_step: int) -> list[Row]:
        """A table's rows up to `last_step`; later ones, and a line cut short, are dropped from the file too."""
        path = self.path / f"{table}.csv"
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if not whole:
            path.unlink()
            return []
        columns = whole[0].strip().split(",")
        if "step" not in columns:
            raise ValueError(f"{path} lacks column 'step' (has: {', '.join(columns)}); wanted a table of this library")
        place = columns.index("step")
        kept = [line for line in whole[1:] if int(line.split(",")[place]) <= last_step]
        if len(kept) + 1 < len(lines):
            self._write(path.name, "".join([whole[0], *kept]).encode())
        return pd.read_csv(io.StringIO("".join([whole[0], *kept])), float_precision="round_trip").to_dict("records")

    def append(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows to a table; the first row names the columns."""
        if table not in self._files:
            self._files[table] = (self.path / f"{table}.csv").open("a", newline="")
        file = self._files[table]
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(rows[0])
        writer.writerows([row.values() for row in rows])
        file.flush()

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.tmp"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)
