"""The image sets of a run: training, validation and test set, split, checked and moved to the device."""

from numbers import Real

import torch
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import class_names
from mtanytime.data.images import LabelledImages, Task

Data = LabelledImages | DataLoader


def prepare_sets(
    data: Task | Data, test: Data | None, validation: float | Data | None, seed: int, device: torch.device
) -> tuple[Data, Data | None, Data | None]:
    """The training, validation and test set of a run, on the device (a `DataLoader` stays as it is).

    Raises ValueError for anything that is not a set, an empty set, a class without training images, and sets of
    different classes.
    """
    if isinstance(data, Task):
        data, test = data.train, data.test if test is None else test
    data = _placed("data", data, device)
    if isinstance(validation, Real):
        require(isinstance(data, LabelledImages), "validation", "a set of its own beside a DataLoader", validation)
        data, validation = data.split(validation, seed)
    if isinstance(data, LabelledImages):
        missing = sorted(set(range(len(data.classes))) - set(data.labels.tolist()))
        if missing:
            raise mismatch("data", "training images of every class", Words(f"none of {data.classes[missing[0]]!r}"))
    validation = None if validation is None else _placed("validation", validation, device)
    test = None if test is None else _placed("test", test, device)
    classes = class_names(data)
    for name, other in (("validation", validation), ("test", test)):
        others = None if other is None else class_names(other)
        if classes is not None and others is not None:
            expected = f"a set of the training set's classes {classes}, in that order"
            require(others == classes, name, expected, others)
    return data, validation, test


def _placed(name: str, data: Data, device: torch.device) -> Data:
    require(isinstance(data, LabelledImages | DataLoader), name, "an ImageSet or a DataLoader", data)
    if isinstance(data, DataLoader):
        return data
    require(len(data) > 0, name, "a set with images", data)
    return data.to(device)
