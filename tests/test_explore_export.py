"""Exported pages: the content of the file, and that bad input leaves none. tests/browser opens them."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tables
from matplotlib import pyplot as plt

from mtanytime.explore import export
from mtanytime.explore.budget import BudgetExplorer
from mtanytime.explore.export import export_csv
from mtanytime.explore.transfer import TransferExplorer


def state_of(page: Path) -> dict:
    """Return the state that the page's script reads."""
    text = re.search(r'<script type="application/json" id="state">(.*?)</script>', page.read_text("utf-8"), re.S)
    return json.loads(text.group(1))


def test_page_holds_the_explorer(tmp_path: Path) -> None:
    """The page starts with the explorer's choices and requests nothing from the network."""
    explorer = TransferExplorer(tables.trace(), relative=True)
    explorer.step = 100
    path = explorer.save_html(tmp_path / "page.html")
    state = state_of(path)
    assert state["content"] == explorer.content
    assert (state["step"], state["relative"], state["pair"]) == (100, True, ["layer2", "t3"])
    text = path.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    links = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'`]*""", text.replace("http://www.w3.org/2000/svg", "")))
    assert links == set()
    assert not re.search(r"""<(?:link|iframe|script[^>]* src)|@import|url\(""", text)
    assert "Heat map of share of λ, 2 source × 3 target layers, at step 100" in text  # for a reader without scripts
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    """An existing file is replaced only with `force`."""
    path = tmp_path / "page.html"
    path.write_text("mine")
    tables.curve().to_csv(tmp_path / "curve.csv", index=False)
    explorer = BudgetExplorer(tables.curve())
    for write in (
        lambda **force: explorer.save_html(path, **force),
        lambda **f: export_csv(tmp_path / "curve.csv", path, **f),
    ):
        path.write_text("mine")
        with pytest.raises(ValueError, match=r"path: expected a new file, got .*page\.html, which exists"):
            write()
        assert path.read_text() == "mine"
        write(force=True)
        assert state_of(path)["content"]["kind"] == "budget"


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the old page stays, and no part of the new one is left."""
    path = tmp_path / "page.html"
    path.write_text("mine")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        TransferExplorer(tables.trace()).save_html(path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "mine"


def test_a_page_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 × 60 layers over many steps stay below 3 MB; a larger page is refused with its size."""
    names = tuple(f"encoder.layer.{i}" for i in range(60))
    trace = tables.trace(sources=names, targets=names, steps=tuple(range(100)))
    path = TransferExplorer(trace, tables.channels(trace, 64)).save_html(tmp_path / "large.html")
    assert 1e6 < path.stat().st_size < 3e6
    monkeypatch.setattr(export, "BYTES_UP_TO", 20_000)
    with pytest.raises(ValueError, match=r"page: expected at most 3 MB, got 0\.\d MB"):
        TransferExplorer(tables.trace()).save_html(tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "\u2028&amp;\"'{x}"])
def test_names_cannot_end_the_script(name: str, tmp_path: Path) -> None:
    """Names that look like markup leave the page with its two scripts and arrive unchanged."""
    path = TransferExplorer(tables.trace(sources=(name, "b"))).save_html(tmp_path / "page.html")
    assert state_of(path)["content"]["sources"] == [name, "b"]
    assert path.read_text("utf-8").count("<script") == 2
    path = BudgetExplorer(tables.curve().replace("sliced", name)).save_html(tmp_path / "curve.html")
    assert state_of(path)["content"]["models"][0]["name"] == name
    assert path.read_text("utf-8").count("<script") == 2


def test_csv_is_told_by_its_columns(tmp_path: Path) -> None:
    """A trace and a curve are told apart by their columns; channels.csv beside trace.csv is included."""
    trace, curve = tables.trace(), tables.curve()
    trace.to_csv(tmp_path / "trace.csv", index=False)
    trace.to_csv(tmp_path / "other.csv", index=False)
    tables.channels(trace).to_csv(tmp_path / "channels.csv", index=False)
    (tmp_path / "curve.csv").write_text("# how it came about\n" + curve.to_csv(index=False))
    assert export_csv(tmp_path / "trace.csv", tmp_path / "1.html").endswith("1.html: 6 pairs, 3 steps from 0 to 200")
    assert state_of(tmp_path / "1.html")["content"]["channels"]["steps"] == [0, 200]
    export_csv(tmp_path / "other.csv", str(tmp_path / "2.html"))
    assert state_of(tmp_path / "2.html")["content"]["channels"] is None
    assert "2 models with 4 exits each, 3 runs" in export_csv(str(tmp_path / "curve.csv"), tmp_path / "3.html")
    assert state_of(tmp_path / "3.html")["at"] == ["sliced", 3]
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table: expected a CSV table, got an empty file"),
        ("# only a comment\n", "table: expected a CSV table, got an empty file"),
        ("step,source,target,weight\n", "table: expected at least one row, got none"),
        ("step,source,target\n1,a,b\n", "trace: expected column weight, got columns step, source, target"),
        ("source,target,weight\na,b,1\n", "trace: expected column step, got columns source, target, weight"),
        ("model,exit,accuracy\na,1,0.5\n", "curve: expected column macs, got columns model, exit, accuracy"),
        ("model,macs,accuracy\na,1,0.5\n", "curve: expected column exit, got columns model, macs, accuracy"),
        ("x,y\n1,2\n", r"table: expected one of .* a trace \(step, source, target, weight\), .*, got columns x, y"),
        ("step,source,target,weight\n1,a,b,high\n", "trace, column weight: expected numbers, got 'high'"),
        (
            "step,source,target,weight\n1,a,b,1\n1,a,b,2\n",
            "got several for step 1, source a, target b; give",
        ),
        ("a,b\n1,2\n1,2,3\n", "table: expected 2 fields per line, as in the header, got 3 in line 3 of .*table.csv"),
    ],
)
def test_bad_files_are_one_line_of_error(text: str, message: str, tmp_path: Path) -> None:
    """A file that cannot be drawn is refused in one line that names the column, and leaves no page."""
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        export_csv(tmp_path / "table.csv", tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A binary file, such as a picture or a checkpoint, is refused in one line."""
    (tmp_path / "x.csv").write_bytes(np.random.default_rng(0).bytes(500))
    with pytest.raises(ValueError, match=r"table: expected a CSV table, got .*x\.csv, which cannot be read"):
        export_csv(tmp_path / "x.csv", tmp_path / "page.html")
    with pytest.raises(FileNotFoundError):
        export_csv(tmp_path / "none.csv", tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        BudgetExplorer(tables.curve()).save_html(tmp_path / "none" / "page.html")
