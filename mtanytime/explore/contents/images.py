"""Images in a page: as data URIs, which need no file beside the page."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mtanytime.checks import Words, require

IMAGES_UP_TO = 64
PIXELS_UP_TO = 96  # per side; larger images are shown smaller


def require_images(images: Any) -> None:
    """Raise ValueError unless `images` is a uint8 array (n, 3, height, width) of 1 to 64 images."""
    fits = isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[1] == 3 and images.dtype == np.uint8
    kind = f"{getattr(images, 'dtype', type(images).__name__)} of shape {tuple(getattr(images, 'shape', ()))}"
    require(fits, "images", "a NumPy array of uint8 (n, 3, height, width)", Words(kind))
    require(1 <= len(images) <= IMAGES_UP_TO, "images", f"1 to {IMAGES_UP_TO} images", len(images))


def data_uri(image: UInt8[np.ndarray, "3 h w"]) -> str:
    """Return an image as the data URI of a PNG, scaled down to at most 96 pixels per side."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((PIXELS_UP_TO, PIXELS_UP_TO))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pixels(uri: str) -> UInt8[np.ndarray, "3 h w"]:
    """Return the image in a data URI from `data_uri`."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).transpose(2, 0, 1)
