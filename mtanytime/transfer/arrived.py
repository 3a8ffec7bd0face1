"""What arrived: how much of a source's feature the target's layer predicts, on images not trained on.

λ shows what the matching asks for; this measure shows what the target has learned of it. For a pair (m, n), the maps S
of the source's layer m are resized to those of the target, as in `matching`. A 1×1 convolution Ŝ = W T + b predicts
them from the maps T of the target's layer n. It is fitted by least squares on some images and scored on others,

    R² = 1 - Σ_c Σ (S_c - Ŝ_c)² / Σ_c Σ (S_c - mean S_c)²

summed over images and pixels, with the means of the scored images: scikit-learn's variance-weighted `r2_score`. It is 1
if the target holds all of the feature, and about 0 if it holds none of it. If it is negative, the fit did not carry
over to other images. An untrained target has an R² above 0 as well, above all for early layers, so compare with a run
without transfer. The penalty is `RIDGE` times the squared length of W, for channels of T with unit variance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from mtanytime.checks import Words, require
from mtanytime.data.batches import batches_of
from mtanytime.data.disk import similar_files
from mtanytime.data.images import LabelledImages
from mtanytime.devices import Precision, autocast
from mtanytime.features import Tapped
from mtanytime.functional import functional_call, trial_run
from mtanytime.randomness import generator_for, seeded
from mtanytime.transfer.layers import Maps, dtype_of, try_layers
from mtanytime.transfer.matching import resize_maps
from mtanytime.transfer.meta_networks import Pair

RIDGE = 1e-6  # of the fit, per value, in units of the channels' variances
IMAGES_UP_TO = 512  # half of them to fit on, half to score on
IMAGES_FROM = 10
VALUES_PER_CHANNEL = 10  # to fit on, per channel of the target's layer; with fewer, the fit memorizes them
_BATCH = 32
_CONSTANT = 1e-12  # the variance, relative to the squared mean, that rounding alone can cause

Images = Float[Tensor, "batch 3 height width"]
LayerMaps = dict[str, Float[Tensor, "_ _ _ _"]]  # batches differ in size
MapBatch = tuple[LayerMaps, LayerMaps]  # the source's maps by layer, and the target's, for the same images


def arrived_r2(pairs: Sequence[Pair], fit: Iterable[MapBatch], score: Iterable[MapBatch]) -> dict[Pair, float]:
    """The R² of each (source layer, target layer); nan for a source layer that is constant on the scored images.

    Only sums are kept, in float64 on the CPU. Their products are in float64 for maps on the CPU and in the maps'
    own precision on an accelerator.

    Args:
        pairs: the pairs, by layer names.
        fit: maps of the images to fit on, batch by batch.
        score: maps of the images to score on.
    """
    sources: dict[str, list[str]] = {}
    for source, target in pairs:
        sources.setdefault(target, []).append(source)
    predictions = {target: _Prediction(layers) for target, layers in sources.items()}
    for source_maps, target_maps in fit:
        for target, prediction in predictions.items():
            prediction.add(target_maps[target], source_maps)
    for prediction in predictions.values():
        prediction.solve()
    for source_maps, target_maps in score:
        for target, prediction in predictions.items():
            prediction.score(target_maps[target], source_maps)
    return {(source, target): predictions[target].r2(source) for source, target in pairs}


class _Prediction:
    """The prediction of source layers from one target layer: `add` maps, `solve`, `score` maps, read `r2`."""

    def __init__(self, sources: list[str]) -> None:
        self._sources = sources
        self._count = self._scored = 0
        self._centers: dict[str, Tensor] = {}  # near the means, so that products lose no digits; "": the target's
        self._sums: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._errors: dict[str, Tensor] = {}

    def add(self, target_maps: Float[Tensor, "batch _ _ _"], source_maps: Maps) -> None:
        """Include maps of images to fit on."""
        target = self._centered("", _values(target_maps, target_maps))
        self._count += target.shape[1]
        for layer in ("", *self._sources):
            values = self._centered(layer, _values(source_maps[layer], target_maps)) if layer else target
            _increase(self._sums, layer, values.sum(dim=1))
            _increase(self._products, layer, target @ values.mT)

    def solve(self) -> None:
        """Fit to what was added; afterwards `_centers` are the means, on the CPU."""
        means = {layer: total / self._count for layer, total in self._sums.items()}
        centers = {layer: center.flatten().cpu().double() + means[layer] for layer, center in self._centers.items()}
        covariances = {n: p / self._count - means[""][:, None] * means[n] for n, p in self._products.items()}
        variance = covariances[""].diagonal()
        varies = variance > _CONSTANT * centers[""].square()
        scale = torch.where(varies, variance.rsqrt(), 0.0)  # no weight for a constant channel
        matrix = scale[:, None] * covariances[""] * scale
        matrix = matrix + RIDGE * torch.eye(len(scale), dtype=scale.dtype)
        for layer in self._sources:
            right = scale[:, None] * covariances[layer]
            finite = bool(matrix.isfinite().all() and right.isfinite().all())
            weights = torch.linalg.solve(matrix, right) if finite else torch.full_like(right, torch.nan)
            self._weights[layer] = (scale[:, None] * weights).mT
        self._centers, self._sums = centers, {}

    def score(self, target_maps: Float[Tensor, "batch _ _ _"], source_maps: Maps) -> None:
        """Include maps of images to score on."""
        target = self._centered("", _values(target_maps, target_maps))
        self._scored += target.shape[1]
        for layer in self._sources:
            values = self._centered(layer, _values(source_maps[layer], target_maps))
            error = values - self._weights[layer].to(values) @ target
            _increase(self._errors, layer, error.square().sum(dim=1))
            _increase(self._sums, layer, torch.stack([values.sum(dim=1), values.square().sum(dim=1)]))

    def r2(self, source: str) -> float:
        """The R² of a source layer."""
        total, squares = self._sums[source]
        deviations = (squares - total.square() / self._scored).sum()
        rounding = _CONSTANT * self._scored * self._centers[source].square().sum()
        return float(1 - self._errors[source].sum() / deviations) if deviations > rounding else float("nan")

    def _centered(self, layer: str, values: Float[Tensor, "channel value"]) -> Float[Tensor, "channel value"]:
        if layer not in self._centers:
            self._centers[layer] = values.mean(dim=1)
        return values - self._centers[layer].to(values)[:, None]


def _values(maps: Float[Tensor, "batch channel _ _"], like: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "channel _"]:
    """All values of each channel of maps resized to the size of others."""
    maps = resize_maps(maps, tuple(like.shape[2:]))
    on_cpu = maps.device.type == "cpu"  # not every accelerator has float64
    maps = maps.to(torch.float64 if on_cpu else torch.promote_types(maps.dtype, torch.float32))
    return maps.transpose(0, 1).flatten(1)


def _increase(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums.get(name, 0) + value.cpu().double()


class Arrived:
    """Measures what arrived in a target during its training, on images set aside for it.

    At most `IMAGES_UP_TO` images are used, drawn at random with a fixed seed; the fit uses the first half of them.
    Images of the training set are left out. A measurement takes little longer than the forward passes of all networks
    over the images; it is not counted in the run's seconds.

    Args:
        data: images that are not trained on; their labels are not read.
        trained: the training set; a `DataLoader` is not searched for the images.
        pairs: the (source layer, target layer) pairs.
        target: the tapped target.
        images: a few training images, on the device.

    Attributes:
        data: the set as it was given.
        notes: what a reader of the numbers should know.

    Raises:
        ValueError: not an image set, images of another size, fewer than `IMAGES_FROM` images that are not trained on,
            or a target that fails in eval mode.
    """

    def __init__(
        self,
        data: LabelledImages,
        trained: LabelledImages | DataLoader,
        pairs: Sequence[Pair],
        target: Tapped,
        images: Images,
    ) -> None:
        require(isinstance(data, LabelledImages), "arrived", "an ImageSet", Words(type(data).__name__))
        shape, own = tuple(images.shape[1:]), data.image_shape
        require(own == shape, "arrived", f"images of shape {shape}, as the training images", own)
        self.data, self.notes = data, []
        self._pairs, self._target, self._device = list(pairs), target, images.device
        used = data.subset(torch.randperm(len(data), generator=generator_for(0))[:IMAGES_UP_TO])
        if isinstance(trained, LabelledImages):
            known = set(_hashes(similar_files(trained, used)))
            others = [i for i, value in enumerate(_hashes(used)) if value not in known]
            if len(others) < len(used):
                self.notes.append(f"arrived: {len(used) - len(others)} of {len(used)} images are trained on, left out")
                used = used.subset(others)
        require(
            len(used) >= IMAGES_FROM, "arrived", f"at least {IMAGES_FROM} images that are not trained on", len(used)
        )
        half = len(used) // 2
        self._parts = [used.subset(range(half)).to(self._device), used.subset(range(half, len(used))).to(self._device)]
        for layer, maps in try_layers("target", target, images, training=False).items():
            _, channels, height, width = maps.shape
            count = half * height * width
            if count < VALUES_PER_CHANNEL * channels:
                self.notes.append(
                    f"arrived: R² of the target's {layer!r} is too low, as {count} values of its {channels} channels "
                    "are too few to fit on"
                )

    @torch.no_grad()
    def measure(self, source_features: Callable[[Images], Maps], precision: Precision) -> dict[Pair, float]:
        """The R² of each pair, for the target in eval mode; weights, buffers, modes and random state stay as they are.

        `source_features` returns the sources' maps for a batch.
        """
        with trial_run(self._target, self._device, training=False) as buffers, seeded(0, self._device):

            def maps(part: LabelledImages) -> Iterator[MapBatch]:
                for images, _ in batches_of(part, _BATCH, seed=0, shuffle=False).epoch(0):
                    images = images.to(dtype_of(self._target, images))
                    with autocast(self._device, precision):
                        _, target_maps = functional_call(self._target, buffers, images)
                    yield source_features(images), target_maps

            return arrived_r2(self._pairs, *map(maps, self._parts))


def _hashes(data: LabelledImages) -> list[int]:
    """A hash of each image, the same for equal images within this process."""
    parts = data.batches(torch.arange(len(data)).split(_BATCH))
    return [hash(image.tobytes()) for images, _ in parts for image in images.cpu().numpy()]
