"""Paper 1: learning what and where to transfer (L2T-ww, arXiv:1905.05901)."""

from mtanytime.transfer.bilevel import InnerStep, SGDRule, meta_gradient
from mtanytime.transfer.matching import FeatureMatching
from mtanytime.transfer.metanets import MetaNetworks, PairWeights
from mtanytime.transfer.outer import AnotherBatch
from mtanytime.transfer.trainer import Student, TransferResult, TransferTrainer

__all__ = [
    "AnotherBatch",
    "FeatureMatching",
    "InnerStep",
    "MetaNetworks",
    "PairWeights",
    "SGDRule",
    "Student",
    "TransferResult",
    "TransferTrainer",
    "meta_gradient",
]
