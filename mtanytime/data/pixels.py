"""Decode an image file of any kind to RGB pixels as a viewer shows them.

Orientation from EXIF is applied, 16-bit and float grey levels are scaled to 8 bits, transparency is composited on a
background, and an animated file gives its first frame. Whatever exception a decoder raises for a broken file becomes
one `ValueError` that names the file.
"""

import io
from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from mtanytime.checks import Words, mismatch, one_line, require

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_pixels(
    source: str | PathLike[str] | bytes,
    size: int | None = None,
    *,
    background: Color = WHITE,
    name: str | None = None,
) -> UInt8[Tensor, "3 height width"]:
    """Decode an image file to 8-bit RGB.

    Args:
        source: the file's path, or its bytes (for example a member of an archive).
        size: resize the shorter side to `size` (bilinear, antialiased) and keep the middle `size` × `size` pixels;
            None keeps the image's own size.
        background: the colour behind transparent pixels.
        name: what errors call the file; default: its path.

    Raises:
        ValueError: a size below 1, or no colour; the file cannot be decoded, is truncated or PostScript, has more
            pixels than Pillow accepts, or holds grey levels whose scale is unknown (floats outside [0, 1], integers
            outside 0 to 65535).
    """
    check_decoding(size, background)
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source)) as opened:
            refuse_postscript(opened)
            image = to_rgb(_upright(opened), background, name)
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            pixels = np.array(image)
    except (FileNotFoundError, PermissionError):
        raise
    except Image.DecompressionBombError as error:
        remedy = "resize the file, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        raise mismatch(name, f"at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels", Words(error), remedy) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, … for a damaged file
        if str(error).startswith(f"{one_line(name)}: "):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        got = Words(f"one that Pillow cannot decode ({type(error).__name__}: {reason})")
        raise mismatch(name, "an image file", got, "repair the file or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def check_decoding(size: int | None, background: Color) -> None:
    """Raise ValueError for a size that is no whole number >= 1, or a colour that is not three of 0 to 255."""
    whole = isinstance(size, Integral) and not isinstance(size, bool)
    require(size is None or (whole and size >= 1), "size", "a whole number of pixels, at least 1", size)
    three = isinstance(background, tuple | list) and len(background) == 3
    levels = three and all(isinstance(level, Integral) and 0 <= level <= 255 for level in background)
    require(levels, "background", "three whole numbers from 0 to 255, red, green and blue", background)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; Pillow's own function fails where another tag is damaged."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def refuse_postscript(image: Image.Image) -> None:
    """Raise ValueError for a PostScript file under any name: Pillow would have Ghostscript execute it."""
    if image.format == "EPS":
        raise ValueError("PostScript is a program, which is not executed")


def to_rgb(image: Image.Image, background: Color = WHITE, name: str = "image") -> Image.Image:
    """Convert a Pillow image of any mode to RGB, with transparent pixels composited on a background.

    ValueError for grey levels whose scale is unknown, see `read_pixels`.
    """
    if image.mode.startswith("I"):  # "I", "I;16", "I;16B", …: 16-bit grey, which Pillow's convert would clip at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            got = Words(f"{levels.min()} to {levels.max()}")
            raise mismatch(name, "grey levels from 0 to 65535", got, "scale them to 16 bits")
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    elif image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
            got = Words(f"{levels.min():.4g} to {levels.max():.4g}")
            raise mismatch(name, "float grey levels in [0, 1]", got, "divide them by their scale")
        image = Image.fromarray(np.round(255 * levels).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, layer)
    return image.convert("RGB")
