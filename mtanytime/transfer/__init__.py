"""Paper 1: learning what and where to transfer (L2T-ww, arXiv:1905.05901)."""

from mtanytime._moved import find
from mtanytime.transfer.bilevel import InnerStep, SGDRule, SGDState, meta_gradient
from mtanytime.transfer.lookahead import Lookahead, Student
from mtanytime.transfer.matching import FeatureMatching
from mtanytime.transfer.meta_networks import MetaNetworks, PairWeights
from mtanytime.transfer.outer import FreshBatch
from mtanytime.transfer.trainer import TransferResult, TransferTrainer

__all__ = [
    "FeatureMatching",
    "FreshBatch",
    "InnerStep",
    "Lookahead",
    "MetaNetworks",
    "PairWeights",
    "SGDRule",
    "SGDState",
    "Student",
    "TransferResult",
    "TransferTrainer",
    "meta_gradient",
]


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("transfer", name)
