"""Paper 2: anytime prediction by slicing networks vertically (arXiv:1807.02609)."""

from mtanytime.anytime.inclusive import InclusiveResNeXt
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.resnext import ResNeXt, resnext
from mtanytime.anytime.sliced import SlicedResNeXt

__all__ = ["AnytimeNetwork", "InclusiveResNeXt", "ResNeXt", "SlicedResNeXt", "resnext"]
