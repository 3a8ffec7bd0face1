"""Run folders with damaged, foreign or hostile files: refused in one line that names the file, or the stored run.

Property tests of `load_run`, of a trainer that would continue the run, and of the tables that it reads.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny_runs
import torch
from damage import OTHERS, PLAIN, Creates, altered, checked, damaged, hostile
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples

import mtanytime as mt
from mtanytime.training.run_folder import RunFolder
from mtanytime.training.stored_run import StoredRun

FEW = settings(max_examples=examples(6))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a transfer of three steps, with validation, that has finished."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    transfer(folder).train()
    return folder


def transfer(folder: Path) -> mt.TransferTrainer:
    """The trainer of the stored run."""
    return tiny_runs.transfer(folder, epochs=None, steps=3, batch_size=9, trace_every=1)


@contextmanager
def copied(stored: Path, name: str, content: bytes) -> Iterator[Path]:
    """A copy of the run's folder in which one file has another content; the file's path."""
    with TemporaryDirectory() as folder:
        shutil.copytree(stored, Path(folder) / "run")
        path = Path(folder) / "run" / name
        path.write_bytes(content)
        yield path


def saved(checkpoint: Any) -> bytes:
    """The bytes of a checkpoint's file."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getvalue()


def load(path: Path) -> StoredRun:
    """The network of the run that a file belongs to; after an error, the network given is as it was."""
    network = tiny_runs.network(dropout=0.3, seed=5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        return mt.load_run(path.parent, network)
    except ValueError:
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        raise


def resume(path: Path) -> mt.TransferTrainer:
    """The trainer for the run that a file belongs to."""
    return transfer(path.parent)


def check_same(run: StoredRun | mt.TransferTrainer | None, stored: Path) -> None:
    """What was loaded, if anything, is a run of this form; a finished one gives its result."""
    if isinstance(run, StoredRun):
        assert type(run.step) is int
        assert run.accuracy is None or type(run.accuracy) in (int, float, list)
        assert all(type(value) is str for value in run.classes or ())
        assert run.network(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    elif run is not None:
        assert [row["step"] for row in run.tables["log"]] == list(range(1, run.step + 1))
        assert all(type(value) is not str for row in run.tables["log"] for value in row.values())
        if run.step == 3 and run._scores is not None:
            assert len(run.train().log) == 3
        run.model(torch.zeros(1, 3, 8, 8))


@FEW
@given(st.data())
def test_damaged_checkpoints(stored: Path, data: st.DataObject) -> None:
    """Random, truncated and bit-flipped checkpoints: a checksum finds every change of what is read."""
    valid = (stored / "checkpoint.pt").read_bytes()
    with copied(stored, "checkpoint.pt", data.draw(damaged(valid))) as path:
        for read in (load, resume):
            run = checked(read, path)
            if run is not None:  # the change was in bytes that mean nothing, between two parts
                model = run.network if isinstance(run, StoredRun) else run.model
                best = torch.load(stored / "checkpoint.pt", weights_only=True)
                state = best["best"]["model"] if isinstance(run, StoredRun) else best["modules"]["model"]
                assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
                check_same(run, stored)


@FEW
@given(st.data())
def test_checkpoints_with_other_contents(stored: Path, data: st.DataObject) -> None:
    """Whole checkpoints in which an entry, at any depth, has another type or shape, is missing, or is renamed."""
    valid = torch.load(stored / "checkpoint.pt", weights_only=True)
    with copied(stored, "checkpoint.pt", saved(data.draw(altered(valid, OTHERS)))) as path:
        for read in (load, resume):
            check_same(checked(read, path), stored)


@FEW
@given(st.data())
def test_damaged_records(stored: Path, data: st.DataObject) -> None:
    """config.json as random bytes, damaged, or with settings of other types."""
    valid = (stored / "config.json").read_bytes()
    other = altered(json.loads(valid), PLAIN[:-6]).map(lambda record: json.dumps(record, default=str).encode())
    with copied(stored, "config.json", data.draw(st.one_of(damaged(valid), other))) as path:
        run = checked(load, path)
        assert run is None or isinstance(run.settings, dict)
        check_same(checked(resume, path), stored)


@FEW
@given(st.sampled_from(["log", "trace", "channels"]), st.data())
def test_damaged_tables(stored: Path, table: str, data: st.DataObject) -> None:
    """Damaged tables of a run: whole rows of rising steps with numbers, or the file and line at fault."""
    record = json.loads((stored / "config.json").read_bytes())
    with copied(stored, f"{table}.csv", data.draw(damaged((stored / f"{table}.csv").read_bytes()))) as path:
        rows = checked(lambda path: RunFolder(path.parent, record).read(path.stem, 3), path)
        for row in rows or []:
            names = {key for key, value in row.items() if type(value) is str}
            assert names <= {"source", "target"}
            assert row.keys() == rows[0].keys()
        assert (steps := [row["step"] for row in rows or []]) == sorted(steps)
        assert all(0 <= step <= 3 for step in steps)
        check_same(checked(resume, path), stored)


@pytest.mark.parametrize("read", [load, resume])
def test_pickles_that_execute_code(stored: Path, read: Callable[[Path], Any], tmp_path: Path) -> None:
    """Code in a checkpoint, alone, within a state or in a file of another form, is never executed."""
    mark = tmp_path / "executed"
    valid = torch.load(stored / "checkpoint.pt", weights_only=True)
    alone = hostile(mark)
    files = [("checkpoint.pt", content) for content in alone]
    files += [("checkpoint.pt", saved({**valid, key: Creates(mark)})) for key in ("modules", "network", "extra")]
    files += [("config.json", alone[0])] + [("log.csv", alone[0])] * (read is resume)
    for name, content in files:
        with copied(stored, name, content) as path:
            assert checked(read, path) is None
    assert not mark.exists()
