"""Linear probe: a logistic regression on the frozen source's features, the least that a transfer must beat.

Kornblith, Shlens, Le 2019 (arXiv:1805.08974) call it the fixed feature extractor. Here the layers whose features are
read and the strength of the regularization are chosen by cross-validation on the labelled images alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import batches_of
from mtanytime.data.images import ImageSet
from mtanytime.features import Tapped, tap

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the inverse of the L2 penalty
OUTPUT = "output"  # the source's own logits among the features


class LinearProbe(nn.Module):
    """A frozen source network with a linear classifier on the spatial means of some of its layers.

    `logits = probe(images)`; made by `fit_probe`.

    Attributes:
        layers: the layers that are read; `OUTPUT` stands for the source's own logits.
        strength: scikit-learn's C.
        table: layers, strength and accuracy of everything that cross-validation compared.
    """

    def __init__(
        self,
        source: Tapped,
        layers: Sequence[str],
        weight: Float[Tensor, "classes features"],
        bias: Float[Tensor, " classes"],
        strength: float,
        table: pd.DataFrame,
    ) -> None:
        super().__init__()
        self.source, self.layers, self.strength, self.table = (
            source.eval(),
            tuple(layers),
            strength,
            table,
        )
        self.linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight))
        self.linear.weight, self.linear.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """The probe's logits for images in [0, 1]."""
        self.source.eval()
        return self.logits(*self.source(images))

    def logits(
        self, output: Tensor, features: Mapping[str, Float[Tensor, "batch _ _ _"]]
    ) -> Float[Tensor, "batch classes"]:
        """The logits from what the source gave already: its output and maps by layer."""
        return self.linear(_pooled(output, features, self.layers).to(self.linear.weight.dtype))


def fit_probe(
    source: nn.Module,
    data: ImageSet,
    *,
    layers: Sequence[str] | None = None,
    with_output: bool = True,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 256,
) -> LinearProbe:
    """Fit a linear probe, its layers and strength chosen by cross-validation on the labelled images.

    Candidates for the layers are the last one, all of them, and all of them with the source's output. Features are
    standardized over the labelled images. With equal accuracy the candidate with fewer features and the smaller
    strength wins.

    Args:
        source: a trained network; it is put in eval mode and otherwise unchanged.
        data: labelled images, at least `folds` per class.
        layers: module paths; default: the network's own `feature_layers`.
        with_output: let the source's own output be among the features.
        strengths: values of scikit-learn's C to compare.
        folds: of the cross-validation, balanced by class.
        seed: of the split into folds.
        batch_size: images per forward pass.

    Raises:
        ValueError: a class with fewer images than folds, no strengths, unknown layers, features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require(len(strengths) > 0 and min(strengths) > 0, "strengths", "numbers above 0", list(strengths))
    require(folds >= 2, "folds", "a whole number >= 2", folds)
    counts = torch.bincount(data.labels.cpu(), minlength=len(data.classes))
    if counts.min() < folds:
        few = data.classes[int(counts.argmin())]
        raise mismatch(
            "data", f"at least {folds} images per class", Words(f"{int(counts.min())} of {few!r}"), "lower folds"
        )
    if layers is None:
        layers = getattr(source, "feature_layers", None)
        require(bool(layers), "layers", "layers to read, as the network names none itself", layers)
    tapped = tap(source, layers).eval()
    like = next(source.parameters())
    outputs, maps = [], []
    with torch.no_grad():
        for images, _ in batches_of(data, batch_size, seed=0, shuffle=False).epoch(0):
            output, features = tapped(images.to(like.device, like.dtype))
            outputs.append(output.cpu())
            maps.append({layer: value.mean(dim=(2, 3), keepdim=True).cpu() for layer, value in features.items()})
    output = torch.cat(outputs)
    pooled = {layer: torch.cat([part[layer] for part in maps]) for layer in tapped.layers}
    labels = data.labels.cpu().numpy()

    candidates = list(dict.fromkeys([(tapped.layers[-1],), tapped.layers]))
    if with_output:
        candidates.append((*tapped.layers, OUTPUT))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    rows, best = [], (-1.0, (), 0.0)
    for candidate in candidates:
        features = _pooled(output, pooled, candidate).double().numpy()
        if not np.isfinite(features).all():
            raise mismatch("source", "finite features", Words(f"some that are not, in {', '.join(candidate)}"))
        for strength in sorted(strengths):
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            accuracy = cross_val_score(classifier, features, labels, cv=splits).mean()
            rows.append({"layers": " ".join(candidate), "strength": strength, "accuracy": accuracy})
            if accuracy > best[0]:
                best = (accuracy, candidate, strength)
    _, chosen, strength = best
    features = _pooled(output, pooled, chosen).double().numpy()
    scaler = StandardScaler().fit(features)
    classifier = LogisticRegression(C=strength, max_iter=2000).fit(scaler.transform(features), labels)
    coefficients, intercept = classifier.coef_, classifier.intercept_
    if len(coefficients) == 1:  # two classes: scikit-learn keeps the log odds of the second
        coefficients, intercept = np.stack([-coefficients[0], coefficients[0]]) / 2, np.r_[-intercept, intercept] / 2
    weight = coefficients / scaler.scale_
    bias = intercept - weight @ scaler.mean_
    as_tensor = (torch.from_numpy(part).to(like) for part in (weight, bias))
    return LinearProbe(tapped, chosen, *as_tensor, strength, pd.DataFrame(rows))


def _pooled(
    output: Tensor, features: Mapping[str, Float[Tensor, "batch _ _ _"]], layers: Sequence[str]
) -> Float[Tensor, "batch features"]:
    """Spatial means of the layers, side by side; `OUTPUT` stands for the network's output."""
    parts = [output if layer == OUTPUT else features[layer].mean(dim=(2, 3)) for layer in layers]
    return torch.cat([part.to(parts[0].dtype) for part in parts], dim=1)
