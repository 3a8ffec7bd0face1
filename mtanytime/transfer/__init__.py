"""Paper 1: learning what and where to transfer (L2T-ww, arXiv:1905.05901)."""

from mtanytime._moved import find
from mtanytime.transfer.bilevel import InnerStep, SGDRule, SGDState, meta_gradient
from mtanytime.transfer.lookahead import Lookahead, Student
from mtanytime.transfer.matching import FeatureMatching
from mtanytime.transfer.meta_networks import MetaNetworks, PairWeights
from mtanytime.transfer.outer import FreshBatch
from mtanytime.transfer.pair_search import PairSearch
from mtanytime.transfer.search import MapSearch, search_map
from mtanytime.transfer.settings import PAPER
from mtanytime.transfer.trainer import TransferResult, TransferTrainer
from mtanytime.transfer.transfer_map import TransferMap
from mtanytime.transfer.trials import random_search, search_then_train, trial_search

__all__ = [
    "PAPER",
    "FeatureMatching",
    "FreshBatch",
    "InnerStep",
    "Lookahead",
    "MapSearch",
    "MetaNetworks",
    "PairSearch",
    "PairWeights",
    "SGDRule",
    "SGDState",
    "Student",
    "TransferMap",
    "TransferResult",
    "TransferTrainer",
    "meta_gradient",
    "random_search",
    "search_map",
    "search_then_train",
    "trial_search",
]


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("transfer", name)
