"""Image files of every kind become the pixels that a viewer shows, or one error that names the file."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from damage import checked, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from PIL import EpsImagePlugin, Image

from mtanytime.data.pixels import read_pixels

RAMP = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(8, 0)
BAR = np.zeros((16, 8, 3), np.uint8)
BAR[:4] = 255  # white at the top


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def grey(source: bytes) -> np.ndarray:
    """The first row of the red channel, after checking that the image is grey."""
    pixels = read_pixels(source)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    return pixels[0, 0].numpy()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    """Pillow's own conversion clips at 255, which turns a ramp white."""
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(RAMP), format)), np.round(RAMP[0] / 257))


def test_float_grey_is_scaled() -> None:
    """Floats in [0, 1] are fractions of white; others have a scale that the file does not tell."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, 0)
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(ramp), "TIFF")), np.round(255 * ramp[0].astype(float)))
    for wrong in (ramp * 255, ramp - 0.5, np.full_like(ramp, np.nan)):
        with pytest.raises(ValueError, match=r"^image: expected float grey levels in \[0, 1\], got .* to .*; divide"):
            read_pixels(encoded(Image.fromarray(wrong), "TIFF"))


def test_integer_grey_outside_16_bits_is_refused() -> None:
    """32-bit grey levels have no known scale."""
    with pytest.raises(ValueError, match="expected grey levels from 0 to 65535, got 0 to 70000"):
        read_pixels(encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: expected a whole number of pixels, at least 1, got 0"),
        ({"size": (8, 8)}, r"size: expected a whole number of pixels, at least 1, got \(8, 8\)"),
        ({"background": "white"}, "background: expected three whole numbers from 0 to 255, .*, got 'white'"),
        ({"background": (0.5, 0.5, 0.5)}, "background: expected three whole numbers from 0 to 255"),
    ],
)
def test_a_bad_argument_is_not_the_files_fault(arguments: dict, message: str, unchecked: None) -> None:
    """The error names the argument; a good file is not to be repaired."""
    with pytest.raises(ValueError, match=message):
        read_pixels(encoded(Image.new("RGB", (8, 8))), **arguments)


def test_a_damaged_tag_beside_the_orientation() -> None:
    """It is not needed to turn the photograph: pixels count."""
    # Turned by a quarter; and the unit of the resolution has the type of a byte, which Pillow cannot write again.
    tags = struct.pack("<HHIIHHII", 274, 3, 1, 6, 296, 1, 1, 2)
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 2) + tags + struct.pack("<I", 0)
    assert read_pixels(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).shape == (3, 8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    """A photograph that a camera stored on its side stands upright, for each of EXIF's eight orientations."""
    # How to undo each orientation, from the EXIF standard's table, on an array (height, width, channel).
    upright: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    stored = np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[274] = orientation
    pixels = read_pixels(encoded(image, exif=exif)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, upright[orientation](stored))


def transparent(mode: str) -> Image.Image:
    """Half black and half transparent, in a mode with transparency."""
    alpha = np.zeros((4, 8), np.uint8)
    alpha[:, :4] = 255
    rgba = Image.fromarray(np.dstack([np.zeros((4, 8, 3), np.uint8), alpha]))
    if mode == "P":
        image = Image.fromarray(np.where(alpha, 0, 1).astype(np.uint8)).convert("L")
        image = image.convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.info["transparency"] = 1
        return image
    return rgba if mode == "RGBA" else rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited(mode: str) -> None:
    """What lies below a transparent pixel (often black, or a palette's odd color) must not show."""
    options = {"transparency": 1} if mode == "P" else {}
    source = encoded(transparent(mode), **options)
    pixels = read_pixels(source)
    assert (pixels[:, :, :4] == 0).all()
    assert (pixels[:, :, 4:] == 255).all()
    pixels = read_pixels(source, background=(10, 20, 30))
    assert pixels[:, 0, 7].tolist() == [10, 20, 30]


def test_other_modes() -> None:
    """Grey, 1-bit, palette and CMYK files."""
    levels = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(8, 0)
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(levels))), levels[0])
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(levels > 100))), np.where(levels[0] > 100, 255, 0))
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(levels).convert("P"), "GIF")), levels[0])
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert (read_pixels(encoded(cmyk, "JPEG", quality=100))[:, 4, 4] - torch.tensor([255, 0, 0])).abs().max() <= 3


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_animated_files_give_their_first_frame(format: str) -> None:
    """Every frame counts once: the first one."""
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    source = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert read_pixels(source)[:, 4, 4].tolist() == [255, 0, 0]


def test_size() -> None:
    """The shorter side becomes `size` and the middle is kept."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert (read_pixels(encoded(Image.fromarray(wide)), 8) == 255).all()


def test_broken_files_are_named(tmp_path: Path) -> None:
    """Cut off, empty, or no image at all: one line that names the file and says what to do."""
    whole = encoded(Image.fromarray(BAR.repeat(8, 0)), "JPEG")
    for name, content in {"cut.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"hello"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: expected an image file, got .*; repair the file") as raised:
            read_pixels(path)
        assert "\n" not in str(raised.value)


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's guard against decompression bombs is explained."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"^image: expected at most 40 pixels, got .*; resize the file, or raise PIL"):
        read_pixels(encoded(Image.fromarray(BAR)))


def test_postscript_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript execute PostScript, under any file name: a program in a folder of photographs."""
    executed = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: executed.append(True))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(%pipe%id) (r) file\n%%EOF\n"
    assert Image.open(io.BytesIO(program)).format == "EPS"
    with pytest.raises(ValueError, match=r"^image: expected an image file, .*PostScript is a program"):
        read_pixels(program)
    assert executed == []


VALID = [encoded(Image.fromarray(BAR), format) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")]
VALID += [encoded(Image.fromarray(RAMP)), encoded(transparent("P"), transparency=1)]


@settings(max_examples=examples(60))
@given(content=damaged(*VALID), size=st.sampled_from([None, 4]))
def test_damaged_files_give_pixels_or_one_error(content: bytes, size: int | None) -> None:
    """Random bytes, and real files with bytes changed or cut off: pixels, or one line that names the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a b.jpg"
        path.write_bytes(content)
        pixels = checked(lambda path: read_pixels(path, size), path)
    if pixels is not None:
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        assert size is None or pixels.shape[1:] == (4, 4)
