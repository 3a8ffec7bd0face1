"""A small anytime network whose costs are counted by hand, for the tests of `measure`."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mtanytime.anytime.network import AnytimeNetwork

SHAPE = (3, 8, 8)


class Ladder(AnytimeNetwork):
    """Three exits along a trunk of grouped convolutions; later heads are heavier, and training is random (dropout)."""

    def __init__(self, classes: int = 3, exits: int = 3) -> None:
        super().__init__()
        blocks = [nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1, groups=2) for _ in range(exits - 1))]
        self.blocks = nn.ModuleList(nn.Sequential(block, nn.BatchNorm2d(4), nn.ReLU()) for block in blocks)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 5 * k, 1),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout(0.5),
                nn.Linear(5 * k, classes),
            )
            for k in range(1, exits + 1)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits, thin to wide."""
        outputs = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            images = block(images)
            outputs.append(head(images))
        return outputs

    def extract(self, k: int) -> nn.Module:
        """Return exit k as a new module, whose construction draws random numbers and which has no mode of its own."""
        alone = nn.Sequential(*(copy.deepcopy(block) for block in self.blocks[:k]), copy.deepcopy(self.heads[k - 1]))
        torch.rand(3)
        return alone.train(self.training)


# Counted by hand for images (3, 8, 8).
TRUNK = [6912, 11520, 16128]  # 3·4·9·64 for the stem, and 4·2·9·64 more for every grouped convolution
HEADS = [1295, 2590, 3885]  # 4·5k·64 for the 1×1 convolution, 5k·3 for the linear layer
PARAMS = [112 + 8 + 25 + 18, 112 + 8 + 76 + 8 + 50 + 33, 112 + 8 + 2 * (76 + 8) + 75 + 48]


def ladder(seed: int = 0, **settings: Any) -> Ladder:
    """Return a Ladder with random weights and with batch statistics other than the initial ones."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        network = Ladder(**settings)
        network(torch.rand(16, *SHAPE))
    return network
