"""From image files to an image set."""

import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mtanytime.data.images import ImageSet


def image_folder(root: str | Path, size: int = 224) -> ImageSet:
    """Images in one folder a class (torchvision's ImageFolder), read into memory with a progress bar.

    Each is made RGB, its shorter side resized to `size`, and its middle kept. A test set is another folder:
    Task(image_folder("birds/train", 224), image_folder("birds/test", 224)).
    """
    from PIL import Image, ImageOps
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(root))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"wanted a folder of images at {root}, in one sub-folder a class; {error}") from error
    images = torch.empty(len(folder), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> None:
        path = folder.samples[i][0]
        try:
            with Image.open(path) as image:
                image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        except OSError as error:
            raise ValueError(f"cannot read the image {path}: {error}") from error
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPool() as pool:
        for _ in tqdm(pool.imap(read, range(len(folder))), f"reading {root}", len(folder), file=sys.stdout):
            pass
    return ImageSet(images, torch.tensor(folder.targets), tuple(folder.classes), name=Path(root).name)
