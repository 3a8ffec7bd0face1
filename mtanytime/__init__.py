"""Learning what and where to transfer (arXiv:1905.05901), and anytime prediction (arXiv:1807.02609)."""

import importlib

__version__ = "0.2.0.dev0"

# The public names. mtanytime.explore needs plotting libraries, so it is not imported here.
from mtanytime import anytime, backbones, data, deploy, features, measure, training, transfer
from mtanytime._moved import MOVED, install_old_paths
from mtanytime.anytime import AnytimePredictor, AnytimeTrainer, SlicedResNeXt
from mtanytime.backbones import Normalized, load_l2t_resnet32, resnet, vgg9
from mtanytime.deploy import export
from mtanytime.features import image_layers, tap
from mtanytime.measure import evaluate
from mtanytime.training import Trainer, load_run
from mtanytime.transfer import TransferTrainer

install_old_paths()

__all__ = [
    "AnytimePredictor",
    "AnytimeTrainer",
    "Normalized",
    "SlicedResNeXt",
    "Trainer",
    "TransferTrainer",
    "__version__",
    "anytime",
    "backbones",
    "data",
    "deploy",
    "evaluate",
    "export",
    "features",
    "image_layers",
    "load_l2t_resnet32",
    "load_run",
    "measure",
    "resnet",
    "tap",
    "training",
    "transfer",
    "vgg9",
]


def __getattr__(name: str) -> object:
    """Import a module by its name from before version 0.2."""
    if name in MOVED:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
