"""Built-in data: printed letters and handwritten digits over clutter, painted here from a seed.

Nothing is downloaded: the letters come from the fonts that matplotlib ships, the digits are scikit-learn's (8×8 scans
of handwriting). A glyph is a cell of CELL × CELL coverage values; an atlas holds several variants of each glyph (fonts,
stroke widths). `letters` and `digits` are the tasks; `paint` warps and paints batches of glyphs.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from mtanytime.checks import require
from mtanytime.data.images import ImageSet, Task, Tree, leaves, shuffled_by_class
from mtanytime.data.views import LUMA
from mtanytime.randomness import generator_for

# The classes of EMNIST's balanced split without its digits (arXiv:1702.05373): small letters only if they do not look
# like the capital.
LETTER_TREE: Tree = {
    "capital": {"straight": list("AEFHIKLMNTVWXYZ"), "round": list("BCDGJOPQRSU")},
    "small": {"with a loop": list("abdegq"), "without": list("fhnrt")},
}
DIGIT_TREE: Tree = {"with a loop": list("0689"), "without": list("123457")}
DIGITS_A_CLASS = 87  # handwritten digits of every class in the training half, and in the test half

CELL = 64
INK = 52  # the longer side of a glyph's ink in its cell; the margin leaves room for warps
CHUNK = 256  # images painted at once: keeps the working set in the processor's cache
FRAGMENTS, ARCS = 5, 3  # the maximum number of each behind a character
CONTRAST = (0.35, 0.8)  # luminance difference between a character and its ground is drawn from this range
# Fonts of symbols, whose character codes are not letters, and the one that draws only boxes.
_SYMBOL_FONTS = ("STIXSiz", "STIXNonUni", "cmex", "cmsy", "LastResort", "DejaVuSansDisplay", "DejaVuSerifDisplay")


# Tasks


def letters(
    size: int = 32, train_per_class: int = 400, test_per_class: int = 50, seed: int = 0, clutter: float = 0.6
) -> Task:
    """Paint letters in clutter, 37 classes of printed letters: the large source task. Takes seconds.

    Images are (n, 3, size, size), size from 16 to 64; image i shows class i mod 37. clutter is from 0 (plain ground) to
    1 (hard); `paint` describes warps, colours and clutter.
    """
    _check_counts(train_per_class=train_per_class, test_per_class=test_per_class)
    atlas = _printed("".join(sorted(leaves(LETTER_TREE))))
    pools = list(torch.arange(len(atlas))[:, None])

    def part(per_class: int, generator: Generator) -> ImageSet:
        return _painted_set("letters in clutter", LETTER_TREE, atlas, pools, per_class, size, clutter, generator)

    return Task(part(train_per_class, generator_for(seed, 0)), part(test_per_class, generator_for(seed, 1)))


def digits(size: int = 32, per_class: int = 10, test_per_class: int = 200, seed: int = 0, clutter: float = 0.6) -> Task:
    """Paint handwritten digits in clutter, ten classes with few labels: the target task. See `letters`.

    For every seed, the same half of scikit-learn's 1,797 digits is for training and the other half for testing, so no
    test image is a training digit with another warp. Each half has at least 87 digits per class. For more images, they
    are repeated, with a new warp, colour and clutter each (so the two sides of a `split` may then share digits). Image
    i shows class i mod 10.
    """
    _check_counts(per_class=per_class, test_per_class=test_per_class)
    atlas, _ = _handwritten()

    def part(pools: list[Tensor], per_class: int, generator: Generator) -> ImageSet:
        return _painted_set("digits in clutter", DIGIT_TREE, atlas, pools, per_class, size, clutter, generator)

    train = part(_digit_pools(test=False), per_class, generator_for(seed, 0))
    return Task(train, part(_digit_pools(test=True), test_per_class, generator_for(seed, 1)))


def _digit_pools(test: bool) -> list[Tensor]:
    """The indices of the handwritten digits of each class in the training or test half."""
    by_class = shuffled_by_class(_handwritten()[1], 10, generator_for(1797))
    return [index[len(index) // 2 :] if test else index[: len(index) // 2] for index in by_class]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        require(count >= 1, name, "at least 1", count)


def _painted_set(
    name: str,
    tree: Tree,
    atlas: Tensor,
    pools: list[Tensor],
    per_class: int,
    size: int,
    clutter: float,
    generator: Generator,
) -> ImageSet:
    """Paint `per_class` images of each class c, of the glyphs `atlas[pools[c]]` in turn, over pieces of letters."""
    shuffled = [pool[torch.randperm(len(pool), generator=generator)] for pool in pools]
    glyphs = torch.stack([pool[torch.arange(per_class) % len(pool)] for pool in shuffled], 1).flatten()
    scraps = _printed("".join(sorted(leaves(LETTER_TREE))))
    images = paint(atlas, glyphs, scraps, size, clutter, generator)
    return ImageSet(images, torch.arange(len(pools)).repeat(per_class), tuple(sorted(leaves(tree))), tree, name)


# Glyphs


def printed(characters: str) -> UInt8[Tensor, f"characters variants {CELL} {CELL}"]:
    """Render each character in each text font of matplotlib, in three stroke widths. Takes about a second."""
    return _printed(characters).clone()


@lru_cache
def _printed(characters: str) -> Tensor:
    import matplotlib
    import numpy as np
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont

    fonts = []
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if (
            not path.name.startswith(_SYMBOL_FONTS)
            and set(map(ord, characters)) <= FT2Font(str(path)).get_charmap().keys()
        ):
            fonts.append(ImageFont.truetype(str(path), CELL))
    if not fonts:
        folder = matplotlib.get_data_path()
        raise RuntimeError(f"no font of matplotlib has all the characters {characters!r}; searched {folder}")
    cells = np.zeros((len(characters), 3 * len(fonts), CELL, CELL), np.uint8)
    for c, character in enumerate(characters):
        for v in range(cells.shape[1]):
            page = Image.new("L", (3 * CELL, 3 * CELL))
            ImageDraw.Draw(page).text((CELL, CELL), character, fill=255, font=fonts[v // 3], stroke_width=v % 3)
            ink = page.crop(page.getbbox())
            zoom = INK / max(ink.size)
            ink = ink.resize([max(1, round(side * zoom)) for side in ink.size], Image.Resampling.BILINEAR)
            top, left = (CELL - ink.height) // 2, (CELL - ink.width) // 2
            cells[c, v, top : top + ink.height, left : left + ink.width] = np.asarray(ink)
    return torch.from_numpy(cells)


def handwritten() -> tuple[UInt8[Tensor, f"digits variants {CELL} {CELL}"], Int64[Tensor, " digits"]]:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8×8, in three stroke widths, and their labels."""
    atlas, labels = _handwritten()
    return atlas.clone(), labels.clone()


@lru_cache
def _handwritten() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    scans = load_digits()
    grey = torch.from_numpy(scans.images / scans.images.max()).float()[:, None]
    grey = F.interpolate(grey, (INK, INK), mode="bicubic", align_corners=False)
    grey = F.pad(grey, [(CELL - INK) // 2] * 4)
    # The lower the threshold on the grey level, the wider the stroke.
    thresholds = torch.tensor([0.45, 0.55, 0.65])[:, None, None]
    coverage = ((grey - thresholds) * 5 + 0.5).clamp(0, 1)
    return (coverage * 255).round().to(torch.uint8), torch.from_numpy(scans.target).long()


# The painter


def paint(
    atlas: UInt8[Tensor, f"glyphs variants {CELL} {CELL}"],
    glyphs: Int64[Tensor, " images"],
    scraps: UInt8[Tensor, f"others variants2 {CELL} {CELL}"],
    size: int,
    clutter: float,
    generator: Generator,
) -> UInt8[Tensor, "images 3 {size} {size}"]:
    """Paint images: image i shows a random variant of `atlas[glyphs[i]]`, warped and coloured, over clutter.

    The warp is a random affine map (rotation, slant, aspect, zoom, shift). clutter = 0 gives a plain ground; values up
    to 1 add smooth colour noise, a gradient, pieces of the glyphs in `scraps`, arcs and grain. The luminance of a
    character differs from its plain ground by at least CONTRAST[0]; the character is brighter than everything behind
    it, or darker, so that a person can read it. Raises ValueError for a size outside 16 to 64 or a clutter outside 0
    to 1.
    """
    require(16 <= size <= 64, "size", "16 to 64 pixels", size)
    require(0 <= clutter <= 1, "clutter", "a number from 0 (none) to 1 (hard)", clutter)
    if size <= 24:  # bilinear sampling skips pixels of a cell that is much finer than the image
        atlas, scraps = _halved(atlas), _halved(scraps)
    chunks = [_paint(atlas, chunk, scraps, size, clutter, generator) for chunk in glyphs.split(CHUNK)]
    return torch.cat(chunks) if chunks else torch.empty(0, 3, size, size, dtype=torch.uint8)


def _paint(
    atlas: Tensor, glyphs: Tensor, scraps: Tensor, size: int, clutter: float, generator: Generator
) -> UInt8[Tensor, "images 3 {size} {size}"]:
    n = len(glyphs)
    uniform = _uniform(generator)
    ground, ink, behind = _colours(n, FRAGMENTS + ARCS, clutter, generator)
    image = ground[:, :, None, None].expand(n, 3, size, size)
    if clutter:
        x = torch.linspace(-1, 1, size)
        noise = F.interpolate(uniform(-1, 1, n, 3, 5, 5), (size, size), mode="bicubic", align_corners=False)
        slope = uniform(-1, 1, n, 2, 3, 1, 1)
        image = image + 0.2 * clutter * (noise + slope[:, 0] * x + slope[:, 1] * x[:, None])
        layers = torch.cat([_fragments(n, scraps, size, generator), _arcs(n, size, generator)], 1)
        present = uniform(0, 1, n, FRAGMENTS + ARCS, 1, 1) < 0.2 + 0.8 * clutter
        layers = layers * present * uniform(0.6, 1, n, FRAGMENTS + ARCS, 1, 1)
        for k in torch.randperm(FRAGMENTS + ARCS, generator=generator).tolist():
            image = torch.lerp(image, behind[:, k, :, None, None].expand_as(image), layers[:, k, None])
    variant = torch.randint(atlas.shape[1], (n,), generator=generator)
    warp = _affines(n, zoom=(0.85, 1.15), turn=0.25, slant=0.25, shift=0.12, generator=generator)
    # Sampled at twice the resolution and averaged, for smooth edges.
    mask = F.avg_pool2d(_warped(atlas[glyphs, variant], F.affine_grid(warp, (n, 1, 2 * size, 2 * size), False)), 2)
    image = torch.lerp(image, ink[:, :, None, None].expand_as(image), mask)
    grain = torch.randn(image.shape, generator=generator) * uniform(0, 0.08 * clutter, n, 1, 1, 1)
    return ((image + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def _uniform(generator: Generator) -> Callable[..., Tensor]:
    """A function `uniform(low, high, *shape)` that draws from a generator."""
    return lambda low, high, *shape: torch.rand(shape, generator=generator) * (high - low) + low


def _halved(atlas: Tensor) -> Tensor:
    return F.avg_pool2d(atlas.float(), 2).round().to(torch.uint8)


def _warped(cells: UInt8[Tensor, "n cell cell"], grid: Float[Tensor, "n h w 2"]) -> Float[Tensor, "n 1 h w"]:
    return F.grid_sample(cells[:, None].float() / 255, grid, align_corners=False)


def _affines(
    n: int, zoom: tuple[float, float], turn: float, slant: float, shift: float, generator: Generator
) -> Float[Tensor, "{n} 2 3"]:
    """Random maps from image to cell coordinates (both -1 to 1): the inverse of turn * slant * zoom, then shift."""
    uniform = _uniform(generator)
    angle, slope, aspect = uniform(-turn, turn, n), uniform(-slant, slant, n), uniform(-0.15, 0.15, n).exp()
    scale = uniform(*zoom, n)
    cos, sin = angle.cos(), angle.sin()
    # diag(1/sx, 1/sy) @ [[1, -slope], [0, 1]] @ [[cos, sin], [-sin, cos]]
    rows = torch.stack([cos + slope * sin, sin - slope * cos, -sin, cos], 1).view(n, 2, 2)
    rows = rows / torch.stack([scale * aspect, scale / aspect], 1)[:, :, None]
    return torch.cat([rows, -rows @ uniform(-shift, shift, n, 2, 1)], 2)


def _fragments(n: int, scraps: Tensor, size: int, generator: Generator) -> Float[Tensor, "{n} fragments {size} {size}"]:
    """Coverage of pieces of other characters, each cut by a line, so that none can be read as a character."""
    count = n * FRAGMENTS
    which = torch.randint(scraps.shape[0], (count,), generator=generator)
    variant = torch.randint(scraps.shape[1], (count,), generator=generator)
    warp = _affines(count, zoom=(0.6, 1.3), turn=math.pi, slant=0.3, shift=1.0, generator=generator)
    grid = F.affine_grid(warp, (count, 1, size, size), False)
    angle = _uniform(generator)(0, 2 * math.pi, count)
    side = torch.stack([angle.cos(), angle.sin()], 1)[:, :, None]
    distance = (grid.view(count, -1, 2) @ side).view(count, 1, size, size)  # from the line
    return (_warped(scraps[which, variant], grid) * (distance * 8).clamp(0, 1)).view(n, FRAGMENTS, size, size)


def _arcs(n: int, size: int, generator: Generator) -> Float[Tensor, "{n} arcs {size} {size}"]:
    """Coverage of pen strokes: rings around a centre that is often outside the image, so almost straight to round."""
    uniform = _uniform(generator)
    x = torch.linspace(-1, 1, size)
    dx, dy = x - uniform(-2, 2, n, ARCS, 1, 1), x[:, None] - uniform(-2, 2, n, ARCS, 1, 1)
    off = (torch.sqrt(dx**2 + dy**2) - uniform(0.4, 2.5, n, ARCS, 1, 1)).abs()
    return ((uniform(0.04, 0.12, n, ARCS, 1, 1) - off) * size / 2 + 0.5).clamp(0, 1)


def _colours(
    n: int, layers: int, clutter: float, generator: Generator
) -> tuple[Float[Tensor, "{n} 3"], Float[Tensor, "{n} 3"], Float[Tensor, "{n} {layers} 3"]]:
    """Colours of the ground, the character and the layers behind it.

    The character is lighter or darker than its ground by at least CONTRAST[0]. The luminance of the layers is between a
    value beyond the ground and a value part of the way to the character, closer to it with more clutter.
    """
    uniform = _uniform(generator)
    gap = uniform(*CONTRAST, n)
    ground = uniform(0, 1, n) * (1 - gap)
    ink = ground + gap
    inverse = uniform(0, 1, n) < 0.5
    ground, ink = torch.where(inverse, 1 - ground, ground), torch.where(inverse, 1 - ink, ink)
    behind = ground[:, None] + (ink - ground)[:, None] * uniform(-0.6, 0.2 + 0.5 * clutter, n, layers)
    luma = torch.cat([ground[:, None], ink[:, None], behind.clamp(0, 1)], 1)[:, :, None]
    hue = uniform(-0.5, 0.5, n, layers + 2, 3)
    hue = hue - (hue * torch.tensor(LUMA)).sum(-1, keepdim=True)  # keeps the luminance
    room = torch.where(hue > 0, 1 - luma, luma) / hue.abs().clamp_min(1e-6)
    colours = luma + hue * room.amin(-1, keepdim=True).clamp_max(1)
    return colours[:, 0], colours[:, 1], colours[:, 2:]
