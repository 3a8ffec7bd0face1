"""Linear probe: a logistic regression on the frozen source's features, the baseline for any transfer.

Kornblith, Shlens, Le 2019 (arXiv:1805.08974) call it the fixed feature extractor. Here the layers whose features are
read and the strength of the regularization are chosen by cross-validation on the labelled images alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import batches_of, class_names
from mtanytime.data.images import LabelledImages, Task, shuffled_by_class
from mtanytime.features import Tapped, tap, unwrapped
from mtanytime.measure.costs import device_and_dtype
from mtanytime.randomness import generator_for
from mtanytime.training.contents import contents_hash
from mtanytime.training.identity import describe_data

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the inverse of the L2 penalty
OUTPUT = "output"  # the source's own logits among the features
FOLDS = 5
Scoring = Literal["accuracy", "log_loss"]


class LinearProbe(nn.Module):
    """A frozen source network with a linear classifier on the spatial means of some of its layers.

    `logits = probe(images)`; made by `fit_probe`.

    Attributes:
        layers: the layers that are read; `OUTPUT` stands for the source's own logits.
        strength: scikit-learn's C.
        origin: a hash of the data and the settings that it was fitted with; "" for one that `fit_probe` did not make.
        table: layers, strength, accuracy and log loss (nats per image) of everything that cross-validation compared.
    """

    def __init__(
        self,
        source: Tapped,
        layers: Sequence[str],
        weight: Float[Tensor, "classes features"],
        bias: Float[Tensor, " classes"],
        strength: float,
        table: pd.DataFrame,
        origin: str = "",
    ) -> None:
        super().__init__()
        self.origin = origin
        self.source, self.layers, self.strength, self.table = source.eval(), tuple(layers), strength, table
        self.linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight))
        self.linear.weight, self.linear.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))

    def with_own_classifier(self) -> "LinearProbe":
        """A probe of the same source network whose linear classifier is a copy."""
        parts = (part.detach().clone() for part in (self.linear.weight, self.linear.bias))
        return LinearProbe(self.source, self.layers, *parts, self.strength, self.table, self.origin)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """The probe's logits for images in [0, 1]."""
        self.source.eval()
        return self.logits(*self.source(images))

    def logits(
        self, output: Tensor, features: Mapping[str, Float[Tensor, "batch _ _ _"]]
    ) -> Float[Tensor, "batch classes"]:
        """The logits from the source's output and maps by layer, if it has already run."""
        return self.linear(_pooled(output, features, self.layers).to(self.linear.weight.dtype))


def fit_probe(
    source: nn.Module,
    data: LabelledImages | DataLoader,
    *,
    layers: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    folds: int | None = FOLDS,
    seed: int = 0,
    scoring: Scoring = "accuracy",
    max_images: int | None = None,
) -> LinearProbe:
    """Fit a linear probe whose layers and strength are chosen by cross-validation on the labelled images.

    Candidates for the layers are the last one, all of them, and all of them with the source's output. Features are
    standardized over the labelled images. Of equally good candidates, the one with fewer features and the smaller
    strength wins.

    Args:
        source: a trained network; it is put in eval mode and otherwise unchanged.
        data: labelled images, at least `folds` per class; the labels of a `DataLoader` start at 0.
        layers: module paths, and `OUTPUT` for the source's own output, which is ignored unless it is a tensor (batch,
            outputs); default: the network's own `feature_layers` and `OUTPUT`.
        strengths: values of scikit-learn's C to compare.
        folds: of the cross-validation, balanced by class; None: as many as the smallest class has images, 2 to 5.
        seed: of the split into folds.
        scoring: what cross-validation compares: "accuracy", or "log_loss" for calibrated answers, as a teacher's should
            be.
        max_images: read at most about this many images: an equal number of each class, drawn at random from an image
            set, or the first batches of a `DataLoader`; None: all of them.

    Raises:
        ValueError: one class alone, a class with fewer images than folds, no strengths, unknown layers, features that
            are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_validate
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require(len(strengths) > 0 and min(strengths) > 0, "strengths", "numbers above 0", list(strengths))
    require(folds is None or folds >= 2, "folds", "a whole number >= 2", folds)
    got, remedy = Words(type(data).__name__), "give its attribute train" if isinstance(data, Task) else ""
    require(isinstance(data, LabelledImages | DataLoader), "data", "an ImageSet or a DataLoader", got, remedy)
    require(scoring in get_args(Scoring), "scoring", f"one of {get_args(Scoring)}", scoring)
    if layers is None:
        own = getattr(unwrapped(source), "feature_layers", None)
        require(bool(own), "layers", "layers to read, as the network names none itself", own)
        layers = (*own, OUTPUT)
    layers = (layers,) if isinstance(layers, str) else layers
    tapped = tap(source, [layer for layer in layers if layer != OUTPUT]).eval()
    output, pooled, labels = _read(tapped, data, max_images, seed)
    names = class_names(data)
    counts = np.bincount(labels, minlength=len(names or ()))
    part = isinstance(data, DataLoader) and max_images is not None and len(labels) >= max_images
    shuffle = "shuffle the DataLoader, of which only the first batches are read" if part else ""
    require(len(counts) > 1, "data", "images of at least two classes", Words("those of one"), shuffle)
    needed, fewest = 2 if folds is None else folds, int(counts.min())
    if fewest < needed:
        rare = int(counts.argmin())
        few = Words(f"{fewest} of {repr(names[rare]) if rare < len(names or ()) else f'class {rare}'}")
        remedy = "lower folds" if fewest > 1 else "" if fewest or names else "number the classes from 0 on"
        remedy = shuffle or remedy
        raise mismatch("data", f"at least {needed} images per class", few, remedy)
    folds = min(fewest, FOLDS) if folds is None else folds

    candidates = list(dict.fromkeys([(tapped.layers[-1],), tapped.layers]))
    if OUTPUT in layers and isinstance(output, Tensor) and output.ndim == 2:
        candidates.append((*tapped.layers, OUTPUT))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    rows, best = [], (-np.inf, (), 0.0)
    for candidate in candidates:
        features = _pooled(output, pooled, candidate).double().numpy()
        if not np.isfinite(features).all():
            raise mismatch("source", "finite features", Words(f"some that are not, in {', '.join(candidate)}"))
        for strength in sorted(strengths):
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            scores = cross_validate(classifier, features, labels, cv=splits, scoring=("accuracy", "neg_log_loss"))
            accuracy, log_loss = scores["test_accuracy"].mean(), -scores["test_neg_log_loss"].mean()
            rows.append(
                {"layers": " ".join(candidate), "strength": strength, "accuracy": accuracy, "log_loss": log_loss}
            )
            score = accuracy if scoring == "accuracy" else -log_loss
            if score > best[0]:
                best = (score, candidate, strength)
    _, chosen, strength = best
    features = _pooled(output, pooled, chosen).double().numpy()
    scaler = StandardScaler().fit(features)
    classifier = LogisticRegression(C=strength, max_iter=2000).fit(scaler.transform(features), labels)
    coefficients, intercept = classifier.coef_, classifier.intercept_
    if len(coefficients) == 1:  # two classes: scikit-learn keeps the log odds of the second
        coefficients, intercept = np.stack([-coefficients[0], coefficients[0]]) / 2, np.r_[-intercept, intercept] / 2
    weight = coefficients / scaler.scale_
    bias = intercept - weight @ scaler.mean_
    as_tensor = (torch.from_numpy(part).to(*device_and_dtype(source)) for part in (weight, bias))
    settings = {"layers": layers, "strengths": strengths, "folds": folds, "seed": seed, "scoring": scoring}
    origin = contents_hash(settings | {"max_images": max_images, "data": describe_data(data)})
    return LinearProbe(tapped, chosen, *as_tensor, strength, pd.DataFrame(rows), origin)


def _read(
    tapped: Tapped, data: LabelledImages | DataLoader, max_images: int | None, seed: int
) -> tuple[Any, dict[str, Float[Tensor, "images channels 1 1"]], np.ndarray]:
    """The source's outputs (None unless they are tensors), the spatial means of its layers, and the labels."""
    if max_images is not None and isinstance(data, LabelledImages) and len(data) > max_images:
        each = max(max_images // len(data.classes), 2)
        by_class = shuffled_by_class(data.labels.cpu(), len(data.classes), generator_for(seed))
        data = data.subset(torch.cat([index[:each] for index in by_class]).sort().values)
    device, dtype = device_and_dtype(tapped)
    outputs, maps, labels, read = [], [], [], 0
    with torch.no_grad():
        for images, batch_labels in batches_of(data, 256, seed=seed, shuffle=False).epoch(0):
            output, features = tapped(images.to(device, dtype))
            outputs.append(output.cpu() if isinstance(output, Tensor) else None)
            maps.append({layer: value.mean(dim=(2, 3), keepdim=True).cpu() for layer, value in features.items()})
            labels.append(batch_labels.cpu())
            read += len(images)
            if max_images is not None and read >= max_images:
                break
    output = None if any(part is None for part in outputs) else torch.cat(outputs)
    pooled = {layer: torch.cat([part[layer] for part in maps]) for layer in tapped.layers}
    return output, pooled, torch.cat(labels).numpy()


def _pooled(
    output: Any, features: Mapping[str, Float[Tensor, "batch _ _ _"]], layers: Sequence[str]
) -> Float[Tensor, "batch features"]:
    """Spatial means of the layers, side by side; `OUTPUT` stands for the network's output."""
    parts = [output if layer == OUTPUT else features[layer].mean(dim=(2, 3)) for layer in layers]
    return torch.cat([part.to(parts[0].dtype) for part in parts], dim=1)
