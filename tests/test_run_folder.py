"""The folder of a run: checkpoints are complete, tables exact, and foreign files are refused."""

import errno
import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from tiny_runs import Begin, State, end_of, trainer, transfer
from torch import nn

from mtanytime.training.run_folder import RunFolder

CONFIG = {"trainer": "Trainer", "lr": 0.1}


# Disks.


@pytest.mark.parametrize("where", ["torch.save", "fsync", "table"])
def test_full_disk(tmp_path: Path, uninterrupted: State, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A full disk stops the run with a clear error; the last good checkpoint stays complete, and the run resumes."""
    folder = tmp_path / "run"
    run = transfer(folder)
    for report in run:
        if report.step == 5:
            break
    before = (folder / "checkpoint.pt").read_bytes()
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(*_: object) -> None:
        raise no_space

    def save(_state: object, file: Any) -> None:
        try:
            file.write(b"half of it")
            raise no_space
        except OSError:  # as in torch, whose writer fails again when it closes
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    with monkeypatch.context() as patch:
        if where == "torch.save":
            patch.setattr(torch, "save", save)
        elif where == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(RunFolder, "append", full)
        wanted = "No space left" if where == "table" else r"could not write a checkpoint \(No space left.*is kept.*run"
        with pytest.raises(OSError, match=wanted) as caught:
            run.train()
        assert caught.value.errno == errno.ENOSPC
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob("*.tmp"))
    run.train()  # with free space, the same trainer continues
    assert end_of(folder) == uninterrupted


def test_a_checkpoint_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps only synchronized data: first the tables, then the complete new file, then the rename."""
    folder, synced = RunFolder(tmp_path, CONFIG), []
    fsync, replace = os.fsync, Path.replace

    def state(path: Path) -> tuple[int, int]:
        return path.stat().st_ino, path.stat().st_size

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))

    def checked(self: Path, target: Path) -> Path:
        assert synced == [state(tmp_path / "log.csv"), state(self)]
        return replace(self, target)

    with folder.held():
        folder.append("log", [{"step": 1}])
        folder.save({"step": 1})
        folder.append("log", [{"step": 2}])
        with (tmp_path / "checkpoint.pt").open("rb") as old, monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            patch.setattr(Path, "replace", checked)
            folder.save({"step": 2})
            assert torch.load(old, weights_only=True)["step"] == 1
    assert folder.load()["step"] == 2


def test_a_really_full_file(tmp_path: Path, begin: Begin) -> None:
    """torch hides a failed write behind an error about file positions; the run's error names the cause."""
    folder = RunFolder(tmp_path / "run", CONFIG)
    with folder.held():
        folder.save({"step": 0})
        ours, theirs = multiprocessing.Pipe()
        begin(tiny_runs.save_beyond_the_limit, tmp_path / "other", theirs)
        message = ours.recv()
    assert "could not write a checkpoint (File too large); there is none before it" in message
    assert not list((tmp_path / "other").glob("checkpoint*"))


# Foreign files.


def refused(folder: Path, match: str, **options: Any) -> None:
    """Check that a trainer for this folder is refused and changes nothing."""

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    with pytest.raises(ValueError, match=match):
        trainer(folder, **options)
    assert content() == before


def test_another_run_is_named(tmp_path: Path) -> None:
    """The error names the settings that differ from those of the run in the folder."""
    trainer(tmp_path).train()
    refused(
        tmp_path,
        r"^folder: .* already holds another run \(epochs: there 3, here 4; lr: there 0.05, here 0.01\); choose",
        epochs=4,
        lr=0.01,
    )
    refused(tmp_path, "model: there 'Sequential", model=tiny_runs.network(dropout=0.4))
    refused(tmp_path, "train: there 'coloured: 18 images", data=tiny_runs.task(seed=1))
    refused(tmp_path, "loss: there 'cross_entropy'.*label_smoothing", loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    refused(tmp_path, "augment: there .*'padding': 1.* here .*'padding': 2", augment=tiny_runs.crop_flip(2))
    with pytest.raises(ValueError, match="trainer: there 'Trainer', here 'TransferTrainer'"):
        transfer(tmp_path)


def test_foreign_files(tmp_path: Path) -> None:
    """A folder with other files, or with another config.json, is refused."""
    (tmp_path / "thesis.tex").write_text("important")
    refused(
        tmp_path,
        "^folder: expected an empty folder or the folder of this run, got .*, which holds 'thesis.tex'; choose",
    )
    for text, reason in (
        ("{", "config.json: expected the record of a run, got a file that is not one"),
        ("[1, 2]", "config.json: expected the record of a run, got a file that is not one"),
        ('{"a": 1}', "trainer: there None"),
    ):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, reason)
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        refused(path, "^folder: expected a folder for the run at .*, got .*thesis.tex, which is a file")


def test_a_place_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unwritable folder is refused when the trainer is made, not after the first epoch."""
    denied = tmp_path / "denied"
    denied.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != denied)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"^folder: .*denied is not writable; choose another"):
        trainer(denied / "deep" / "run")
    assert not (denied / "deep").exists()


def test_broken_checkpoints(tmp_path: Path) -> None:
    """A checkpoint that is truncated, foreign or of another run is refused with the reason, and no code in it runs."""
    trainer(tmp_path).train()
    path, mark = tmp_path / "checkpoint.pt", tmp_path.parent / "code ran"
    good = path.read_bytes()
    content = torch.load(path, weights_only=True)

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(mark),)

    for size in (0, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        refused(
            tmp_path,
            r"checkpoint.pt: expected a checkpoint that this library wrote, got a truncated or foreign file \(",
        )
    for foreign in (torch.zeros(3), {"model": tiny_runs.network().state_dict()}, [1, 2]):
        torch.save(foreign, path)
        refused(tmp_path, "checkpoint.pt: expected a checkpoint that this library wrote, got a foreign file")
    path.write_bytes(pickle.dumps(Code()))
    refused(tmp_path, "got a truncated or foreign file")
    torch.save({**content, "extra": Code()}, path)
    refused(tmp_path, "got a truncated or foreign file")
    assert not mark.exists()

    def unfit(match: str, **changed: Any) -> None:
        torch.save({**content, **changed}, path)
        refused(tmp_path, f"checkpoint.pt: expected a checkpoint of this run, got one that does not fit it: {match}")

    unfit("[^$]*size mismatch for 0.weight", modules={"model": tiny_runs.network(width=5).state_dict()})
    unfit("modules: expected the states of networks, got dict with nothing", modules={})
    unfit("'optimizer'", optimizers={})
    states = content["optimizers"]["optimizer"]["state"]
    wrong = {**content["optimizers"]["optimizer"], "state": {**states, 0: {"momentum_buffer": torch.zeros(2)}}}
    unfit(r"momentum_buffer: expected shape \(4, 3, 3, 3\), got \(2,\)", optimizers={"optimizer": wrong})
    for value, message in (
        (
            torch.zeros(4, 3, 3, 3, dtype=torch.complex64),
            "optimizer momentum_buffer: expected real numbers, got Tensor",
        ),
        (torch.tensor(1.0), "momentum_buffer: expected shape"),
        (0.5, "momentum_buffer: expected a tensor, got 0.5"),
    ):
        wrong = {**content["optimizers"]["optimizer"], "state": {**states, 0: {"momentum_buffer": value}}}
        unfit(message, optimizers={"optimizer": wrong})
    torch.save({"format": content["format"]}, path)
    refused(tmp_path, "does not fit it")


def test_foreign_tables(tmp_path: Path) -> None:
    """A table that was edited is refused with the reason."""
    trainer(tmp_path).train()
    for text, match in (
        ("epoch,step\n1,1\n", "log.csv: expected a table with 'step' as its first column, got epoch,step$"),
        ("step,loss\none,2\n", "log.csv, column step: expected whole numbers, got 'one'$"),
    ):
        (tmp_path / "log.csv").write_text(text)
        refused(tmp_path, match)


# The parts.


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    """Layers called "0", "1.10" or "null" stay names, numbers stay exact, and NaN stays NaN."""
    rows = [
        {"step": 1, "source": "0", "target": "1.10", "weight": 0.1 + 0.2, "val": float("nan"), "n": 3},
        {"step": 1, "source": "null", "target": "1.1", "weight": 1e-300, "val": 1.0, "n": 4},
        {"step": 2, "source": "a/b, c", "target": "1e5", "weight": float("inf"), "val": 5e-324, "n": 5},
    ]
    folder = RunFolder(tmp_path / "run", CONFIG)
    with folder.held():
        folder.append("trace", rows[:1])
        folder.append("trace", rows[1:])
    assert repr(folder.read("trace", 2)) == repr(rows)
    assert repr(folder.read("trace", 1)) == repr(rows[:2])
    assert folder.read("none", 2) == []


def test_trim_drops_only_rows_after_the_checkpoint(tmp_path: Path) -> None:
    """Rows up to the checkpoint are never changed, and reading changes nothing."""
    folder = RunFolder(tmp_path / "run", CONFIG)
    with folder.held():
        folder.append("log", [{"step": step, "loss": 0.5} for step in (1, 2, 3)])
    path = tmp_path / "run" / "log.csv"
    text = path.read_text()
    path.write_text(text + "4,0.")
    assert len(folder.read("log", 3)) == 3
    assert path.read_text() == text + "4,0."
    folder.trim("log", 3)
    assert path.read_text() == text
    folder.trim("log", 1)
    assert path.read_text() == "step,loss\n1,0.5\n"
    folder.trim("none", 1)


def test_nothing_is_written_before_the_folder_is_held(tmp_path: Path) -> None:
    """Making a trainer writes nothing, also where its settings are bad."""
    folder = RunFolder(tmp_path / "a" / "run", CONFIG)
    assert folder.load() is None
    assert not (tmp_path / "a").exists()
    with folder.held():
        assert json.loads((tmp_path / "a" / "run" / "config.json").read_text()) == CONFIG
    RunFolder(tmp_path / "a" / "run", CONFIG)


def test_a_folder_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "~" is the home folder, not a folder of that name here."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with RunFolder("~/run", {"seed": 0}).held():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "run" / "config.json").exists()


def test_rows_of_other_columns_are_refused(tmp_path: Path) -> None:
    """Their cells would stand under other names."""
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    with folder.held():
        folder.append("log", [{"step": 1, "loss": 0.5}])
        message = r"log: expected a row with the columns step, loss, got step, accuracy; give the same metrics"
        with pytest.raises(ValueError, match=message):
            folder.append("log", [{"step": 2, "accuracy": 0.5}])
