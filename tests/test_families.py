"""Families of networks as sources and targets: the meta-gradient is exact, and torchvision's classifiers all train."""

import pytest
import tiny
import torch
import torchvision
from torch import nn
from transfer_runs import assert_close, stirred, transfer

from mtanytime.transfer import TransferTrainer


def seeded(make: object, *arguments: object, **options: object) -> nn.Module:
    """A network with weights from a seed; torch's random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments, **options)


def vision_transformer() -> nn.Module:
    """torchvision's, tiny; its head is not zero, or no gradient would reach its layers."""
    network = seeded(torchvision.models.VisionTransformer, 8, 4, 2, 2, hidden_dim=8, mlp_dim=12, num_classes=3)
    seeded(nn.init.normal_, network.heads.head.weight)
    return network


def check_meta_gradient(trainer: TransferTrainer) -> None:
    """The meta-gradient of the trainer's lookahead is that of plain autograd through one graph, and not zero."""
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(6) % 3
    ours = stirred(trainer).meta_gradient(images, labels)
    object.__setattr__(trainer.lookahead, "mode", "unroll")
    assert all(gradient.abs().max() > 0 for gradient in ours)
    assert_close(ours, trainer.meta_gradient(images, labels), 1e-9)


@pytest.mark.parametrize("teaches", [True, False])
def test_meta_gradient_of_a_transformer(teaches: bool) -> None:
    """A ViT's tokens teach a CNN and a CNN teaches a ViT, with the exact gradient."""
    transformer, convolutional = vision_transformer().double(), tiny.made(4, seed=1).double()
    source, target = (transformer, convolutional) if teaches else (convolutional, transformer)
    blocks = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    layers = {"source_layers" if teaches else "target_layers": blocks}
    check_meta_gradient(transfer(source=source.eval(), target=target, **layers))
