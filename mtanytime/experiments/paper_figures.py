"""Accuracies that the L2T-ww paper reports (arXiv:1905.05901), to stand beside ours; most are only recalled."""

from typing import NamedTuple


class PaperFigure(NamedTuple):
    """A test accuracy in per cent, either `verified` in a second source or recalled: check it before you cite it."""

    percent: float
    verified: bool


DATA_SETS = {  # of recipes
    "cifar10-few": "CIFAR-10",
    "cifar10-baselines": "CIFAR-10",
    "cifar10-long": "CIFAR-10",
    "l2t-cifar100": "CIFAR-100",
    "l2t-stl10": "STL-10",
    "l2t-cub200": "CUB-200",
    "l2t-mit67": "MIT67",
    "l2t-stanford40": "Stanford40",
    "l2t-dogs": "Dogs",
}

_SETS = ("CIFAR-100", "STL-10", "CUB-200", "MIT67", "Stanford40", "Dogs")
_PERCENT = {  # method -> one figure per data set; "what" is L2T-w in the paper, "l2t" its L2T-ww
    "scratch": (67.69, 65.18, 42.15, 48.91, 36.93, 58.08),
    "lwf": (69.23, 68.64, 45.52, 53.73, 39.73, 66.33),
    "at": (67.54, 74.19, 57.74, 59.18, 59.29, 69.70),
    "lwf_at": (68.75, 75.06, 58.90, 61.42, 60.20, 72.67),
    "matching_single": (69.40, 75.00, 47.60, 55.15, 42.93, 66.05),
    "matching_one": (69.97, 76.38, 48.93, 54.88, 44.50, 67.25),
    "what_single": (70.27, 74.35, 51.95, 60.41, 46.25, 69.16),
    "what_one": (70.02, 76.42, 56.61, 59.78, 48.19, 69.84),
    "l2t": (70.96, 78.31, 65.05, 64.85, 63.08, 78.08),
}
_VERIFIED = {("l2t", "CUB-200"), ("lwf_at", "CUB-200"), ("l2t", "Stanford40")}
_FEW = {"scratch": 39.99, "lwf": 43.32, "at": 51.76, "lwf_at": 53.76, "l2t": 64.91}  # CIFAR-10, 50 labels per class


def paper_figure(data_set: str, method: str, per_class: int | None = None) -> PaperFigure | None:
    """The paper's figure for a method on a data set, or with so many labels per class of it; None without one."""
    if per_class is not None:
        few = data_set == "CIFAR-10" and per_class == 50 and method in _FEW
        return PaperFigure(_FEW[method], False) if few else None
    if data_set not in _SETS or method not in _PERCENT:
        return None
    return PaperFigure(_PERCENT[method][_SETS.index(data_set)], (method, data_set) in _VERIFIED)
