"""The weighted feature-matching loss of L2T-ww (arXiv:1905.05901, eq. 1 and 2).

    L_wfm^{m,n}(x) = Σ_c w_c · mean_{h,w} (r^{m,n}(T^n(x)) - S^m(x))²_c
    L_wfm(x)       = Σ_{(m,n)} λ^{m,n}(x) · L_wfm^{m,n}(x)

r^{m,n}, a 1×1 convolution from the target layer's D_n channels to the source layer's C_m, is trained with the target.
Where the sizes of the maps differ, the source map is resized to the target map's, bilinearly with half-pixel centres.

All pairs of one target layer are computed together: their regressors are one convolution with Σ_m C_m outputs, and
their source maps are stacked in one tensor. It is the same arithmetic in fewer, larger operations.

The loss has its own first and second derivative. They compute the error e = t Rᵀ + bias - s once, with a row for each
of an image's P pixels. The rest are products of e with the target map t, summed over pixels: one channels × channels
matrix per image. With α = 2gw/P and an incoming gradient g,

    ∂/∂t = e (α∘R),   ∂/∂R = Σ_b α∘(eᵀ t),   ∂/∂bias = Σ_b α·Σ_p e,   ∂/∂w = g·mean_p e²

For incoming gradients (a, A, z, y) of these four, let δ = a Rᵀ + t Aᵀ + z be the change of e in that direction. The
second derivative is that of Σ α·(e·δ) + Σ y·g·mean_p e². Autograd would take a dozen passes over maps of Σ_m C_m
channels instead.

Maps in torch's memory format `channels_last` have a row for each pixel already.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mtanytime.checks import Words, require
from mtanytime.transfer.meta_networks import Pair, PairWeights, network_of
from mtanytime.transfer.second_order import for_parameters, refuse_a_third_derivative


class FeatureMatching(nn.Module):
    """The regressors r^{m,n} and the matching loss.

    `matching(source_features, target_features, weights)` is the loss. `align`, `stack` and
    `aligned_loss` are its parts, for a loop that evaluates the loss several times per batch: it then resizes the
    source maps once.

    Example:
        >>> from mtanytime.transfer import FeatureMatching, MetaNetworks
        >>> pairs = [("layer1", "conv1"), ("layer2", "conv1")]  # (source layer, target layer)
        >>> matching = FeatureMatching(pairs, {"layer1": 64, "layer2": 128}, {"conv1": 32})  # channels by layer
        >>> meta = MetaNetworks(pairs, {"layer1": 64, "layer2": 128})
        >>> source = {"layer1": torch.rand(8, 64, 16, 16), "layer2": torch.rand(8, 128, 8, 8)}
        >>> target = {"conv1": torch.rand(8, 32, 16, 16)}  # `features.tap` takes such maps from any network
        >>> matching(source, target, meta(source)).shape  # one loss per image, to add to the task's
        torch.Size([8])

    Args:
        pairs: the (source layer, target layer) pairs to match.
        source_channels, target_channels: C_m and D_n by layer.
        generator: draws the initial weights of the regressors, as `nn.Conv2d` does (uniform in ± 1/√D_n).

    Attributes:
        standards: mean and scale of the source maps by pair, by which `align` standardizes them (see
            `source_standards`); None, the default, for the paper's loss.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        source_channels: Mapping[str, int],
        target_channels: Mapping[str, int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.sources: dict[str, list[str]] = {}  # target layer -> its source layers, in the order of the pairs
        for source, target in pairs:
            self.sources.setdefault(target, []).append(source)
        self.source_channels = dict(source_channels)
        self.standards: Mapping[Pair, Standard] | None = None
        convolution = partial(nn.utils.skip_init, nn.Conv2d)  # nn.Conv2d would draw from torch's global generator
        self.regressors = nn.ModuleList(
            convolution(target_channels[target], sum(source_channels[s] for s in sources), 1)
            for target, sources in self.sources.items()
        )
        for regressor in self.regressors:
            bound = regressor.in_channels**-0.5
            nn.init.uniform_(regressor.weight, -bound, bound, generator=generator)
            nn.init.uniform_(regressor.bias, -bound, bound, generator=generator)

    def regressor(self, pair: Pair) -> tuple[Float[Tensor, "source target 1 1"], Float[Tensor, " source"]]:
        """Weight and bias of r^{m,n}, as views into the convolution of its target layer."""
        source, target = pair
        sources = self.sources[target]
        start = sum(self.source_channels[s] for s in sources[: sources.index(source)])
        stop = start + self.source_channels[source]
        convolution = self.regressors[list(self.sources).index(target)]
        return convolution.weight[start:stop], convolution.bias[start:stop]

    def align(
        self,
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        target_sizes: Mapping[str, tuple[int, int]],
    ) -> dict[str, Float[Tensor, "batch channels height width"]]:
        """The source maps by target layer, resized to its (height, width), standardized and stacked over its pairs.

        They are in memory format `channels_last`. Target layers without a size are left out.
        """

        def wanted(source: str, target: str) -> Tensor:
            maps = resize_maps(pixels[source], target_sizes[target])
            return maps if self.standards is None else self.standards[source, target].apply(maps)

        used = {source for target, sources in self.sources.items() if target in target_sizes for source in sources}
        pixels = {source: source_features[source].contiguous(memory_format=torch.channels_last) for source in used}
        return {
            target: torch.cat([wanted(source, target) for source in sources], dim=1)
            for target, sources in self.sources.items()
            if target in target_sizes
        }

    def stack(self, weights: PairWeights) -> dict[str, Float[Tensor, "batch channels"]]:
        """The weights λ·w by target layer, concatenated in the order of `align`.

        Raises ValueError for the weights of other pairs.
        """
        pairs = {(source, target) for target, sources in self.sources.items() for source in sources}
        others = sorted(pairs ^ set(weights.pairs))
        require(not others, "weights", "those of the pairs that are matched", Words(f"others: {others}"))
        return {
            t: torch.cat([weights.channels[s, t] * weights.pairs[s, t] for s in sources], dim=1)
            for t, sources in self.sources.items()
        }

    def forward(
        self,
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        weights: PairWeights | Mapping[str, Float[Tensor, "batch _"]],
    ) -> Float[Tensor, " batch"]:
        """L_wfm of each image, from the maps of both networks by layer and the weights of `MetaNetworks`.

        The source maps must not require grad: they are not trained.
        """
        if not isinstance(weights, PairWeights):
            warnings.warn(
                "matching(target_features, aligned, weights) is now matching.aligned_loss(target_features, aligned, "
                "weights); the old call goes with the next release",
                DeprecationWarning,
                stacklevel=4,  # the caller of the module
            )
            return self.aligned_loss(source_features, target_features, weights)
        sizes = {layer: tuple(maps.shape[2:]) for layer, maps in target_features.items()}
        return self.aligned_loss(target_features, self.align(source_features, sizes), self.stack(weights))

    def aligned_loss(
        self,
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        aligned: Mapping[str, Float[Tensor, "batch _ _ _"]],
        weights: Mapping[str, Float[Tensor, "batch _"]],
    ) -> Float[Tensor, " batch"]:
        """L_wfm of each image, from `align`'s source maps and `stack`'s weights.

        A target layer without features or aligned maps contributes nothing: it was skipped at random.
        """
        total = 0.0
        for target, regressor in zip(self.sources, self.regressors, strict=True):
            if target not in target_features or target not in aligned:
                continue
            maps, weight = target_features[target], regressor.weight
            detached = not aligned[target].requires_grad
            require(detached, "source_features", "detached maps", Words(f"maps for {target!r} that require grad"))
            with torch.autocast(maps.device.type, enabled=False):  # the loss keeps the precision of the parameters
                error = _WeightedError if weights[target].requires_grad else _FixedWeightError
                total = total + error.apply(
                    _by_pixel(maps.to(weight.dtype)),
                    weight.flatten(1),
                    regressor.bias,
                    _by_pixel(aligned[target].to(weight.dtype)),
                    weights[target].to(weight.dtype),
                )
        if isinstance(total, float):  # nothing to match: a zero that requires grad, like any loss
            first = next(iter(weights.values()))
            return 0 * self.regressors[0].bias.sum() + first.new_zeros(len(first))
        return total


@dataclass(frozen=True)
class Standard:
    """What a pair's source maps are standardized by: the mean of each channel, and one scale for all channels."""

    mean: Float[Tensor, " channel"]
    scale: float

    def apply(self, maps: Float[Tensor, "batch channel _ _"]) -> Float[Tensor, "batch channel _ _"]:
        """The maps less their channels' means, divided by the scale."""
        return (maps - self.mean.to(maps)[:, None, None]) / self.scale


def source_standards(
    batches: Iterable[Mapping[str, Float[Tensor, "batch _ _ _"]]],
    pairs: Sequence[Pair],
    target_sizes: Mapping[str, tuple[int, int]],
    networks: Sequence[str] | None = None,
    weights: Mapping[Pair, float] | None = None,
) -> dict[Pair, Standard]:
    """Mean and scale of each pair's source maps, resized to the target's, over images and pixels.

    The scale is the root of the channels' mean variance. With uniform channel weights, the error of standardized maps
    is 1 - R² of the regressor; a regressor that predicts each channel's mean has the error 1. The regressors learn
    maps of the same size for every source, so a learning rate and β suit sources of any size of features.

    Raises ValueError for a layer whose maps are constant or, with `networks`, for a network whose maps all are.

    Args:
        batches: the source's maps by layer, one batch of images after another.
        pairs: the (source layer, target layer) pairs.
        target_sizes: height and width of the target's maps by layer.
        networks: the names of the source networks ("" for a single one without a name). All pairs of a network then
            have one scale, from the mean of their variances, so that layers whose maps vary more keep their larger
            share of the loss. None: a scale for each pair.
        weights: λ by pair, by which that mean is weighted, so that a pair that hardly counts does not set the scale of
            the others; default: all alike.
    """
    moments: dict[Pair, Tensor] = {}
    count = 0
    for maps in batches:
        count += len(next(iter(maps.values())))
        for source, target in pairs:
            values = resize_maps(maps[source], target_sizes[target]).flatten(2)
            values = values.float() if values.device.type == "mps" else values.double()  # mps has no float64
            sums = torch.stack([part.mean(dim=2).sum(dim=0) for part in (values, values.square())]).cpu().double()
            moments[source, target] = moments.get((source, target), 0) + sums
    means = {pair: first / count for pair, (first, _) in moments.items()}
    squares = {pair: (second / count).mean().item() for pair, (_, second) in moments.items()}
    variances = {pair: squares[pair] - mean.square().mean().item() for pair, mean in means.items()}
    units: dict[str, list[Pair]] = {}
    for pair in pairs:
        units.setdefault(repr(pair) if networks is None else network_of(pair[0], networks), []).append(pair)
    scales: dict[Pair, float] = {}
    for group in units.values():
        shares = np.array([1.0 if weights is None else weights[pair] for pair in group])
        variance, square = (
            float(np.average([values[pair] for pair in group], weights=shares)) for values in (variances, squares)
        )
        layers = ", ".join(dict.fromkeys(repr(source) for source, _ in group))
        varied = variance > 1e-9 * square
        require(varied, "source", f"maps of {layers} that differ between images", Words("constant ones"))
        scales |= dict.fromkeys(group, variance**0.5)
    return {pair: Standard(means[pair].to(maps[pair[0]]), scales[pair]) for pair in pairs}


_CACHED = 2**18  # numbers of an error that fit a processor's cache beside what they are made from
Pixels = Float[Tensor, "batch pixel target"]
Errors = Float[Tensor, "batch pixel source"]
Matrix = Float[Tensor, "source target"]
ByImage = Float[Tensor, "batch source"]


def _by_pixel(maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pixel channel"]:
    return maps.flatten(2).mT


class _WeightedError(torch.autograd.Function):
    """Σ_c w_c · mean_p (t Rᵀ + bias - s)²_c of each image; differentiable twice, but not with respect to s."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, t: Pixels, r: Matrix, bias: Float[Tensor, " source"], s: Errors, w: ByImage
    ) -> Float[Tensor, " batch"]:
        error = F.linear(t, r, bias).sub_(s)
        squares = error.square().mean(1)
        ctx.save_for_backward(t, r, bias, w, error, squares)
        ctx.for_parameters = for_parameters()
        return torch.linalg.vecdot(squares, w)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Float[Tensor, " batch"]) -> tuple[Tensor | None, ...]:
        t, r, bias, w, error, squares = ctx.saved_tensors
        for_t, for_r, for_bias, for_w = _WeightedErrorBackward.apply(
            g, t, r, bias, w, error, squares, ctx.for_parameters
        )
        return for_t, for_r, for_bias, None, for_w


class _FixedWeightError(torch.autograd.Function):
    """`_WeightedError` for weights that nothing learns: its first derivative is a by-product of the loss.

    It is linear in g, one number per image, so it is computed before g is known. On a CPU, some images at a time: their
    error stays in the cache, and no error is kept. For maps with fewer pixels than channels the error is smaller than
    its products with them, so it is kept, and one product of all images follows.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, t: Pixels, r: Matrix, bias: Float[Tensor, " source"], s: Errors, w: ByImage
    ) -> Float[Tensor, " batch"]:
        images, pixels, channels = s.shape
        ctx.for_parameters, ctx.keeps_error = for_parameters(), pixels < t.shape[2]
        if ctx.keeps_error:
            error = F.linear(t, r, bias).sub_(s)
            squares = error.square().mean(1)
            ctx.save_for_backward(t, r, bias, w, squares, error)
            return torch.linalg.vecdot(squares, w)
        count = max(1, _CACHED // (pixels * channels)) if t.device.type == "cpu" else images
        squares, total, for_t = w.new_empty(w.shape), w.new_empty(w.shape), t.new_empty(t.shape)
        correlation = t.new_empty(images, *r.shape)
        needed = any(ctx.needs_input_grad)
        for start in range(0, images, count):
            part = slice(start, start + count)
            error = F.linear(t[part], r, bias).sub_(s[part])
            squares[part] = error.square().mean(1)
            if needed:
                total[part] = error.sum(dim=1)
                torch.bmm(error.mT, t[part], out=correlation[part])
                torch.bmm(error, (w[part] * (2 / pixels))[:, :, None] * r, out=for_t[part])
        ctx.save_for_backward(t, r, bias, w, squares, s, *([for_t, correlation, total] if needed else []))
        return torch.linalg.vecdot(squares, w)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Float[Tensor, " batch"]) -> tuple[Tensor | None, ...]:
        t, r, bias, w, squares, *kept = ctx.saved_tensors
        alpha = g[:, None] * w * (2 / t.shape[1])
        if torch.is_grad_enabled():  # for a second derivative
            with torch.no_grad():
                error = kept[0] if ctx.keeps_error else F.linear(t, r, bias).sub_(kept[0])
            found = _WeightedErrorBackward.apply(g, t, r, bias, w, error, squares, ctx.for_parameters)
            return *found[:3], None, None
        if ctx.keeps_error:
            weighted = kept[0] * alpha[:, None]
            for_r = weighted.flatten(0, 1).T @ t.flatten(0, 1)
            return weighted @ r, for_r, weighted.sum((0, 1)), None, None
        _, for_t, correlation, total = kept
        return for_t * g[:, None, None], (alpha[:, :, None] * correlation).sum(0), (alpha * total).sum(0), None, None


class _WeightedErrorBackward(torch.autograd.Function):
    """The first derivative. `error` and `squares` depend on the other inputs, so they get no gradient of their own."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Float[Tensor, " batch"],
        t: Pixels,
        r: Matrix,
        bias: Float[Tensor, " source"],
        w: ByImage,
        error: Errors,
        squares: ByImage,
        for_parameters: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.for_parameters = for_parameters
        alpha = g[:, None] * w * (2 / t.shape[1])
        correlation, total = error.mT @ t, error.sum(dim=1)
        ctx.save_for_backward(g, t, r, w, error, squares, correlation, total)
        ctx.set_materialize_grads(False)
        for_r = (alpha[:, :, None] * correlation).sum(0)
        return error @ (alpha[:, :, None] * r), for_r, (alpha * total).sum(0), g[:, None] * squares

    @staticmethod
    def backward(
        ctx: FunctionCtx, a: Tensor | None, big_a: Tensor | None, z: Tensor | None, y: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_a_third_derivative()
        g, t, r, w, error, squares, correlation, total = ctx.saved_tensors
        pixels = t.shape[1]
        a = torch.zeros_like(t) if a is None else a
        big_a = torch.zeros_like(r) if big_a is None else big_a
        z = torch.zeros_like(total[0]) if z is None else z
        y = torch.zeros_like(w) if y is None else y  # the incoming gradient of ∂/∂w
        along = error.mT @ a
        slope = ((r * along).sum(2) + (big_a * correlation).sum(2) + z * total) / pixels  # mean_p e·δ
        for_w = 2 * g[:, None] * slope
        for_g = (2 * w * slope + y * squares).sum(1)
        if not ctx.for_parameters:
            return for_g, None, None, None, for_w, None, None, None
        alpha = (2 / pixels) * g[:, None] * w
        beta = ((2 / pixels) * g[:, None] * y)[:, :, None]
        delta = F.linear(a, r, z).add_(F.linear(t, big_a))
        alpha_r, alpha_a = alpha[:, :, None] * r, alpha[:, :, None] * big_a
        for_t = (delta @ alpha_r).baddbmm_(error, alpha_a + beta * r)
        by_image = alpha[:, :, None] * (delta.mT @ t + along) + beta * correlation
        return (
            for_g,
            for_t,
            by_image.sum(0),
            (alpha * delta.sum(1) + beta[:, :, 0] * total).sum(0),
            for_w,
            None,
            None,
            None,
        )


def resize_maps(maps: Float[Tensor, "batch channel _ _"], size: tuple[int, int]) -> Float[Tensor, "batch channel _ _"]:
    """Resize maps to (height, width), bilinearly with half-pixel centres."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
