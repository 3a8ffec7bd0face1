"""Folders of images: which files count, under which class, and what a broken one says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtanytime.data.files import image_folder

COLORS = {"a": (250, 0, 0), "b": (0, 250, 0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two images each."""
    for name, color in COLORS.items():
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (9, 9), color).save(tmp_path / name / f"{i}.png")
    return tmp_path


def check(root: Path, count: int = 4) -> None:
    """The two classes with so many images, each in its color."""
    data = image_folder(root, 8)
    assert data.classes == ("a", "b")
    assert len(data) == count
    colors = torch.tensor(list(COLORS.values()), dtype=torch.uint8)
    assert torch.equal(data.images[:, :, 4, 4], colors[data.labels])


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git", "__MACOSX", ".Trash-0"])
def test_hidden_folders_are_no_classes(folder: Path, hidden: str) -> None:
    """Jupyter, git and file managers leave folders beside and inside the classes."""
    for place in (folder / hidden, folder / "a" / hidden, folder / "b" / "deeper" / hidden):
        place.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(place / "0-checkpoint.png")
    check(folder)


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db", "notes.txt", ".hidden.jpg"])
def test_other_files_are_passed_over(folder: Path, name: str) -> None:
    """macOS's resource forks carry an image's extension and are none."""
    (folder / "a" / name).write_bytes(bytes(99))
    (folder / name).write_bytes(bytes(99))
    check(folder)


def test_nested_folders_belong_to_their_class(folder: Path) -> None:
    """One folder per photographer inside a class, say; also where the root itself lies below a hidden folder."""
    (folder / "b" / "anna" / "2024").mkdir(parents=True)
    Image.new("RGB", (9, 9), COLORS["b"]).save(folder / "b" / "anna" / "2024" / "x.PNG")
    check(folder, 5)
    moved = folder.parent / f".{folder.name}"
    folder.rename(moved)
    check(moved, 5)
    moved.rename(folder)


def test_files_of_other_kinds(folder: Path) -> None:
    """Orientation, 16 bits and transparency, as in test_pixels, through the folder."""
    ramp = np.linspace(0, 65535, 8, dtype=np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(folder / "a" / "0.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "a" / "1.png")
    data = image_folder(folder, 8, workers=1)
    assert data.images[0, 0, 0].tolist() == np.round(ramp[0] / 257).tolist()
    assert (data.images[1] == 255).all()
    assert (image_folder(folder, 8, background=(1, 2, 3)).images[1, :, 0, 0] == torch.tensor([1, 2, 3])).all()


def test_links_to_outer_folders_are_passed_over(folder: Path) -> None:
    """They would multiply a class's images; a link to another folder counts."""
    (folder / "a" / "all").symlink_to(folder)
    (folder / "a" / "own").symlink_to(folder / "a")
    check(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    """One line with the file's path and the remedy."""
    (folder / "b" / "2.png").write_bytes((folder / "b" / "1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"b/2.png: expected an image file, got .*; repair the file or remove it"):
        image_folder(folder, 8)


def test_no_bar_for_a_handful(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four files are read before anybody would look for a progress bar."""
    image_folder(folder, 8)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("empty", ["nothing", "no classes", "empty class"])
def test_folders_without_images(tmp_path: Path, empty: str) -> None:
    """Expected and found, with the path."""
    root = tmp_path / "images"
    if empty != "nothing":
        root.mkdir()
    if empty == "empty class":
        (root / "a").mkdir()
    with pytest.raises(ValueError, match="images: expected a folder of images, one sub-folder per class, got"):
        image_folder(root, 8)


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 0}, "size: expected"), ({"workers": 0}, "workers: expected")]
)
def test_bad_settings(folder: Path, options: dict, message: str) -> None:
    """Refused before anything is read."""
    with pytest.raises(ValueError, match=message):
        image_folder(folder, **options)
