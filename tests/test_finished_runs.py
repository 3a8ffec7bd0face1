"""Runs on odd disks and after their end: no locks, read-only, more epochs, an editor's mark, a flipped bit."""

import errno
import os
import warnings
from pathlib import Path

import filelock
import pandas as pd
import pytest
import torch
from tiny_runs import end_of, network, trainer, transfer

import mtanytime as mt
from mtanytime.training import run_folder
from mtanytime.training.run_folder import RunFolder


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_without_locks(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without locks (NFS without its daemon): one warning with the path, and the same run bit for bit."""
    trainer(tmp_path / "locked", epochs=2).train()

    def no_locks(_: filelock.FileLock) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "_acquire", no_locks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path / "free", epochs=2)
        next(iter(run))
        run.train()
    said = [str(warning.message) for warning in caught if "locks" in str(warning.message)]
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'free'}: its file system has no locks")
    assert end_of(tmp_path / "free") == end_of(tmp_path / "locked")


def test_another_error_of_the_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is no disk without locks."""

    def broken(_: filelock.FileLock) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filelock.FileLock, "_acquire", broken)
    with pytest.raises(OSError, match="Input/output error"):
        trainer(tmp_path / "run", epochs=1).train()


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colleague's finished run is read, also by load_run, and nothing is written; an unfinished one is refused."""
    finished = trainer(tmp_path / "run", epochs=2).train()
    for report in trainer(tmp_path / "begun", epochs=2):
        if report.step == 2:
            break
    access, writes = os.access, []
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))  # root may write
    for method in ("_opened", "_acquire"):
        monkeypatch.setattr(RunFolder, method, lambda *_: writes.append(True))
    for function in ("whole_file", "write_whole"):
        monkeypatch.setattr(run_folder, function, lambda *_: writes.append(True))
    run = trainer(tmp_path / "run", epochs=2)
    result = run.train()
    assert (result.accuracy, result.last_accuracy, result.best_epoch) == (
        finished.accuracy,
        finished.last_accuracy,
        finished.best_epoch,
    )
    pd.testing.assert_frame_equal(result.log, finished.log)
    run.load_best()
    loaded = mt.load_run(tmp_path / "run", network(dropout=0.3))
    assert loaded.accuracy == finished.accuracy
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])
    with pytest.raises(PermissionError, match=r"begun is not writable; choose another folder"):
        trainer(tmp_path / "begun", epochs=2)
    assert writes == []


@pytest.mark.parametrize("validation", [0.25, None])
@pytest.mark.parametrize("length", ["epochs", "steps"])
def test_more_epochs_for_a_finished_run(length: str, validation: float | None, tmp_path: Path) -> None:
    """A finished run with a constant learning rate goes on, and ends bit for bit as a longer one."""
    short, long = ({"epochs": 2}, {"epochs": 3}) if length == "epochs" else ({"steps": 8}, {"steps": 12})
    settings = {"epochs": None, "schedule": "constant", "validation": validation}
    trainer(tmp_path / "grown", **settings | short).train()
    grown = trainer(tmp_path / "grown", **settings | long).train()
    whole = trainer(tmp_path / "whole", **settings | long).train()
    assert (grown.accuracy, grown.last_accuracy, grown.best_epoch) == (
        whole.accuracy,
        whole.last_accuracy,
        whole.best_epoch,
    )
    assert end_of(tmp_path / "grown") == end_of(tmp_path / "whole")
    assert (tmp_path / "grown" / "config.json").read_text() == (tmp_path / "whole" / "config.json").read_text()
    with pytest.raises(ValueError, match=f"another run .{length}: there"):
        trainer(tmp_path / "grown", **settings | short)


def test_a_schedule_that_depends_on_the_epochs(tmp_path: Path) -> None:
    """With a cosine the steps that are done would have had other learning rates: refused with the first of them."""
    trainer(tmp_path, schedule="cosine", epochs=2).train()
    before = end_of(tmp_path)
    with pytest.raises(ValueError, match=r"^epochs: expected the number of epochs in .*cosine.*got 4, with learning"):
        trainer(tmp_path, schedule="cosine", epochs=4)
    assert end_of(tmp_path) == before


def test_tables_saved_by_an_editor(tmp_path: Path) -> None:
    """A spreadsheet saves tables with a byte-order mark or other line ends; the run goes on with the same rows."""
    whole = transfer(None, steps=6, epochs=None).train()
    for report in transfer(tmp_path, steps=6, epochs=None):
        if report.step == 4:
            break
    for name, end in (("log.csv", b"\r\n"), ("trace.csv", b"\n")):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", end))
    result = transfer(tmp_path, steps=6, epochs=None).train()
    for name in ("log", "trace", "channels"):
        pd.testing.assert_frame_equal(
            result.tables[name].drop(columns="seconds", errors="ignore"),
            whole.tables[name].drop(columns="seconds", errors="ignore"),
        )
    pd.testing.assert_frame_equal(pd.DataFrame(transfer(tmp_path, steps=6, epochs=None).tables["log"]), result.log)


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    """A disk that flips one bit of one weight would change the answers without a word: torch compares no checksum."""
    trainer(tmp_path, epochs=1).train()
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["modules"]["model"]["0.weight"].numpy().tobytes()
    at = content.index(weight) + len(weight) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    torch.load(path, weights_only=True)  # reads it all the same
    for read in (lambda: trainer(tmp_path, epochs=1), lambda: mt.load_run(tmp_path, network(dropout=0.3))):
        with pytest.raises(ValueError, match=r"checkpoint\.pt: expected .*the checksum of its part .* is wrong"):
            read()
