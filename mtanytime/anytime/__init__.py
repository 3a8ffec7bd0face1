"""Paper 2: anytime prediction by slicing networks vertically (arXiv:1807.02609)."""

from mtanytime.anytime.inclusive import InclusiveResNeXt
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.resnext import ResNeXt, resnext
from mtanytime.anytime.sliced import SlicedResNeXt
from mtanytime.anytime.trainer import AnytimeResult, AnytimeTrainer, JointLoss, evaluate_exits

__all__ = [
    "AnytimeNetwork",
    "AnytimeResult",
    "AnytimeTrainer",
    "InclusiveResNeXt",
    "JointLoss",
    "ResNeXt",
    "SlicedResNeXt",
    "evaluate_exits",
    "resnext",
]
