"""Anytime networks whose weights are made from other tensors by hooks or parametrizations: pruning, weight norm old and
new, spectral norm old and new. `extract`, `refine`, folding and the predictor answer as the network itself does."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mtanytime.anytime import (
    AnytimePredictor,
    InclusiveResNeXt,
    MSDNet,
    SliceCascade,
    SlicedResNet,
    SlicedResNeXt,
    SliceShape,
)
from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.slice_layers import SliceConv
from mtanytime.anytime.slice_pattern import TriangularConv

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MSDNet": lambda: MSDNet(3, blocks=2, base=2, step=1, channels=4, growth=4),
    "sliced": lambda: SlicedResNeXt(3, 8, 2, 4, 1, (4, 4), (2, 2)),
    "basic": lambda: SlicedResNet(3, SliceShape(((4, 4), (6, 6)))),
    "cascade": lambda: SliceCascade(3, SliceShape(((4, 4), (6, 6)))),
    "inclusive": lambda: InclusiveResNeXt(3, 8, 2, 4, 1, 2),
}
KINDS: dict[str, Callable[[nn.Module, str], object]] = {
    "pruning": lambda module, name: prune.l1_unstructured(module, name, 0.5),
    "weight norm": weight_norm,
    "weight norm as parametrization": parametrizations.weight_norm,
    "spectral norm": spectral_norm,
    "spectral norm as parametrization": parametrizations.spectral_norm,
}


def made(network: str, kind: str, seed: int = 0) -> nn.Module:
    """A network all of whose convolutions and heads have such weights, with batch-norm statistics of random images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[network]()
        for module in list(model.modules()):
            if type(module) in (nn.Conv2d, nn.Linear, SliceConv):
                KINDS[kind](module, "weight")
            elif isinstance(module, TriangularConv):
                for i in range(len(module.weights)):
                    KINDS[kind](module.weights, str(i))
        model.train()(torch.rand(8, 3, 32, 32))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_answers(network: str, kind: str) -> None:
    """Straight after a training step, and after loading another state without running the network."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = made(network, kind, seed=1).eval()
    loaded = made(network, kind).eval()
    loaded.load_state_dict(other.state_dict())
    fresh = made(network, kind).eval()  # made weights still hold the graph of the pass in train mode
    for model, same in ((fresh, made(network, kind).eval()), (loaded, other)):
        with torch.no_grad():
            expected = same(images)
        parts = [model.extract(k) for k in (1, 2)]
        predictor = AnytimePredictor(model)
        with torch.no_grad():
            folded = fold_batch_norms(model)(images)
            for k, logits in enumerate(expected):
                torch.testing.assert_close(parts[k](images), logits, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(folded[k], logits, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(
                    predictor.predict(images, k + 1, "exit").logits, logits, rtol=1e-5, atol=1e-6
                )
        if hasattr(model, "refine"):
            for logits, refined in zip(expected, model.refine(images), strict=True):
                torch.testing.assert_close(refined, logits, rtol=1e-5, atol=1e-6)
        assert {name for name, _ in parts[0].named_parameters() if "orig" in name or "_g" in name} == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_made_weights_follow_training(network: str, kind: str) -> None:
    """Every step uses weights made from the parameters as they are: two steps, and the network answers as one that was
    loaded from its state."""
    model = made(network, kind)
    images, optimizer = torch.rand(4, 3, 32, 32), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(logits.square().sum() for logits in model(images)).backward()
        optimizer.step()
    copied = made(network, kind)
    copied.load_state_dict(model.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(model.eval()(images), copied.eval()(images), strict=True):
            torch.testing.assert_close(ours, theirs)
