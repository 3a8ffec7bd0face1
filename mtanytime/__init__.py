"""Two papers in one house: what and where to transfer (arXiv:1905.05901), and anytime prediction (arXiv:1807.02609)."""

import importlib

__version__ = "0.1.0"


def _check_torchvision() -> None:
    """Import torch and torchvision, or raise an `ImportError` that says how to mend a pair that does not fit together.

    A torch from one place (say, the CPU-only one) beside a torchvision from another fails at import with
    "operator torchvision::nms does not exist", an undefined symbol, or a missing library, none of which helps a reader.
    """
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        from importlib import metadata

        found = []
        for name in ("torch", "torchvision"):
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                found.append(f"no {name}")
        raise ImportError(
            "mtanytime needs a torch and a torchvision that fit together, and those here do not "
            f"({', '.join(found)}): {error}\nInstall them together, from one place:\n"
            "    pip install --upgrade --force-reinstall torch torchvision"
        ) from error


_check_torchvision()

# The public names. mtanytime.explore is never imported here: it draws, and `import mtanytime` stays quick and quiet.
from mtanytime import anytime, backbones, data, features, measure, training, transfer  # noqa: E402
from mtanytime._moved import OLD_MODULES, install_old_paths  # noqa: E402
from mtanytime.anytime import AnytimePredictor, AnytimeTrainer, SlicedResNeXt  # noqa: E402
from mtanytime.backbones import Normalized, load_l2t_resnet32, resnet, vgg9  # noqa: E402
from mtanytime.features import image_layers, tap  # noqa: E402
from mtanytime.measure import evaluate  # noqa: E402
from mtanytime.training import Trainer  # noqa: E402
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
    "evaluate",
    "features",
    "image_layers",
    "load_l2t_resnet32",
    "measure",
    "resnet",
    "tap",
    "training",
    "transfer",
    "vgg9",
]


def __getattr__(name: str) -> object:
    """Modules under the names that they had before."""
    if name in OLD_MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
