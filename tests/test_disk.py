"""Images that stay in files: they train to the bits of the same images in memory, and a cache changes nothing."""

import os
import pickle
import shutil
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transfer_runs
from PIL import Image
from torch import Tensor

import mtanytime.data.disk as disk
from mtanytime.data import (
    Batches,
    Decoding,
    ImageFiles,
    ResizedCrops,
    Task,
    crop_flip,
    image_files,
    image_folder,
    unlabelled_files,
    unlabelled_folder,
)
from mtanytime.data.record_file import RecordFile
from mtanytime.measure import evaluate
from mtanytime.training.batch_norm import settle_for_evaluation
from mtanytime.training.identity import describe_data
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import FreshBatch, TransferTrainer

NAMES = ["0.png", "1.JPG", "2 ü.png", "deep/3.png", "4.jpeg", "5.png"]  # of each class's files
SIZE = 8


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six images in their usual variety: names, kinds of file and of color; hidden files beside."""
    root, noise = tmp_path_factory.mktemp("pictures") / "birds", np.random.default_rng(0)
    for label, kind in enumerate(("a", "b", "c")):
        for i, name in enumerate(NAMES):
            pixels = noise.integers(0, 200, (12, 9 + i, 3), dtype=np.uint8)
            pixels[..., label] += 55
            image = Image.fromarray(pixels).convert(["RGB", "L", "RGBA", "P", "CMYK", "RGB"][i])
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / kind / name)
        for hidden in (".hidden.jpg", "._0.png", "notes.txt"):
            (root / kind / hidden).write_bytes(b"no image")
    return root


def files(root: Path, **options: Any) -> ImageFiles:
    """The files, decoded in this process unless the options say otherwise."""
    return image_files(root, SIZE, **{"workers": 0} | options)


def epochs(data: Any, start: int = 0) -> list[Tensor]:
    """The batches of two augmented epochs, images and labels in turn."""
    batches = Batches(data, 4, 5, crop_flip(2))
    return [part for epoch in (0, 1) for batch in batches.epoch(epoch, start) for part in batch]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"cache": True}], ids=["here", "workers", "cache"])
def test_the_batches_of_the_set_in_memory(
    options: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, augmentation and pixels are those of an `ImageSet`; a later start decodes nothing before it."""
    monkeypatch.setattr(disk, "FEW", 0)
    memory = image_folder(pictures, SIZE)
    data = files(pictures, **options | ({"cache": tmp_path} if "cache" in options else {}))
    state = torch.get_rng_state()
    for _ in range(2):  # from the files, then from the cache
        assert equal(epochs(data), epochs(memory))
    assert equal(epochs(data, start=3), epochs(memory, start=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(Batches(data, 4, 5).batch(1, 2)[0], list(Batches(memory, 4, 5).epoch(1))[2][0])
    if "workers" not in options and "cache" not in options:
        read, last = [], Batches(data, 4, 5)
        monkeypatch.setattr(disk, "read_pixels", lambda path, *_, **__: read.append(path) or torch.zeros(3, 8, 8))
        assert len(list(last.epoch(0, start=len(last) - 1))) == 1
        assert len(read) == 2  # of 18 in batches of 4


def test_manners_of_a_set_in_memory(pictures: Path) -> None:
    """Length, subsets, few labels, splits, text and devices, by the same rules."""
    memory, data = image_folder(pictures, SIZE), files(pictures)
    assert repr(data) == "ImageFiles(birds: 18 images 3x8x8, 3 classes, cpu)"
    pairs = [(memory, data), (memory.few(2, 1), data.few(2, 1))]
    pairs += zip(memory.split(0.3, 2), data.split(0.3, 2), strict=True)
    pairs.append((memory.subset([5, 1, 1]), data.subset([5, 1, 1]).to("cpu")))
    for ours, theirs in pairs:
        assert len(ours) == len(theirs)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images, theirs.in_memory().images)
        assert (ours.classes, ours.tree, ours.name) == (theirs.classes, theirs.tree, theirs.name)
    assert data.path(5) == str(pictures / "a" / "deep" / "3.png")  # after the files of the class's own folder
    assert data.subset([5, 1]).to("meta").labels.device.type == "meta"
    with pytest.raises(ValueError, match="indices: expected 0 to 17, got 18 to 18"):
        data.subset([18])
    folder, left = unlabelled_folder(pictures, SIZE), unlabelled_files(pictures, SIZE, workers=0)
    assert torch.equal(folder.images, left.in_memory().images)
    assert left.classes == ("unlabelled",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected a whole number of pixels, at least 1, got 0"),
        ({"size": 9, "resize": 8}, "resize: expected at least 9, the size, got 8"),
        ({"workers": -1}, "workers: expected at least 0, got -1"),
    ],
)
def test_bad_settings(options: dict, message: str, pictures: Path) -> None:
    """Refused before the folder is read."""
    with pytest.raises(ValueError, match=message):
        image_files(pictures / "nowhere", **options)


def test_bad_sets(pictures: Path) -> None:
    """What does not fit together is refused when the set is made."""
    path = pictures / "a" / "0.png"
    with pytest.raises(ValueError, match="labels: expected whole numbers"):
        ImageFiles([path, path], [0], ("a",))
    with pytest.raises(ValueError, match="labels: expected 0 to 0, got 0 to 1"):
        ImageFiles([path, path], [0, 1], ("a",))
    codes = np.array([0, 0], dtype=np.int8)  # as pandas' categories have
    assert ImageFiles([path, path], codes, np.array(["a"])).classes == ("a",)
    with pytest.raises(ValueError, match="paths: expected at least one file, got none"):
        ImageFiles([], [], ("a",))
    with pytest.raises(ValueError, match="test: expected the image shape of train"):
        Task(files(pictures), image_files(pictures, 9))
    assert len(Task(files(pictures), image_folder(pictures, SIZE)).test) == 18


def trained(data: Any, folder: Path | None = None, **options: Any) -> Trainer:
    """A tiny network's run of two epochs."""
    options = {"augment": crop_flip(1), "validation": 0.34, "epochs": 2, "batch_size": 5} | options
    return Trainer(tiny.made(), data, image_folder_of(data), folder=folder, device="cpu", progress=False, **options)


def image_folder_of(data: Any) -> Any:
    """A test set of the same kind."""
    return data.subset(range(0, 18, 2))


def test_a_trainer_comes_to_the_same_bits(pictures: Path, tmp_path: Path, one_thread: None) -> None:
    """Files instead of memory, and an interruption, change no bit of the weights and the table."""
    runs = [trained(image_folder(pictures, SIZE)), trained(files(pictures, cache=tmp_path / "cache"))]
    for run in runs:
        run.train()
    stopped = trained(files(pictures), tmp_path / "run")
    for report in stopped:
        if report.step == 2:
            break
    resumed = trained(files(pictures), tmp_path / "run")
    assert resumed.step == 2
    runs.append(resumed)
    resumed.train()
    for run in runs[1:]:
        assert transfer_runs.same(run.model.state_dict(), runs[0].model.state_dict())
        assert run.result().accuracy == runs[0].result().accuracy
        assert run.result().log["loss"].tolist() == runs[0].result().log["loss"].tolist()


EXTRAS = [{}, {"views": 3, "teacher": "probe", "standardize": "network", "beta": 0.1, "lr": 0.01}]


@pytest.mark.parametrize("extras", EXTRAS, ids=["plain", "all extras"])
def test_a_transfer_comes_to_the_same_bits(extras: dict, pictures: Path, one_thread: None) -> None:
    """L2T-ww as in the paper; and views, a probe as teacher, errors by variance, unlabelled images, fresh batches."""
    runs = []
    for data in (image_folder(pictures, SIZE), files(pictures)):
        options = dict(extras)
        if extras:
            options |= {"unlabelled": data, "outer": FreshBatch(data, 4)}
        runs.append(transfer_runs.transfer(data=data, batch_size=6, epochs=1, **options))
        runs[-1].train()
    assert transfer_runs.same(*(run.model.state_dict() for run in runs))
    assert transfer_runs.same(*(run.meta.state_dict() for run in runs))


def test_what_arrived(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are trained on are left out, also where only one of the two sets is in files."""
    monkeypatch.setattr("mtanytime.transfer.arrived.IMAGES_FROM", 4)
    memory, data = image_folder(pictures, SIZE), files(pictures)
    first = [*range(6), *range(6, 9), *range(12, 15)]
    tables = []
    for train, held in ((memory, memory), (data, data), (memory, data), (data, memory)):
        run = transfer_runs.transfer(data=train.subset(first), arrived=held, epochs=1)
        run.train()
        tables.append(run.result().arrived["r2"].tolist())
        assert any("12 of 18 images are trained on, left out" in note for note in run.notes)
    assert tables == [tables[0]] * 4


def test_other_users_of_sets(pictures: Path) -> None:
    """Evaluation and batch norms that settle see the same images."""
    networks = []
    for data in (image_folder(pictures, SIZE), files(pictures)):
        network = tiny.made()
        network.first[1].momentum = 0.01  # lags
        settle_for_evaluation(network, Batches(data, 4, 0), 0, "float32")
        networks.append(network)
        assert evaluate(network, data) == evaluate(network, networks[0] and image_folder(pictures, SIZE))
    assert transfer_runs.same(*(network.state_dict() for network in networks))


def test_what_identifies_a_run(pictures: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same set; other names, bytes, labels, size or order are not."""
    copied = tmp_path / "birds"
    shutil.copytree(pictures, copied)
    same = describe_data(files(pictures))
    assert same.startswith("birds: 18 images ")
    os.utime(copied / "a" / "0.png")
    assert describe_data(files(copied)) == same == describe_data(files(copied).to("cpu"))
    others = [files(copied).subset(range(17, -1, -1)), image_files(copied, 7, workers=0), files(copied, resize=9)]
    assert len({same, *map(describe_data, others)}) == 4
    old = (copied / "a" / "0.png").read_bytes()
    (copied / "a" / "0.png").write_bytes(old[:-1] + b"x")  # as long as before
    assert describe_data(files(copied)) != same
    (copied / "a" / "0.png").write_bytes(old)
    (copied / "a" / "0.png").rename(copied / "a" / "00.png")
    assert describe_data(files(copied)) != same


def test_fresh_batches_of_other_files_are_another_run(pictures: Path, tmp_path: Path) -> None:
    """The outer objective's images are in the record, wherever they are kept."""
    copied = tmp_path / "birds"
    shutil.copytree(pictures, copied)

    def run(outer: ImageFiles) -> TransferTrainer:
        options = {"outer": FreshBatch(outer, 4), "epochs": 1}
        return transfer_runs.transfer(tmp_path / "run", data=image_folder(pictures, SIZE), **options)

    run(files(pictures)).train()
    assert run(files(copied)).step == 3
    with pytest.raises(ValueError, match="another run"):
        run(files(copied).subset(range(12)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file(workers: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is named in one line, from a worker as well, and the run goes on when the file is repaired."""
    monkeypatch.setattr(disk, "FEW", 0)
    copied = tmp_path / "birds"
    shutil.copytree(pictures, copied)
    run = trained(files(copied, workers=workers), tmp_path / "run", epochs=1, validation=None)
    whole = (copied / "c" / "5.png").read_bytes()
    (copied / "c" / "5.png").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"c/5.png: expected an image file, got .*; repair the file or remove it$"):
        run.train()
    (copied / "c" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"c/5.png: expected an image file, got No such file or directory$"):
        run.train()
    (copied / "c" / "5.png").write_bytes(whole)
    again = trained(files(copied, workers=workers), tmp_path / "run", epochs=1, validation=None)
    again.train()
    straight = trained(image_folder(pictures, SIZE), epochs=1, validation=None)
    straight.train()
    assert transfer_runs.same(again.model.state_dict(), straight.model.state_dict())


def test_a_cache(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is decoded once, by whatever set; a torn record is decoded again; other files get another cache."""
    decoded: list[str] = []
    read = disk.read_pixels
    monkeypatch.setattr(disk, "read_pixels", lambda path, *a, **k: decoded.append(path) or read(path, *a, **k))
    wanted = files(pictures).in_memory().images
    decoded.clear()
    data = files(pictures, cache=tmp_path)
    data.load(torch.arange(5))
    copied = pickle.loads(pickle.dumps(files(pictures, cache=tmp_path)))
    assert torch.equal(copied.in_memory().images, wanted)
    assert torch.equal(data.split(0.5, 0)[0].in_memory().images, wanted[_rows(data.split(0.5, 0)[0], data)])
    assert sorted(decoded) == sorted(data.path(i) for i in range(18))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[4096 + 100] ^= 1
    file.write_bytes(content[:-50])
    decoded.clear()
    assert torch.equal(files(pictures, cache=tmp_path).in_memory().images, wanted)
    assert decoded == [data.path(0), data.path(17)]
    assert image_files(pictures, SIZE, resize=9, workers=0, cache=tmp_path).in_memory().images.shape == wanted.shape
    assert len(list(tmp_path.iterdir())) == 2


def _rows(part: ImageFiles, whole: ImageFiles) -> list[int]:
    places = {whole.path(i): i for i in range(len(whole))}
    return [places[part.path(i)] for i in range(len(part))]


def fill(folder: str, first: int) -> None:
    """Write and read the records of a cache in an order of one's own."""
    cache, pixels = RecordFile(Path(folder) / "x.images", "same", 400, 16), np.empty((3, 16, 16), np.uint8)
    for i in range(400):
        row = (i * 7 + first) % 400
        if cache.read(row, pixels):
            assert (pixels == row % 251).all()
        cache.write(row, np.full((3, 16, 16), row % 251, np.uint8))


def test_a_cache_of_two_processes(tmp_path: Path, processes: ForkServerContext) -> None:
    """Both write the same bytes, so neither ever reads a wrong image."""
    begun = [processes.Process(target=fill, args=(str(tmp_path), first)) for first in (0, 200)]
    for process in begun:
        process.start()
    for process in begun:
        process.join()
        assert process.exitcode == 0
    pixels, cache = np.empty((3, 16, 16), np.uint8), RecordFile(tmp_path / "x.images", "same", 400, 16)
    for row in range(400):
        assert cache.read(row, pixels)
        assert (pixels == row % 251).all()


def test_a_cache_of_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another set's file and a foreign one are refused; a full disk before, or meanwhile, costs no image."""
    path, pixels = tmp_path / "x.images", np.zeros((3, 4, 4), np.uint8)
    cache = RecordFile(path, "mine", 9, 4)
    cache.write(2, pixels)
    for content, size in (("other", 4), ("mine", 4)):
        if content == "mine":
            path.write_bytes(b"foreign" * 1000)
        with pytest.raises(ValueError, match=r"cache: expected decoded images of these files, got .*delete that file"):
            RecordFile(path, content, 9, size)
    path.write_bytes(b"")
    monkeypatch.setattr("os.pwrite", _full_disk)
    full = RecordFile.__new__(RecordFile)
    full.__setstate__(cache.__getstate__())
    full._descriptor = os.open(path, os.O_RDWR)
    full.write(1, pixels)
    assert not full.read(1, pixels)
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"cache: expected 0.0 GB of free space for .*y.images, got 0.0"):
        RecordFile(tmp_path / "y.images", "mine", 9, 4)


def _full_disk(*_: Any) -> Iterator[None]:
    raise OSError(28, "No space left on device")


def test_what_is_kept_around_an_image(pictures: Path) -> None:
    """An augmentation that takes a margin gets 10 × 10 pixels; everything else the middle 8 × 8 of them."""
    memory, data = image_folder(pictures, 10), files(pictures, resize=10)
    assert torch.equal(data.in_memory().images, memory.images[:, :, 1:9, 1:9])
    seen = []

    def spy(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(images)
        return images

    spy.takes_margin = True
    Batches(data, 18, 0, spy, shuffle=False).batch(0, 0)
    assert torch.equal((255 * seen[0]).round().byte(), memory.images)
    crops = Batches(data, 6, 3, ResizedCrops(8))
    assert crops.batch(0, 0)[0].shape == (6, 3, 8, 8)
    assert torch.equal(crops.batch(0, 1)[0], next(crops.epoch(0, start=1))[0])
    run = trained(data, augment=ResizedCrops(8), epochs=1)
    run.train()
    assert run.result().accuracy == trained(data, augment=ResizedCrops(8), epochs=1).train().accuracy


def test_objects_reach_processes_that_start_afresh(
    pictures: Path, processes: ForkServerContext, tmp_path: Path
) -> None:
    """macOS and Windows start workers without a copy of the parent's memory: everything is pickled."""
    data = files(pictures, cache=tmp_path)
    with processes.Pool(1) as pool:
        images = pool.apply(read_first, (data,))
    assert np.array_equal(images, data.load(torch.arange(3)).numpy())
    assert data.decoding == Decoding(SIZE, workers=0, cache=tmp_path)


def read_first(data: ImageFiles) -> np.ndarray:
    """Three images, as an array."""
    return data.load(torch.arange(3)).numpy()
