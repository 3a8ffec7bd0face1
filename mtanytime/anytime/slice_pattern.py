"""The slices' pattern: convolutions that are block lower triangular, so that slice j reads only slices ≤ j."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.made_weights import refresh_weights


class TriangularConv(nn.Module):
    """A 1×1 convolution whose output slice j reads the input slices ≤ j: block lower triangular.

    `weights[j]` has shape (channels of output slice j, channels of input slices ≤ j): a connection from a later slice
    to an earlier one has no parameter.

    Args:
        inputs: channels of each slice of the input.
        outputs: channels of each slice of the output.
    """

    kernel: tuple[int, ...] = ()  # the last sizes of the weights
    stride = 1

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(rows, columns, *self.kernel))
            for rows, columns in zip(outputs, accumulate(inputs), strict=True)
        )
        self.register_parameter("bias", None)
        for weight in self.weights:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch outputs height width"]:
        """Convolve the maps of all slices, which are concatenated along the channels."""
        refresh_weights(self.weights)  # a list of parameters is not called, so its hooks would not run
        if _is_exporting():
            return F.conv2d(maps, self.dense()[:, :, None, None], self.bias)
        weights = list(self.weights)
        maps = maps.contiguous()  # channels last would be slow
        if torch.is_autocast_enabled(maps.device.type):
            dtype = torch.get_autocast_dtype(maps.device.type)
            maps, weights = maps.to(dtype), [weight.to(dtype) for weight in weights]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            product = _Triangular.apply(maps.flatten(2), *weights)
        else:
            product = _product(maps.flatten(2), weights)
        if self.bias is not None:
            product = product + self.bias[:, None]
        return product.unflatten(2, maps.shape[2:])

    def output_slice(
        self, maps: Float[Tensor, "batch channel height width"], j: int
    ) -> Float[Tensor, "batch outputs height width"]:
        """Compute output slice j (from 0) alone. Of `maps`, only the channels of input slices ≤ j are read."""
        weight = self.weights[j]
        if _is_exporting():
            bias = None if self.bias is None else self.bias[sum(self.outputs[:j]) :][: len(weight)]
            return F.conv2d(maps[:, : weight.shape[1]], weight[:, :, None, None], bias)
        product = _times(weight, maps[:, : weight.shape[1]].flatten(2))
        if self.bias is not None:
            start = sum(self.outputs[:j])
            product += self.bias[start : start + len(weight), None]
        return product.unflatten(2, maps.shape[2:])

    def dense(self) -> Float[Tensor, "outputs inputs *kernel"]:
        """The weight of an equal ordinary convolution, with zeros for the absent connections."""
        return _filled(list(self.weights), sum(self.inputs))

    def first(self, k: int) -> "TriangularConv":
        """Copy the first k slices as a layer of their own."""
        thin = deepcopy(self)
        thin.inputs, thin.outputs = self.inputs[:k], self.outputs[:k]
        thin.weights = nn.ParameterList(nn.Parameter(weight.detach().clone()) for weight in self.weights[:k])
        if self.bias is not None:
            thin.bias = nn.Parameter(self.bias[: sum(thin.outputs)].detach().clone())
        return thin

    def extra_repr(self) -> str:
        """The slices' channels, for `print`."""
        return f"{self.inputs} -> {self.outputs}"


class TriangularConv3x3(TriangularConv):
    """A 3×3 convolution without groups that is block lower triangular, as `TriangularConv`.

    `weights[j]` has shape (channels of output slice j, channels of input slices ≤ j, 3, 3). Each slice
    is one ordinary convolution; a single one with zeros for the absent blocks would compute up to twice as much.

    Args:
        inputs, outputs: see `TriangularConv`.
        stride: 1, or 2 for maps of half the height and width, rounded up.
    """

    kernel = (3, 3)

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], stride: int = 1) -> None:
        super().__init__(inputs, outputs)
        self.stride = stride

    def forward(
        self, maps: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch outputs height2 width2"]:
        """Convolve the maps of all slices, which are concatenated along the channels."""
        refresh_weights(self.weights)
        if _is_exporting():
            return F.conv2d(maps, self.dense(), self.bias, self.stride, padding=1)
        return torch.cat([self.output_slice(maps, j) for j in range(len(self.weights))], dim=1)

    def output_slice(
        self, maps: Float[Tensor, "batch channel height width"], j: int
    ) -> Float[Tensor, "batch outputs height2 width2"]:
        """Compute output slice j (from 0) alone. Of `maps`, only the channels of input slices ≤ j are read."""
        weight, start = self.weights[j], sum(self.outputs[:j])
        bias = None if self.bias is None else self.bias[start : start + len(weight)]
        return F.conv2d(maps[:, : weight.shape[1]], weight, bias, self.stride, padding=1)

    def extra_repr(self) -> str:
        """The slices' channels and the stride, for `print`."""
        return f"{super().extra_repr()}, stride={self.stride}"


def _is_exporting() -> bool:
    """Whether torch.export traces the network.

    Other runtimes run one convolution for all slices faster than one per slice, although it also multiplies the zeros.
    They compute its weights once, when they load the graph.
    """
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def _product(maps: Float[Tensor, "batch channel pixel"], weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([_times(weight, maps[:, : weight.shape[1]]) for weight in weights], dim=1)


def _times(weight: Float[Tensor, "output channel"], maps: Float[Tensor, "batch channel pixel"]) -> Tensor:
    if _few_pixels(maps, 16):
        return F.conv2d(maps[..., None], weight[:, :, None, None])[..., 0]
    # bmm reads the first channels in place; conv2d would copy them, at four times the cost.
    return torch.bmm(weight.expand(len(maps), -1, -1), maps)


def add_product(
    added: Float[Tensor, "*#batch output #pixel"],
    weight: Float[Tensor, "output channel"],
    maps: Float[Tensor, "batch channel pixel"],
) -> Float[Tensor, "batch output pixel"]:
    """The product of a 1×1 convolution with maps, added to other maps or to a bias per channel."""
    if len(maps) > 1 and _few_pixels(maps, 16):
        return added + _times(weight, maps)
    return torch.baddbmm(added, weight.expand(len(maps), -1, -1), maps)


def _filled(weights: Sequence[Float[Tensor, "output channel *kernel"]], channels: int) -> Tensor:
    """The weights of all slices in one matrix, with zeros for the channels that a slice does not read."""
    # Not F.pad: exporters would compute it, and store the zeros.
    absent = [part.new_zeros(len(part), channels - part.shape[1], *part.shape[2:]) for part in weights]
    return torch.cat([torch.cat(row, dim=1) for row in zip(weights, absent, strict=True)])


def _few_pixels(maps: Float[Tensor, "batch channel pixel"], pixels: int) -> bool:
    """Whether maps are so small that, on a CPU, one product per batch is several times faster than one per image."""
    return maps.device.type == "cpu" and maps.shape[2] <= pixels


class _Triangular(torch.autograd.Function):
    """`_product` with its own gradient: autograd would pad one tensor per slice and add them up."""

    @staticmethod
    def forward(ctx, maps: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(maps, *weights)
        return _product(maps, weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, *weights = ctx.saved_tensors
        slices = gradient.split([len(weight) for weight in weights], dim=1)
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            maps_gradient = sum(
                F.pad(torch.matmul(weight.t(), part), (0, 0, 0, maps.shape[1] - weight.shape[1]))
                for weight, part in zip(weights, slices, strict=True)
            )
            weight_gradients = (
                torch.bmm(part, maps[:, : weight.shape[1]].transpose(1, 2)).sum(dim=0)
                for weight, part in zip(weights, slices, strict=True)
            )
            return maps_gradient, *weight_gradients
        # One dense product, with zeros for the absent blocks, is faster than one narrow product per slice.
        dense = _filled(weights, maps.shape[1])
        maps_gradient = None
        if _few_pixels(maps, 64):
            tensors = gradient[..., None], maps[..., None], dense[:, :, None, None]
            options = None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [ctx.needs_input_grad[0], True, False]
            maps_gradient, dense_gradient, _ = torch.ops.aten.convolution_backward(*tensors, *options)
            maps_gradient = None if maps_gradient is None else maps_gradient[..., 0]
            dense_gradient = dense_gradient[:, :, 0, 0]
        else:
            if ctx.needs_input_grad[0]:
                maps_gradient = torch.bmm(dense.t().expand(len(maps), -1, -1), gradient)
            dense_gradient = torch.bmm(gradient, maps.transpose(1, 2)).sum(dim=0)
        rows = dense_gradient.split([len(weight) for weight in weights])
        return maps_gradient, *(
            row[:, : weight.shape[1]].contiguous() for row, weight in zip(rows, weights, strict=True)
        )
