"""Paper 2: anytime prediction by slicing networks vertically (arXiv:1807.02609)."""

from mtanytime.anytime.cascade import SliceCascade
from mtanytime.anytime.early_exit import choose_thresholds, exits_taken
from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.inclusive import InclusiveResNeXt
from mtanytime.anytime.inference import AnytimePredictor
from mtanytime.anytime.joint_loss import JointLoss
from mtanytime.anytime.msdnet import MSDNet
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.prepared import prepare_steps
from mtanytime.anytime.resnext import ResNeXt, resnext
from mtanytime.anytime.slice_shape import SliceShape, doubling_widths
from mtanytime.anytime.sliced import SlicedResNeXt
from mtanytime.anytime.sliced_resnet import SlicedResNet
from mtanytime.anytime.taxonomy import CoarseToFineLoss, Taxonomy, coarse_to_fine_metrics
from mtanytime.anytime.trainer import AnytimeResult, AnytimeTrainer, evaluate_exits

__all__ = [
    "AnytimeNetwork",
    "AnytimePredictor",
    "AnytimeResult",
    "AnytimeTrainer",
    "CoarseToFineLoss",
    "InclusiveResNeXt",
    "JointLoss",
    "MSDNet",
    "ResNeXt",
    "SliceCascade",
    "SliceShape",
    "SlicedResNeXt",
    "SlicedResNet",
    "Taxonomy",
    "choose_thresholds",
    "coarse_to_fine_metrics",
    "doubling_widths",
    "evaluate_exits",
    "exits_taken",
    "fold_batch_norms",
    "prepare_steps",
    "resnext",
]
