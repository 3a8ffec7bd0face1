"""Find the channel axis of a layer's output, and turn outputs of any layout into maps (batch, channel, height, width).

Convolutional networks put channels first, (B, C, H, W). Parts of ConvNeXt and Swin put them last, (B, H, W, C), and a
vision transformer gives tokens, (B, N, C). Shapes alone do not tell these apart, so the layout is inferred from the
modules that run: a convolution, batch norm or 2-d pooling leaves channels first; a `LayerNorm` or `Linear` over the
last axis leaves them last; a call of `permute` moves them. A `Linear` across the pixels, as in an MLP-Mixer, gets the
transposed tokens (B, C, N); what it leaves is no map.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mtanytime.checks import Words, mismatch

Layout = Literal["channels first", "channels last", "tokens"]
MOST_EXTRA_TOKENS = 16  # class and register tokens before those of the patches

_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.PixelShuffle,
    nn.Upsample,
)
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # the axes of a map for `permute`
_WINDOWS = ("WindowPartition", "WindowDepartition")  # torchvision's, in MaxViT


class LayoutRecorder:
    """The layout that the modules of a network left last, updated as they run; made by `record_layouts`."""

    def __init__(self) -> None:
        self._axis = 1
        self._channels: int | None = None  # how many the last informative module left on this axis
        self._shape: tuple[int, ...] = ()  # of its output
        self._permuted = False  # by a call of `permute` that was followed since then
        self._pixels_mixed = False  # a Linear ran along the pixels
        self._in_windows = False  # MaxViT's windows of pixels are no map

    def layout(self, output: Any) -> Layout | None:
        """The layout of a layer's output that was just computed; None for what is neither a map nor tokens."""
        if not isinstance(output, Tensor) or not output.is_floating_point() or self._in_windows:
            return None
        if output.ndim == 4:
            moved = self._is_moved(output.shape)
            return "channels first" if (self._axis == 1) != moved else "channels last"
        if output.ndim != 3 or self._axis == 1 or self._is_transposed(output):
            return None
        unclear = self._pixels_mixed and output.shape[1] == output.shape[2]  # either axis may be that of the channels
        return None if unclear else "tokens"

    def _is_moved(self, shape: tuple[int, ...]) -> bool:
        """Whether the channels of a map moved since the last informative module, by something else than `permute`.

        The whole shape of the last map has to tell: after a concatenation, another axis may happen to be as long as the
        channels were.
        """
        if shape == self._shape:
            return False
        if len(self._shape) != 4:  # tokens or rows that became a map
            axis, other = (1, -1) if self._axis == 1 else (-1, 1)
            return self._channels is not None and shape[axis] != self._channels == shape[other]
        return shape == tuple(self._shape[axis] for axis in (_TO_LAST if self._axis == 1 else _TO_FIRST))

    def permuted(self, tensor: Tensor, dims: tuple[int, ...]) -> None:
        """Follow a call of `permute` on what the last informative module left."""
        moves = {1: _TO_LAST, -1: _TO_FIRST}[self._axis]
        if tensor.shape == self._shape and dims == moves:
            self._axis, self._permuted = -self._axis, True
            self._shape = torch.Size(tensor.shape[axis] for axis in dims)

    def _is_transposed(self, tokens: Tensor) -> bool:
        """Whether tokens were turned to (B, C, N) or back, outside of any module, since the last informative one."""
        first, last = tokens.shape[1:]
        if first == last:  # only the memory tells
            return self._shape == tokens.shape and tokens.stride(1) < tokens.stride(2)
        channels, other = (last, first) if self._axis == -1 else (first, last)
        return channels != self._channels == other

    def _mixes_pixels(self, tokens: Any) -> bool:
        """Whether a `Linear` gets (B, C, N) or (B, C, H, W), and so runs along the pixels."""
        if not isinstance(tokens, Tensor):
            return False
        if tokens.ndim == 3:
            known = self._axis == -1 or tokens.shape[1] == self._channels or tokens.shape[2] == self._channels
            return known and (self._axis == 1) != self._is_transposed(tokens)
        if self._permuted and tokens.shape == self._shape:
            return self._axis == 1
        return self._axis == -1 and len(self._shape) == 4 and self._is_moved(tokens.shape)

    def _update(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 3:
            return
        if isinstance(module, _FIRST):
            self._axis = 1
        elif isinstance(module, nn.Linear):
            mixes_pixels = bool(args) and self._mixes_pixels(args[0])
            self._axis = 1 if mixes_pixels else -1
            self._pixels_mixed |= mixes_pixels
        elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:  # else it tells nothing
            channels = module.normalized_shape[-1]
            # torchvision's LayerNorm2d permutes, normalizes and permutes back.
            first = "2d" in type(module).__name__.lower() or output.shape[-1] != channels
            self._axis = 1 if first else -1
        elif type(module).__name__ in _WINDOWS:
            self._in_windows = type(module).__name__ == "WindowPartition"
            self._axis = 1
        self._permuted = False
        self._channels, self._shape = output.shape[self._axis], output.shape


@contextmanager
def record_layouts(network: nn.Module) -> Iterator[LayoutRecorder]:
    """While the block lasts, a recorder follows the layout through the network's forward passes."""
    recorder = LayoutRecorder()
    with ExitStack() as handles:
        for module in network.modules():
            if isinstance(module, (*_FIRST, nn.Linear, nn.LayerNorm)) or type(module).__name__ in _WINDOWS:
                handles.callback(module.register_forward_hook(recorder._update).remove)
        moves = any(isinstance(module, nn.LayerNorm) or _is_permute(module) for module in network.modules())
        if moves and not is_compiled(network):  # it takes time for every operator, and a compiler would trace it
            handles.enter_context(_Permutes(recorder))
        yield recorder


def _is_permute(module: nn.Module) -> bool:
    return type(module).__name__ == "Permute"  # torchvision's


def is_compiled(network: nn.Module) -> bool:
    """Whether a part of the network was compiled in place, by `network.compile()`."""
    return any(module._compiled_call_impl is not None for module in network.modules())


class _Permutes(TorchFunctionMode):
    """Tells a recorder of every call of `permute` on four axes."""

    def __init__(self, recorder: LayoutRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.permute, Tensor.permute):
            tensor = args[0] if args else kwargs["input"]
            dims = args[1:] or (kwargs["dims"],)
            dims = tuple(dims[0]) if isinstance(dims[0], tuple | list) else dims
            if len(dims) == tensor.ndim == 4:
                self._recorder.permuted(tensor, tuple(axis % 4 for axis in dims))
        return function(*args, **(kwargs or {}))


def to_map(
    output: Tensor,
    layout: Layout,
    image_size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    name: str = "layer",
) -> Float[Tensor, "batch channel height width"]:
    """View a layer's output as a map; class and register tokens, which come first, are left out.

    Args:
        output: (B, C, H, W), (B, H, W, C) or tokens (B, N, C), as `layout` says.
        layout: see `LayoutRecorder.layout`.
        image_size: height and width of the network's images, whose ratio the grid of tokens has.
        grid: rows and columns of the tokens; None: the largest grid of the images' ratio.
        name: the layer, for errors.

    Raises:
        ValueError: tokens that fit no grid, or not the given one.
    """
    if layout == "channels first":
        return output
    if layout == "channels last":
        return output.permute(0, 3, 1, 2)
    tokens = output.shape[1]
    if grid is None:
        grid = _grid(tokens, image_size)
        if grid is None:
            expected = f"a grid of tokens shaped like the images, {image_size[0]} × {image_size[1]}"
            raise mismatch(name, expected, Words(f"{tokens} tokens"), "pass the grid of tokens (rows, columns)")
    elif tokens < grid[0] * grid[1]:
        raise mismatch(name, f"at least {grid[0]} × {grid[1]} tokens", tokens)
    patches = output[:, tokens - grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)


def _grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """The largest grid of the images' ratio that leaves at most `MOST_EXTRA_TOKENS` tokens over."""
    divisor = math.gcd(*image_size)
    rows, columns = (side // divisor for side in image_size)
    factor = math.isqrt(tokens // (rows * columns))
    left = tokens - factor * factor * rows * columns
    return (factor * rows, factor * columns) if factor and left <= min(MOST_EXTRA_TOKENS, tokens // 2) else None
