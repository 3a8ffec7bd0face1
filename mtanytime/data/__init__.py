"""Images: sets in memory and in files, their batches, the built-in tasks, the public data sets."""

from mtanytime.data.batches import Batches, batches_of, class_names, crop_flip, map_batches
from mtanytime.data.birds_and_dogs import cub200, stanford_dogs
from mtanytime.data.crops import ResizedCrops
from mtanytime.data.disk import Decoding, ImageFiles, image_files, unlabelled_files
from mtanytime.data.files import image_folder, unlabelled_folder
from mtanytime.data.imagenet import imagenet_folder, tiny_imagenet
from mtanytime.data.images import ImageSet, LabelledImages, Task, Tree, describe_tensor, leaves, shuffled_by_class
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
from mtanytime.data.scenes_and_actions import indoor67, stanford40
from mtanytime.data.splits import VALIDATION_IMAGES, apply_split, balanced_split
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
    "VALIDATION_IMAGES",
    "Augment",
    "Batches",
    "Decoding",
    "ImageFiles",
    "ImageSet",
    "LabelledImages",
    "ResizedCrops",
    "StrongViews",
    "Task",
    "TransformAugment",
    "Tree",
    "apply_split",
    "balanced_split",
    "batches_of",
    "cifar10",
    "cifar10_jpeg",
    "cifar100",
    "class_names",
    "crop_flip",
    "cub200",
    "describe_tensor",
    "digits",
    "handwritten",
    "image_files",
    "image_folder",
    "imagenet_folder",
    "indoor67",
    "l2t_split",
    "leaves",
    "letters",
    "map_batches",
    "paint",
    "printed",
    "read_pixels",
    "shuffled_by_class",
    "stanford40",
    "stanford_dogs",
    "stl10",
    "tiny_imagenet",
    "unlabelled_files",
    "unlabelled_folder",
]
