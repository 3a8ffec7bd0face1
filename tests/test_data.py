"""Data: the built-in tasks, sets and splits, batches that a run can resume in, and public data sets."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Generator
from torch.utils.data import DataLoader, TensorDataset
from typechecker import unchecked

from mtanytime import data as datasets
from mtanytime.data import synthetic as characters
from mtanytime.data.batches import Batches, crop_flip
from mtanytime.data.images import ImageSet, LabelledImages, Task
from mtanytime.data.synthetic import digits, handwritten, letters
from mtanytime.randomness import derive_seed

LUMA = torch.tensor(characters.LUMA)


def seeded(seed: int = 0) -> Generator:
    """A new generator with a seed."""
    return Generator().manual_seed(seed)


def numbered(counts: list[int], size: int = 4) -> ImageSet:
    """A set with counts[c] images of class c; image i is filled with the number i."""
    labels = torch.cat([torch.full((k,), c) for c, k in enumerate(counts)])
    images = torch.arange(len(labels)).to(torch.uint8)[:, None, None, None].repeat(1, 3, size, size)
    return ImageSet(images, labels, tuple("abcdefghij"[: len(counts)]), name="numbered")


def same(one: list, other: list) -> bool:
    """Whether two lists of batches are equal."""
    return len(one) == len(other) and all(
        torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)
    )


# Seeds


def test_derive_seed_is_stable_and_separates_its_parts():
    """A run resumed by a later version must see the same order, so the hash may never change."""
    assert derive_seed(0) == 2631537505891389924
    assert derive_seed(3, 1, 4) == 8860860081527638639
    seeds = {derive_seed(seed, *parts) for seed in range(20) for parts in [(), (0,), (1,), (0, 1), (1, 0)]}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


# Built-in tasks


@pytest.mark.parametrize("make", [lambda seed: letters(16, 2, 1, seed), lambda seed: digits(16, 3, 2, seed)])
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(make: Callable):
    """Results are reproducible only if the data are."""
    one, again, other = make(0), make(0), make(1)
    for part in ("train", "test"):
        assert torch.equal(getattr(one, part).images, getattr(again, part).images)
        assert not torch.equal(getattr(one, part).images, getattr(other, part).images)
    assert not torch.equal(one.train.images[: len(one.test)], one.test.images[: len(one.train)])


@pytest.mark.parametrize("size", [16, 24, 33, 64])
def test_built_in_tasks_have_the_given_size_and_number_of_images(size: int):
    """Each class must have the given number of images, at every possible size."""
    source, target = letters(size, 2, 1), digits(size, 3, 95)
    assert source.train.images.shape == (74, 3, size, size)
    assert target.test.images.shape == (950, 3, size, size)
    assert set(Counter(source.train.labels.tolist()).values()) == {2}
    assert set(Counter(target.test.labels.tolist()).values()) == {95}


def test_trees_hold_every_class_once():
    """Coarse labels come from the tree, so its leaves must be the classes."""
    source, target = letters(16, 1, 1), digits(16, 1, 1)
    assert len(source.classes) == 37
    assert source.classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
    assert target.classes == tuple("0123456789")
    for tree, count in [
        (source.train.tree, 37),
        (target.train.tree, 10),
        (datasets.CIFAR10_TREE, 10),
        (datasets.STL10_TREE, 10),
        (datasets.CIFAR100_TREE, 100),
    ]:
        assert len(set(datasets.leaves(tree))) == len(datasets.leaves(tree)) == count
    assert all(len(classes) == 5 for classes in datasets.CIFAR100_TREE.values())


def test_no_digit_is_drawn_for_training_and_for_testing():
    """A test image that is a training digit with another warp would make every method look better than it is."""
    train, test = characters._digit_pools(test=False), characters._digit_pools(test=True)
    read = characters.handwritten()[1]
    for digit in range(10):
        assert not set(train[digit].tolist()) & set(test[digit].tolist())
        assert min(len(train[digit]), len(test[digit])) >= 87
        assert (read[torch.cat([train[digit], test[digit]])] == digit).all()
    assert sum(map(len, train + test)) == 1797


def test_every_letter_is_similar_in_all_fonts_and_unlike_the_others():
    """A font of symbols among the fonts would put wrong pictures under the labels."""
    atlas = characters.printed("ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt").float()
    assert atlas.shape[1] >= 3 * 15
    mean = atlas.mean(1).flatten(1)
    mean, cells = mean - mean.mean(0), atlas.flatten(2) - mean.mean(0)
    similarity = torch.nn.functional.normalize(cells, dim=2) @ torch.nn.functional.normalize(mean, dim=1).T
    correct = similarity.argmax(2) == torch.arange(37)[:, None]
    assert correct.float().mean() > 0.9
    assert correct.float().mean(0).min() > 0.7  # in each font


@pytest.mark.parametrize("clutter", [0.0, 0.6, 1.0])
def test_a_character_keeps_its_contrast_to_the_layers_behind_it(clutter: float):
    """People must be able to read almost all images, or the best possible accuracy is unknown."""
    ground, ink, behind = (colour @ LUMA for colour in characters._colours(2000, 8, clutter, seeded()))
    gap = ink - ground
    assert gap.abs().min() > characters.CONTRAST[0] - 1e-4
    assert ((ink[:, None] - behind) * gap.sign()[:, None]).min() > 0.3 * characters.CONTRAST[0] - 1e-4
    for colour in characters._colours(2000, 8, clutter, seeded()):
        assert colour.min() >= -1e-6
        assert colour.max() <= 1 + 1e-6


def test_without_clutter_the_ground_is_plain():
    """`clutter=0` is documented as plain ground: most pixels of the border have one colour."""
    images = letters(32, 2, 1, clutter=0.0).train.images
    corner = images[:, :, :1, :1]
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2)
    assert (border == corner[:, :, 0]).float().mean() > 0.9
    assert (letters(32, 2, 1, clutter=1.0).train.images[:, :, 0] == corner[:, :, 0]).float().mean() < 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: letters(8), "size: expected 16 to 64 pixels, got 8"),
        (lambda: digits(65), "size: expected 16 to 64 pixels, got 65"),
        (lambda: letters(16, 1, 1, clutter=1.5), r"clutter: expected a number from 0 \(none\) to 1 \(hard\), got 1.5"),
        (lambda: digits(16, 0), "per_class: expected at least 1, got 0"),
    ],
)
def test_built_in_tasks_refuse_impossible_settings(make: Callable, message: str):
    """A typing error should cost a second, not a training run."""
    with pytest.raises(ValueError, match=message):
        make()


# Sets and splits


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_balanced_and_loses_nothing(counts: list[int], fraction: float, seed: int):
    """Each class sends its fraction to validation, each side keeps an image, and none is lost or shared."""
    data = numbered(counts)
    train, validation = data.split(fraction, seed)
    for c, count in enumerate(counts):
        held = (validation.labels == c).sum().item()
        assert 1 <= held <= count - 1
        assert abs(held - fraction * count) <= 1
    assert sorted(part.images[i, 0, 0, 0].item() for part in (train, validation) for i in range(len(part))) == list(
        range(len(data))
    )
    again, _ = data.split(fraction, seed)
    assert torch.equal(train.images, again.images)


def test_few_selects_the_same_number_per_class_and_depends_on_the_seed():
    """Runs with few labels must differ in their labels from seed to seed, and repeat with the same seed."""
    data = numbered([30, 20, 25])
    chosen = data.few(5, seed=1)
    assert Counter(chosen.labels.tolist()) == {0: 5, 1: 5, 2: 5}
    assert len(chosen.images[:, 0, 0, 0].unique()) == 15
    assert (data.labels[chosen.images[:, 0, 0, 0].long()] == chosen.labels).all()
    assert torch.equal(chosen.images, data.few(5, seed=1).images)
    assert not torch.equal(chosen.images, data.few(5, seed=2).images)


IMAGES, LABELS = torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ImageSet(IMAGES.float(), LABELS, ("a", "b")),
            r"images: expected uint8 \(n, 3, .*, got float32 \(3, 3, 4, 4\)",
        ),
        (
            lambda: ImageSet(IMAGES[:, :1], LABELS, ("a", "b")),
            r"images: expected uint8 \(n, 3, .*, got uint8 \(3, 1, 4, 4\)",
        ),
        (
            lambda: ImageSet(IMAGES, LABELS / 2, ("a", "b")),
            r"labels: expected whole .* got float32 \(3,\)",
        ),
        (
            lambda: ImageSet(IMAGES, LABELS[:2], ("a", "b")),
            r"labels: expected whole .* got int64 \(2,\)",
        ),
        (lambda: ImageSet(IMAGES, LABELS, ("a",)), "labels: expected 0 to 0, got 0 to 1"),
        (lambda: ImageSet(IMAGES, LABELS - 1, ("a", "b")), "labels: expected 0 to 1, got -1 to 0"),
        (
            lambda: ImageSet(IMAGES, LABELS, ("a", "b"), {"x": ["a"], "y": ["c"]}),
            r"tree: expected each class once, got a tree that differs in \['b', 'c'\]",
        ),
        (
            lambda: ImageSet(IMAGES, LABELS, ("a", "b"), {"x": ["a", "b"], "y": ["b"]}),
            "tree: expected each class once, got a class twice",
        ),
        (
            lambda: numbered([3, 0, 4]).split(0.1, 0),
            "class 'b' of 'numbered': expected at least 2 images for a split, got 0",
        ),
        (lambda: numbered([3, 4]).split(1.5, 0), "fraction: expected a number between 0 and 1, got 1.5"),
        (
            lambda: numbered([3, 2]).few(3, 0),
            "per_class: expected 1 to 2, the images of class 'b' in 'numbered', got 3",
        ),
        (lambda: numbered([3, 2]).subset([5]), "indices: expected 0 to 4, got 5 to 5"),
        (
            lambda: Task(numbered([2, 2]), numbered([2])),
            r"test: expected the classes of train, \('a', 'b'\), got \('a',\)",
        ),
        (
            lambda: Task(numbered([2], 4), numbered([2], 5)),
            r"test: expected the image shape of train, \(3, 4, 4\), got \(3, 5, 5\)",
        ),
        (lambda: Batches(numbered([2]), 0, 0), "batch_size: expected at least 1, got 0"),
        (lambda: Batches(numbered([2]).subset([]), 1, 0), "data: expected at least one image, got none"),
        (
            lambda: Batches(numbered([2]), 1, 0).epoch(0, 3),
            "start: expected 0 to 2, the number of batches per epoch, got 3",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_by_name(make: Callable, message: str):
    """An error must name the argument, what was expected and what came, before any training."""
    with pytest.raises(ValueError, match=message):
        make()


def test_classes_of_any_sequence():
    """Names from NumPy, such as a label encoder's, are the same classes as in a tuple."""
    encoded = ImageSet(IMAGES, LABELS, np.array(["a", "b"]))
    assert Task(encoded, ImageSet(IMAGES, LABELS, ["a", "b"])).classes == ("a", "b")


# Batches


def test_the_drawn_characters_are_copies():
    """Who writes into them does not change the tasks."""
    before = digits(16, 1, 1)
    handwritten()[0].zero_()
    assert torch.equal(digits(16, 1, 1).train.images, before.train.images)


def test_an_epoch_shows_every_image_once_as_floats():
    """The smaller last batch is used, images are in [0, 1], and the order differs between epochs and seeds."""
    data = numbered([10, 13])
    batches = Batches(data, 5, seed=0)
    epoch = list(batches.epoch(0))
    assert len(batches) == len(epoch) == 5
    assert [len(labels) for _, labels in epoch] == [5, 5, 5, 5, 3]
    images, labels = (torch.cat(part) for part in zip(*epoch, strict=True))
    assert images.dtype == torch.float32
    shown = (images[:, 0, 0, 0] * 255).round().long()
    assert shown.sort().values.tolist() == list(range(23))
    assert torch.equal(data.labels[shown], labels)
    assert not same(epoch, list(batches.epoch(1)))
    assert not same(epoch, list(Batches(data, 5, seed=1).epoch(0)))
    plain = torch.cat([labels for _, labels in Batches(data, 5, seed=0, shuffle=False).epoch(3)])
    assert torch.equal(plain, data.labels)


@settings(max_examples=30)
@given(start=st.integers(0, 5), seed=st.integers(0, 2**31), epoch=st.integers(0, 300))
def test_skipping_ahead_equals_iterating_through(start: int, seed: int, epoch: int):
    """A run that resumes at batch `start` must get the batches that it would have got without a stop."""
    batches = Batches(numbered([10, 13]), 5, seed, augment=crop_flip(1))
    through = list(batches.epoch(epoch))[start:]
    torch.rand(1)  # the global generator must have no effect
    assert same(through, list(batches.epoch(epoch, start)))


def jittered(numbers: list[int]) -> DataLoader:
    """A loader that shuffles and adds noise to each image, both with torch's global generator."""
    pairs = [(torch.full((3, 2, 2), number / 100.0), number) for number in numbers]
    samples = [lambda p=pair: (p[0] + 0.1 * torch.rand(1), p[1]) for pair in pairs]
    dataset = type("Noisy", (), {"__len__": lambda self: len(samples), "__getitem__": lambda self, i: samples[i]()})()
    return DataLoader(dataset, batch_size=4, shuffle=True)


def test_a_data_loader_gives_the_same_epoch_again_and_leaves_the_generator_alone():
    """A run on a user's DataLoader must resume, too: its order and random transforms depend on (seed, epoch) alone."""
    batches = Batches(jittered(list(range(10))), None, seed=3, augment=crop_flip(1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    epoch = list(batches.epoch(2))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    assert len(batches) == len(epoch) == 3
    assert same(epoch, list(batches.epoch(2)))
    assert same(epoch[1:], list(batches.epoch(2, start=1)))
    assert not same(epoch, list(batches.epoch(3)))
    assert torch.cat([labels for _, labels in epoch]).sort().values.tolist() == list(range(10))


def test_a_data_loader_with_its_own_generator_is_seeded_too():
    """A generator given to the DataLoader would otherwise continue from epoch to epoch; afterwards it is as before.

    Else an evaluation between the epochs of the user's own loop would give all of them one order.
    """
    data = TensorDataset(torch.zeros(10, 3, 2, 2), torch.arange(10))
    own = seeded()
    batches = Batches(DataLoader(data, batch_size=4, shuffle=True, generator=own), None, seed=0)
    before = own.get_state()
    next(batches.epoch(1))
    list(batches.epoch(0))
    assert torch.equal(own.get_state(), before)
    first = [labels.tolist() for _, labels in batches.epoch(0)]
    assert first != [labels.tolist() for _, labels in batches.epoch(1)]
    assert first == [labels.tolist() for _, labels in batches.epoch(0)]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.full((4, 3, 2, 2), 1.5),
            torch.zeros(4).long(),
            r"images: expected values in \[0, 1\], got 1.5 to 1.5; leave mean",
        ),
        (
            torch.full((4, 3, 2, 2), -0.5),
            torch.zeros(4).long(),
            r"images: expected values in \[0, 1\], got -0.5 to -0.5",
        ),
        (
            torch.full((4, 3, 2, 2), float("nan")),
            torch.zeros(4).long(),
            r"images: expected values in \[0, 1\], got nan to nan$",
        ),
        (torch.zeros(4, 3, 2, 2).byte(), torch.zeros(4).long(), r"images: expected float .*, got uint8 \(4, 3, 2, 2\)"),
        (torch.zeros(4, 1, 2, 2), torch.zeros(4).long(), r"images: expected float .*, got float32 \(4, 1, 2, 2\)"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4), r"labels: expected int64 \(4,\), got float32 \(4,\)"),
    ],
)
def test_a_data_loader_is_checked_at_its_first_batch(images: torch.Tensor, labels: torch.Tensor, message: str):
    """Images normalized by a transform are the most common mistake; without a check, training would just be bad."""
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    with pytest.raises(ValueError, match=message):
        next(Batches(loader, None, 0).epoch(0))
    with pytest.raises(ValueError, match="batch_size: expected None, since the DataLoader has its own, 4, got 8"):
        Batches(loader, 8, 0)


@given(seed=st.integers(0, 2**31), flip=st.booleans(), padding=st.integers(0, 3))
def test_crop_flip_gives_windows_of_the_padded_image(seed: int, flip: bool, padding: int):
    """As for torchvision's RandomCrop and RandomHorizontalFlip, each output is a window of the padded image."""
    # Pixels hold their own number, so that a window shows where it was cut.
    image = torch.arange(1.0, 1 + 3 * 5 * 6).view(3, 5, 6)
    out = crop_flip(padding, flip)(image.repeat(8, 1, 1, 1), seeded(seed))
    padded = torch.nn.functional.pad(image, [padding] * 4)
    windows = [padded[:, y : y + 5, x : x + 6] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    windows += [window.flip(2) for window in windows] if flip else []
    assert all(any(torch.equal(one, window) for window in windows) for one in out)


def test_crop_flip_reaches_every_window_as_often():
    """Offsets and flips are uniform and drawn for each image separately."""
    image = torch.arange(1.0, 10).view(1, 1, 3, 3)
    out = crop_flip(1)(image.repeat(9000, 1, 1, 1), seeded())
    counts = Counter(tuple(one.flatten().tolist()) for one in out)
    assert len(counts) == 18
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


# Data sets on disk


@pytest.mark.parametrize("load", [datasets.cifar10, datasets.cifar100, datasets.stl10])
def test_absent_data_says_how_to_get_it(load: Callable, tmp_path: Path):
    """Nothing is downloaded unless requested, and the error says how to request it."""
    with pytest.raises(FileNotFoundError, match=r"is not complete in .*; pass download=True"):
        load(tmp_path)


def test_torchvision_sets_are_turned_into_tensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """CIFAR stores channels last, STL-10 channels first and 96 pixels: both become (n, 3, 32, 32)."""
    pixels = torch.randint(256, (10, 32, 32, 3), generator=seeded(), dtype=torch.uint8).numpy()
    fake = SimpleNamespace(data=pixels, targets=list(range(10)), classes=sorted(datasets.leaves(datasets.CIFAR10_TREE)))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, train, download: fake)
    cifar = datasets.cifar10(tmp_path)
    assert np.array_equal(cifar.train.images[3].permute(1, 2, 0).numpy(), pixels[3])
    large = torch.randint(256, (10, 3, 96, 96), generator=seeded(), dtype=torch.uint8).numpy()
    classes = sorted(datasets.leaves(datasets.STL10_TREE))
    fake = SimpleNamespace(data=large, labels=np.arange(10, dtype=np.uint8), classes=classes)
    monkeypatch.setattr(torchvision.datasets, "STL10", lambda root, split, download: fake)
    stl = datasets.stl10(tmp_path)
    assert stl.test.images.shape == (10, 3, 32, 32)
    reference = Image.fromarray(large[0].transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    difference = stl.test.images[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(reference)).int()
    assert difference.abs().max() <= 1  # as the authors resized: Pillow, bilinear with a wide filter
    assert datasets.stl10(tmp_path, size=96).train.images.shape == (10, 3, 96, 96)


def test_image_folder_reads_any_image_to_one_size(tmp_path: Path):
    """Landscape, portrait and greyscale images become RGB squares cropped at the centre; a broken one is named."""
    for name, mode, size in [
        ("cat/a.png", "RGB", (40, 20)),
        ("cat/b.png", "L", (20, 50)),
        ("dog/c.png", "RGBA", (7, 7)),
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new(mode, size).save(tmp_path / name)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (255, 128, 0)
    Image.fromarray(wide).save(tmp_path / "cat/a.png")
    data = datasets.image_folder(tmp_path, 20)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    assert (data.images[0] == torch.tensor([255, 128, 0])[:, None, None]).all()
    (tmp_path / "dog/d.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"d\.png: expected an image file, got one that Pillow cannot decode"):
        datasets.image_folder(tmp_path, 20)


def test_cifar10_from_jpeg(shared: Callable[[str], Path]):
    """The file has all 60,000 images, balanced, and decodes fast enough for tests and measurements."""
    path = shared("data/cifar10_jpeg.npz")
    start = time.process_time()
    task = datasets.cifar10_jpeg(path)
    assert time.process_time() - start < 20
    assert task.train.images.shape == (50000, 3, 32, 32)
    assert task.train.labels.bincount().tolist() == [5000] * 10
    assert task.test.labels.bincount().tolist() == [1000] * 10
    assert 110 < task.train.images.float().mean() < 130
    assert task.classes[0] == "airplane"


def test_a_foreign_jpeg_file_is_refused(tmp_path: Path):
    """The error must list the keys that the file should have."""
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(
        ValueError,
        match=r"x\.npz: expected the keys .*, got \['images'\], without \['classes', 'train_jpeg'",
    ):
        datasets.cifar10_jpeg(tmp_path / "x.npz")


def test_authors_splits(shared: Callable[[str], Path]):
    """Training and validation indices are disjoint, and as many as in the paper's code."""
    path = shared("data/l2t_splits.npz")
    split = datasets.l2t_split(path, "cub200")
    assert [len(split[part]) for part in ("train", "val", "test")] == [4994, 1000, 5794]
    assert not set(split["train"].tolist()) & set(split["val"].tolist())
    with pytest.raises(ValueError, match=r"name: expected one of \['cifar100', 'cub200', .*\], .*, got 'cub'"):
        datasets.l2t_split(path, "cub")


def test_image_folder_that_is_not_there(tmp_path):
    """For a misspelt folder, the message must describe the expected layout."""
    with pytest.raises(ValueError, match="flowres: expected a folder of images, one sub-folder per class"):
        datasets.image_folder(tmp_path / "flowres")


def test_a_mask_is_not_taken_for_indices(monkeypatch: pytest.MonkeyPatch):
    """True and False would stand for the images 1 and 0."""
    monkeypatch.setattr(LabelledImages, "subset", unchecked(LabelledImages.subset))
    data = digits(per_class=2, seed=0).train
    mask = data.labels == 1
    with pytest.raises(ValueError, match=r"indices: expected whole numbers, got bool; of a mask: mask.nonzero"):
        data.subset(mask)
    assert data.subset(mask.nonzero().flatten()).labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"indices: expected whole numbers, got float32"):
        data.subset(torch.tensor([0.0, 1.5]))
    assert len(data.subset([])) == 0
    with pytest.raises(ValueError, match=r"indices: expected a row of them, got the shape \(1, 20\)"):
        data.subset(np.arange(20)[None])
