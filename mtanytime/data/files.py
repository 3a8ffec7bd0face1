"""Image files: read a folder of images into memory."""

import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mtanytime.checks import Words, mismatch
from mtanytime.data.images import ImageSet


def image_folder(root: str | Path, size: int = 224) -> ImageSet:
    """Read images from one sub-folder per class (torchvision's ImageFolder) into memory, with a progress bar.

    Each image is converted to RGB, its shorter side resized to `size` and its centre cropped to a square. A test set
    is another folder: Task(image_folder("birds/train", 224), image_folder("birds/test", 224)). Raises ValueError for a
    folder without such sub-folders and for a file that cannot be read as an image.
    """
    from PIL import Image, ImageOps
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(root))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise mismatch(str(root), "a folder of images, one sub-folder per class", Words(str(error))) from error
    images = torch.empty(len(folder), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> None:
        path = folder.samples[i][0]
        try:
            with Image.open(path) as image:
                image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        except OSError as error:
            raise mismatch(str(path), "an image", Words(f"a file that cannot be read as one ({error})")) from error
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPool() as pool:
        for _ in tqdm(pool.imap(read, range(len(folder))), f"reading {root}", len(folder), file=sys.stdout):
            pass
    return ImageSet(images, torch.tensor(folder.targets), tuple(folder.classes), name=Path(root).name)
