"""The command line with a file that is not what it wants: each is named in one line, and nothing is written."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import contents
from PIL import Image

from mtanytime.__main__ import main
from mtanytime.devices import processor
from mtanytime.explore import table_files

TRACE = "step,source,target,weight\n"


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    """The bytes that a function writes to a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def archive(*names: str) -> bytes:
    """A zip archive of tables."""

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, TRACE)

    return saved(write)


# name -> content
FILES: dict[str, bytes | str] = {
    # of other programs
    "picture.png": saved(lambda file: Image.new("RGB", (4, 4)).save(file, "PNG")),
    "arrays.npz": saved(lambda file: np.savez(file, a=np.zeros(3))),
    "checkpoint.pt": saved(lambda file: torch.save({"a": torch.zeros(3)}, file)),
    "pickle.csv": pickle.dumps({1: 2}),
    "config.json": json.dumps({"lr": 0.1}),
    "one_line.json": json.dumps(list(range(100_000))),
    "page.html": "<!doctype html>\n<html><body>a, b</body></html>\n",
    "notebook.ipynb": json.dumps({"cells": [], "nbformat": 4}, indent=1),
    "script.py": "import os\n\n\ndef f(a, b):\n    return a, b\n",
    "text.md": "# Title\n\ntext, with, commas\n",
    "sheet.xlsx": archive("[Content_Types].xml", "xl/workbook.xml"),
    "table.parquet": b"PAR1" + bytes(range(256)) + b"PAR1",
    # compressed
    "cut.csv.gz": gzip.compress(TRACE.encode())[:-6],
    "two.zip": archive("a.csv", "b.csv"),
    "none.zip": archive(),
    **{f"other.csv{suffix}": "no archive" for suffix in (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tar.gz")},
    "bomb.csv.gz": gzip.compress(bytes(2_000_000)),
    "several.tar.gz": saved(lambda file: tarfile.open(fileobj=file, mode="w:gz").close()),
    # tables
    "empty.csv": "",
    "lines.csv": "\n\n\n",
    "zeros.csv": bytes(1000),
    "header.csv": TRACE,
    "latin.csv": (TRACE + "1,é,b,1\n").encode("latin-1"),
    "utf16.csv": (TRACE + "1,a,b,1\n").encode("utf-16-le"),
    "quote.csv": TRACE + '1,"a,b,1\n2,a,b,1\n',
    "long.csv": TRACE + f"1,{'a' * 200_000},b,1\n",
    "digits.csv": TRACE + f"1,a,b,{'9' * 5000}\n",
    "twice.csv": TRACE + "1,a,b,1\n1,a,b,2\n",
    "trace.csv": TRACE + "1.5,a,b,1\n",
    "log.csv": "step,loss\n1,x\n",
    "steps.csv": "step,loss\nnan,1\n",
    "curve.csv": "model,exit,macs,accuracy\na,1,0,0.5\n",
    "percent.csv": "model,exit,macs,accuracy\na,1,10,50\n",
    "results.csv": "method,seed,accuracy\na,0,0.5\na,0,0.6\n",
    "words.csv": "method,seed,accuracy\na,0,high\n",
    "maps.csv": "method,seed,source,target,weight\na,0,l,t,x\n",
    "channels.csv": "step,source,target,channel,weight\n1,a,b,-1,1\n",
    "arrived.csv": "step,source,target,r2\n1,a,b,2\n",
    "other.csv": "x,y\n1,2\n",
    "two\nlines <b>.csv": "x,y\n1,2\n",
}


@pytest.mark.parametrize("name", FILES)
def test_explore(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of other programs, damaged archives and unfit tables."""
    monkeypatch.setattr(table_files, "BYTES_UP_TO", 1_000_000)  # what the bomb expands beyond
    (tmp_path / name).write_bytes(content.encode() if isinstance(content := FILES[name], str) else content)
    check_refused(tmp_path, name, capsys)


@pytest.mark.parametrize("name", ["nothing.csv", "folder", "loop", "experiment"])
def test_explore_places(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing, folders without tables, a link to itself, a folder of several runs."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "experiment" / "l2t-seed0").mkdir(parents=True)
    (tmp_path / "experiment" / "l2t-seed0" / "config.json").write_text("{}")
    message = check_refused(tmp_path, name, capsys)
    if name == "experiment":
        assert "name one of them, such as" in message


def check_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Exploring a file in the folder is one line of error that names it, and changes nothing; the line."""
    before = contents(folder)
    assert main(["explore", str(folder / name), "--html", str(folder / "page_of_it.html")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("error: ")
    assert name.replace("\n", " ") in printed.err
    assert len(printed.err) < 3000
    assert contents(folder) == before
    return printed.err


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", pickle.dumps([1]), archive("data.pkl")])
def test_source_of_a_recipe(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A download that failed, in place of the authors' checkpoint: named before anything is trained or written."""
    (tmp_path / "source.tar").write_bytes(content)
    before = contents(tmp_path)
    settings = [f"source={tmp_path / 'source.tar'}", f"images={tmp_path}"]
    assert main(["run", "cifar10-few", "--out", str(tmp_path / "run"), "--set", *settings]) == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert printed.startswith(f"error: {tmp_path / 'source.tar'}: expected a torch file")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2.5", "", "column ms: expected finite numbers above 0"),
        ("2.5", "-2.5", "column ms: expected finite numbers above 0"),
        ("2.5", "fast", "column ms: expected numbers, got 'fast'"),
        ("eager,2.5", "eager,2.5,1", "fields per line, as in the header"),
        ("16,16", "16.5,16", "column inputs: expected whole numbers"),
        ("ms", "seconds", "none named ms"),
        ("processor", "\0", "it holds zero bytes"),
    ],
)
def test_kept_times(old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times of layers that are no times would choose other shapes: named, and the file is not overwritten."""
    header = "processor,inputs,outputs,side,size,groups,stride,batch,threads,runtime,ms\n"
    text = f"{header}{processor()},16,16,8,3,1,1,1,{torch.get_num_threads()},eager,2.5\n"
    (tmp_path / "times.csv").write_text(text.replace(old, new), encoding="utf-8")
    before = contents(tmp_path)
    assert main(["bench", "shapes", "--milliseconds", "1", "--times", str(tmp_path / "times.csv")]) == 1
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert message in printed
    assert str(tmp_path / "times.csv") in printed
    assert contents(tmp_path) == before
