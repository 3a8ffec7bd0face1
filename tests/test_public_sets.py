"""The folders of CIFAR and STL-10, as torchvision unpacks them: damaged, incomplete, foreign and hostile files."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from damage import Creates, checked, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from torchvision import datasets

from mtanytime.data import cifar10, cifar100, stl10
from mtanytime.data.images import leaves
from mtanytime.data.public import CIFAR10_TREE, CIFAR100_TREE, STL10_TREE

TREES = {"CIFAR10": CIFAR10_TREE, "CIFAR100": CIFAR100_TREE, "STL10": STL10_TREE}
NAMES = {kind: sorted(leaves(tree)) for kind, tree in TREES.items()}
LOAD: dict[str, Callable[[Path], Any]] = {"CIFAR10": cifar10, "CIFAR100": cifar100, "STL10": stl10}
NOISE = np.random.default_rng(0)


def batch(kind: str, **changed: Any) -> dict[str, Any]:
    """The content of a batch of two images."""
    label = "labels" if kind == "CIFAR10" else "fine_labels"
    content = {"data": NOISE.integers(0, 256, (2, 3072), dtype=np.uint8), label: [1, 0], **changed}
    return {key: value for key, value in content.items() if value is not None}


def files_of(kind: str) -> dict[str, bytes]:
    """The files of a tiny set, by name."""
    if kind == "STL10":
        pixels = NOISE.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8).tobytes()
        files = {f"{part}_X.bin": pixels for part in ("train", "test", "unlabeled")}
        files |= {f"{part}_y.bin": b"\2\1" for part in ("train", "test")}
        return {**files, "class_names.txt": "\n".join(NAMES[kind]).encode()}
    reader = getattr(datasets, kind)
    names = [name for name, _ in reader.train_list + reader.test_list]
    files = {name: pickle.dumps(batch(kind), 2) for name in names}
    return {**files, reader.meta["filename"]: pickle.dumps({reader.meta["key"]: NAMES[kind]}, 2)}


VALID = {kind: files_of(kind) for kind in LOAD}


def write(root: Path, kind: str, patch: pytest.MonkeyPatch, changed: dict[str, bytes], trusted: bool) -> Path:
    """Write the tiny set with some files changed; its checksums are those of the changed files if `trusted`."""
    reader = getattr(datasets, kind)
    folder = root / reader.base_folder
    folder.mkdir()
    files = VALID[kind] | changed
    for name, content in files.items():
        (folder / name).write_bytes(content)
    known = files if trusted else VALID[kind]
    sums = {name: hashlib.md5(content).hexdigest() for name, content in known.items()}
    for part in ("train_list", "test_list"):
        patch.setattr(reader, part, [[name, sums[name]] for name, _ in getattr(reader, part)])
    if kind != "STL10":
        patch.setattr(reader, "meta", reader.meta | {"md5": sums[reader.meta["filename"]]})
    return root


@pytest.mark.parametrize("kind", LOAD)
def test_a_whole_set(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels, labels and class names are those in the files."""
    task = LOAD[kind](write(tmp_path, kind, monkeypatch, {}, trusted=True))
    assert task.classes == tuple(NAMES[kind])
    assert task.test.labels.tolist() == [1, 0]
    if kind != "STL10":
        stored = pickle.loads(VALID[kind][getattr(datasets, kind).test_list[0][0]])["data"]
        assert torch.equal(task.test.images, torch.from_numpy(stored.reshape(2, 3, 32, 32)))


@settings(max_examples=examples(12))
@given(data=st.data(), kind=st.sampled_from(list(LOAD)))
def test_damaged_files(data: st.DataObject, kind: str) -> None:
    """Random bytes and damaged files: torchvision's checksums find them before anything is unpickled."""
    name = data.draw(st.sampled_from(sorted(VALID[kind])))
    content = data.draw(damaged(VALID[kind][name]))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = write(Path(folder), kind, patch, {name: content}, trusted=False)
        task = checked(LOAD[kind], root, FileNotFoundError)
    if content != VALID[kind][name] and name != "unlabeled_X.bin" and task is not None:
        assert name == "class_names.txt"  # without a checksum: other line ends, say
        assert task.classes == tuple(NAMES[kind])


PICTURES = batch("CIFAR10")["data"]
FOREIGN = {
    "nothing": b"",
    "text": b"<html>404</html>",
    "list": pickle.dumps([1, 2]),
    "no labels": pickle.dumps(batch("CIFAR10", labels=None)),
    "labels beyond": pickle.dumps(batch("CIFAR10", labels=[1, 10])),
    "one label": pickle.dumps(batch("CIFAR10", labels=[1])),
    "words as labels": pickle.dumps(batch("CIFAR10", labels=["a", "b"])),
    "fractions as labels": pickle.dumps(batch("CIFAR10", labels=[0.5, 1.0])),
    "floats": pickle.dumps(batch("CIFAR10", data=PICTURES / 255)),
    "other size": pickle.dumps(batch("CIFAR10", data=PICTURES[:, :100])),
    "deep": b"(" * 5000 + b".",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_foreign_files_with_any_checksum(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torchvision's reader takes for granted is checked, and the folder is named."""
    root = write(tmp_path, "CIFAR10", monkeypatch, {name: content}, trusted=True)
    assert checked(cifar10, root) is None


@pytest.mark.parametrize("content", [None, b"", b"cat\n", b"\xff\n" * 10, b"\n".join([b"cat"] * 10)])
def test_names_of_classes_of_stl10(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision does not compare the checksum of class_names.txt, and leaves the names out where it is missing."""
    write(tmp_path, "STL10", monkeypatch, {}, trusted=True)
    names = tmp_path / "stl10_binary" / "class_names.txt"
    names.unlink() if content is None else names.write_bytes(content)
    assert checked(stl10, tmp_path) is None


def test_pickles_that_execute_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with code in it has another checksum than the published one, so it is never unpickled."""
    mark = tmp_path / "executed"
    hostile = {name: pickle.dumps(Creates(mark)) for name in VALID["CIFAR10"]}
    root = tmp_path / "data"
    root.mkdir()
    assert checked(cifar10, write(root, "CIFAR10", monkeypatch, hostile, trusted=False), FileNotFoundError) is None
    assert not mark.exists()
