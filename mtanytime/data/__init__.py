"""Images: sets in memory and their batches, image files, the built-in tasks, the public data sets."""

from mtanytime.data.batches import Batches, batches_of, class_names, crop_flip, map_batches
from mtanytime.data.files import image_folder, unlabelled_folder
from mtanytime.data.images import ImageSet, Task, Tree, describe_tensor, leaves, shuffled_by_class
from mtanytime.data.pixels import read_pixels
from mtanytime.data.public import (
    CIFAR10_TREE,
    CIFAR100_TREE,
    STL10_TREE,
    cifar10,
    cifar10_jpeg,
    cifar100,
    l2t_split,
    stl10,
)
from mtanytime.data.synthetic import (
    CELL,
    CHUNK,
    CONTRAST,
    DIGIT_TREE,
    DIGITS_A_CLASS,
    INK,
    LETTER_TREE,
    LUMA,
    digits,
    handwritten,
    letters,
    paint,
    printed,
)
from mtanytime.data.transforms import Augment, TransformAugment
from mtanytime.data.views import StrongViews

__all__ = [
    "CELL",
    "CHUNK",
    "CIFAR10_TREE",
    "CIFAR100_TREE",
    "CONTRAST",
    "DIGITS_A_CLASS",
    "DIGIT_TREE",
    "INK",
    "LETTER_TREE",
    "LUMA",
    "STL10_TREE",
    "Augment",
    "Batches",
    "ImageSet",
    "StrongViews",
    "Task",
    "TransformAugment",
    "Tree",
    "batches_of",
    "cifar10",
    "cifar10_jpeg",
    "cifar100",
    "class_names",
    "crop_flip",
    "describe_tensor",
    "digits",
    "handwritten",
    "image_folder",
    "l2t_split",
    "leaves",
    "letters",
    "map_batches",
    "paint",
    "printed",
    "read_pixels",
    "shuffled_by_class",
    "stl10",
    "unlabelled_folder",
]
