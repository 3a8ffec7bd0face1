"""The README's code runs as printed."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHORTER = {'weights="DEFAULT"': "weights=None", '"epochs": 50': '"epochs": 1'}  # no download, and seconds


def test_fifteen_lines(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README promises a newcomer must work with two torchvision models and a folder of images."""
    transfer, anytime = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for code in (transfer, anytime):
        assert len(code.strip().splitlines()) <= 16
    assert all(printed in transfer for printed in SHORTER)
    for printed, run in SHORTER.items():
        transfer, anytime = transfer.replace(printed, run), anytime.replace(printed, run)
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
    assert (tmp_path / "where.png").stat().st_size > 0
    assert (tmp_path / "runs" / "flowers" / "checkpoint.pt").exists()
    exec(compile(anytime, "README.md", "exec"), names)
    assert len(names["result"].accuracy) == 3
    assert (tmp_path / "budget.html").stat().st_size > 0
