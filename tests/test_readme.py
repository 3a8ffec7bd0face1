"""The README's code runs as printed."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHORTER = (  # no download, and seconds
    {'weights="DEFAULT"': "weights=None", '"steps": 2000': '"steps": 1'},
    {'"epochs": 50': '"epochs": 1', "blocks=2": "blocks=1"},
)
LINES = 16


def snippets(readme: str) -> list[str]:
    """Return the README's Python code blocks."""
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def shortened(code: str, changes: dict[str, str]) -> str:
    """The code with each printed text replaced by another."""
    for printed, run in changes.items():
        assert printed in code
        code = code.replace(printed, run)
    return code


def test_lines_of_use(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's examples must work with torchvision models and a folder of images, one after the other."""
    transfer, anytime, exporting, elsewhere = snippets((root / "README.md").read_text(encoding="utf-8"))
    for code in (transfer, anytime, exporting + elsewhere):
        assert len(code.strip().splitlines()) <= LINES
    transfer, anytime = (shortened(code, changes) for code, changes in zip((transfer, anytime), SHORTER, strict=True))
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("daisy", "rose", "tulip"):
            folder = tmp_path / "flowers" / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(random.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(transfer, "README.md", "exec"), names)
    assert len(names["result"].trace) == 9
    assert (tmp_path / "arrived.png").stat().st_size > 0
    assert (tmp_path / "runs" / "flowers" / "checkpoint.pt").exists()
    exec(compile(anytime, "README.md", "exec"), names)
    assert len(names["result"].accuracy) == 4
    assert (tmp_path / "budget.html").stat().st_size > 0
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    exec(compile(exporting, "README.md", "exec"), names)
    (tmp_path / "flowers" / "test" / "rose" / "0.png").rename(tmp_path / "rose.jpg")
    monkeypatch.syspath_prepend(tmp_path / "exported")
    exec(compile(elsewhere, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:-1]] == ["1", "2", "3", "4"]
    assert lines[-5].split()[1] in ("daisy", "rose", "tulip")


def test_training_loop_is_the_tested_one(root: Path) -> None:
    """The README names the training loop that test_lookahead.py compares with the trainer, and it is short."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "](tests/lookahead_loop.py)" in readme
    _, _, loop = (root / "tests" / "lookahead_loop.py").read_text(encoding="utf-8").partition("\n\n")
    assert len(loop.strip().splitlines()) <= 36


def test_the_film_moves_and_is_small(root: Path) -> None:
    """The README's film (docs/film.py makes it) must load quickly and show both sliders moving."""
    path = root / "data" / "explorers.gif"
    assert "](data/explorers.gif)" in (root / "README.md").read_text(encoding="utf-8")
    assert path.stat().st_size <= 600_000
    with Image.open(path) as film:
        assert film.format == "GIF"
        assert film.width <= 700
        durations = []
        for number in range(film.n_frames):
            film.seek(number)
            durations.append(film.info["duration"])
    assert len(durations) >= 20
    assert 5000 <= sum(durations) <= 7000  # ms
