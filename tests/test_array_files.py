"""Archives of arrays (npz): the JPEGs of CIFAR-10 and the L2T-ww authors' splits; damaged and foreign ones."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from PIL import Image

from mtanytime.data import cifar10_jpeg, l2t_split
from mtanytime.data.public import CIFAR10_TREE

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
SPLIT = {"dog/train": [3, 1], "dog/val": [2], "dog/test": [0, 5]}


def encoded(pixels: np.ndarray) -> bytes:
    """One JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


FILES = [encoded(pixels) for pixels in PIXELS]


def arrays(**changed: Any) -> dict[str, Any]:
    """An archive of two images per part, with some keys changed, or left out where they are None."""
    part = {
        "jpeg": np.frombuffer(b"".join(FILES), np.uint8),
        "offsets": np.cumsum([0, *map(len, FILES)]),
        "labels": np.array([1, 0]),
    }
    both = {f"{name}_{key}": value for name in ("train", "test") for key, value in part.items()}
    classes = np.array(sorted(c for names in CIFAR10_TREE.values() for c in names))
    return {k: v for k, v in {"classes": classes, **both, **changed}.items() if v is not None}


def saved(**entries: Any) -> bytes:
    """The bytes of an npz file."""
    file = io.BytesIO()
    np.savez(file, **entries)
    return file.getvalue()


def test_the_pixels_that_pillow_reads(tmp_path: Path) -> None:
    """A whole archive, compressed as well."""
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays())
        task = cifar10_jpeg(tmp_path / "a.npz")
        for data in (task.train, task.test):
            assert data.labels.tolist() == [1, 0]
            for image, file in zip(data.images, FILES, strict=True):
                assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(np.array(Image.open(io.BytesIO(file)))))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_labels": None}, "a.npz: expected the keys"),
        ({"classes": np.arange(10)}, "a.npz: classes: expected a list of names"),
        ({"train_jpeg": np.zeros(9)}, "a.npz: train_jpeg: expected the bytes"),
        ({"train_offsets": np.array([0.0, 9.0])}, "a.npz: train_offsets: expected a row of integers"),
        ({"train_offsets": np.array([0, 10**9, 2])}, "a.npz: train_offsets: expected integers from 0 to"),
        ({"train_offsets": np.array([9, 5, 2])}, "a.npz: train_offsets: expected at least two offsets, increasing"),
        ({"train_offsets": np.array([0, 9, 20])}, "a.npz: train image 0: expected an RGB image of 32×32 pixels"),
        ({"test_labels": np.array([0, 10])}, "a.npz: test_labels: expected integers from 0 to 9, got 0 to 10"),
        ({"test_labels": np.array([-1, 1])}, "a.npz: test_labels: expected integers from 0 to 9, got -1 to 1"),
        ({"test_labels": np.array([1])}, "a.npz: test_labels: expected 2 labels, got 1"),
        ({"train_labels": np.array([{}, 1], dtype=object)}, "a.npz: expected an npz file"),
    ],
)
def test_wrong_arrays_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Keys missing, other kinds, offsets outside the bytes, labels outside the classes."""
    (tmp_path / "a.npz").write_bytes(saved(**arrays(**changed)))
    with pytest.raises(ValueError, match=message):
        cifar10_jpeg(tmp_path / "a.npz")


def test_an_image_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    """A JPEG of 64×64 among the others."""
    large = encoded(np.zeros((64, 64, 3), np.uint8))
    entries = arrays(train_jpeg=np.frombuffer(FILES[0] + large, np.uint8))
    entries["train_offsets"] = np.cumsum([0, len(FILES[0]), len(large)])
    (tmp_path / "a.npz").write_bytes(saved(**entries))
    with pytest.raises(ValueError, match=r"train image 1: expected an RGB image of 32×32 pixels, got RGB of 64×64"):
        cifar10_jpeg(tmp_path / "a.npz")


def test_an_archive_that_expands_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its declared size, before anything is expanded."""
    monkeypatch.setattr("mtanytime.data.public._NPZ_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("classes.npy", bytes(10**6 + 1))
    with pytest.raises(ValueError, match=r"a.npz: expected an npz file .* it expands to 1000001 bytes"):
        cifar10_jpeg(tmp_path / "a.npz")


class Creates:
    """A pickle that creates a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_nothing_is_executed(tmp_path: Path) -> None:
    """An array of objects is a pickle."""
    entries = arrays(classes=np.array([Creates(tmp_path / "executed")], dtype=object))
    (tmp_path / "a.npz").write_bytes(saved(**entries))
    with pytest.raises(ValueError, match=r"a.npz: expected an npz file"):
        cifar10_jpeg(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_splits(part: str, tmp_path: Path) -> None:
    """The indices as stored; a part missing or of another kind is named."""
    path = tmp_path / "s.npz"
    path.write_bytes(saved(**SPLIT))
    assert l2t_split(path, "dog")[part].tolist() == SPLIT[f"dog/{part}"]
    for bad in ([0.5], [[1]], [-1], ["a"]):
        path.write_bytes(saved(**SPLIT | {f"dog/{part}": bad}))
        with pytest.raises(ValueError, match=f"s.npz: dog/{part}: expected"):
            l2t_split(path, "dog")
    path.write_bytes(saved(**{k: v for k, v in SPLIT.items() if k != f"dog/{part}"}))
    with pytest.raises(ValueError, match=r"s.npz: expected the keys"):
        l2t_split(path, "dog")


VALID = [saved(**arrays()), saved(**SPLIT), b""]


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_random_and_mutated_archives(data: st.DataObject, tmp_path_factory) -> None:
    """Random bytes, and archives with bytes changed or cut: the stored arrays, or one line that names the file."""
    valid = data.draw(st.sampled_from(VALID))
    changed = bytearray(valid or data.draw(st.binary(max_size=200)))
    for _ in range(data.draw(st.integers(0, 4)) if valid else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    content = bytes(changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed)
    path = tmp_path_factory.mktemp("archives") / "a.npz"
    path.write_bytes(content)
    for read in (cifar10_jpeg, lambda path: l2t_split(path, "dog")):
        try:
            result = read(path)
        except ValueError as error:
            assert ": expected " in str(error)  # noqa: PT017
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            if isinstance(result, dict):
                assert {f"dog/{part}": indices.tolist() for part, indices in result.items()} == SPLIT
            else:
                assert result.train.labels.tolist() == result.test.labels.tolist() == [1, 0]
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["a.npz"]
