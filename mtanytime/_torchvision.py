"""torchvision, imported where it is first used: it takes as long as torch, and much of the library does without it."""

import importlib
from importlib import metadata
from typing import Any


def torchvision_module(name: str = "torchvision") -> Any:
    """Import a module of torchvision. Raises ImportError, with the remedy, where it does not fit the installed torch.

    A torch from one source (say, the CPU-only one) and a torchvision from another fail at import with
    "operator torchvision::nms does not exist", an undefined symbol or a missing library, which does not help a user.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        versions = []
        for package in ("torch", "torchvision"):
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                versions.append(f"no {package}")
        raise ImportError(
            "mtanytime needs a torch and a torchvision that fit together, and the installed ones do not "
            f"({', '.join(versions)}): {error}\nInstall both together, from one source:\n"
            "    pip install --upgrade --force-reinstall torch torchvision"
        ) from error
