"""Learning what and where to transfer (arXiv:1905.05901), and anytime prediction (arXiv:1807.02609)."""

import importlib

__version__ = "0.2.0.dev0"


def _check_torchvision() -> None:
    """Import torch and torchvision. Raises ImportError, with the remedy, where the two do not fit together.

    A torch from one source (say, the CPU-only one) and a torchvision from another fail at import with
    "operator torchvision::nms does not exist", an undefined symbol or a missing library, which does not help a user.
    """
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        from importlib import metadata

        versions = []
        for name in ("torch", "torchvision"):
            try:
                versions.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                versions.append(f"no {name}")
        raise ImportError(
            "mtanytime needs a torch and a torchvision that fit together, and the installed ones do not "
            f"({', '.join(versions)}): {error}\nInstall both together, from one source:\n"
            "    pip install --upgrade --force-reinstall torch torchvision"
        ) from error


_check_torchvision()

# The public names. mtanytime.explore needs plotting libraries, so it is not imported here.
from mtanytime import anytime, backbones, data, deploy, features, measure, training, transfer  # noqa: E402
from mtanytime._moved import MOVED, install_old_paths  # noqa: E402
from mtanytime.anytime import AnytimePredictor, AnytimeTrainer, SlicedResNeXt  # noqa: E402
from mtanytime.backbones import Normalized, load_l2t_resnet32, resnet, vgg9  # noqa: E402
from mtanytime.deploy import export  # noqa: E402
from mtanytime.features import image_layers, tap  # noqa: E402
from mtanytime.measure import evaluate  # noqa: E402
from mtanytime.training import Trainer, load_run  # noqa: E402
from mtanytime.transfer import TransferTrainer  # noqa: E402

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
