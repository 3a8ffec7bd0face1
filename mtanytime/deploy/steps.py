"""The steps of a chain: each computes one slice of a sliced network and hands on what later ones read."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.anytime import AnytimeNetwork
from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.stepping import SlicedNetwork
from mtanytime.checks import Words, mismatch
from mtanytime.features import unwrapped
from mtanytime.measure.costs import normalized_as
from mtanytime.measure.logits import describe_output, find_logits

Images = Float[Tensor, "batch channel height width"]


class LogitsOf(nn.Module):
    """A network that returns its logits and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """The logits in the network's output."""
        output = self.network(images)
        try:
            return find_logits(output)
        except ValueError as error:
            got = Words(describe_output(output))
            remedy = "export a module that returns the logits alone"
            raise mismatch("network", "an output that holds logits (batch, classes)", got, remedy) from error


class Step(nn.Module):
    """One slice of a sliced network, as a module without memory.

    Args:
        network: the network, with batch norms folded.
        normalize: what its images go through first.
        counts: how many tensors each of the slices before hands on.
    """

    def __init__(self, network: SlicedNetwork, normalize: nn.Module, counts: Sequence[int]) -> None:
        super().__init__()
        self.network, self.normalize, self.counts = network, normalize, list(counts)

    def forward(self, images: Images, state: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        """The logits of this slice's exit, followed by what it hands on.

        `state` is what the slices before it handed on, one after another.
        """
        earlier = [list(part) for part in _cut(state, self.counts)]
        logits, handed_on = self.network.one_slice(self.normalize(images), earlier)
        return logits, *handed_on


def networks_to_export(network: nn.Module, fold: bool = True) -> list[nn.Module]:
    """A stand-alone network for each exit, thin to wide, or one for an ordinary network; `fold` folds batch norms."""
    inner = unwrapped(network)
    prepare = fold_batch_norms if fold else deepcopy
    if not isinstance(inner, AnytimeNetwork):
        return [LogitsOf(prepare(network))]
    exits = [prepare(inner.extract(k)) for k in range(1, inner.exits + 1)]
    return [nn.Sequential(normalized_as(network, nn.Identity()), part) for part in exits]


@torch.no_grad()
def chain_of(network: nn.Module, images: Images) -> list[tuple[Step, list[Tensor], int]]:
    """The steps of a sliced network: module, an example of its state, and how many tensors it hands on.

    Empty for a network that is not cut into slices.
    """
    inner = unwrapped(network)
    if not isinstance(inner, SlicedNetwork):
        return []
    folded, steps, counts, state = fold_batch_norms(inner), [], [], []
    for _ in range(inner.exits):
        step = Step(folded, normalized_as(network, nn.Identity()), counts)
        _, *handed_on = step(images, tuple(state))
        steps.append((step, list(state), len(handed_on)))
        counts.append(len(handed_on))
        state += handed_on
    return steps


def _cut(state: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    parts, start = [], 0
    for count in counts:
        parts.append(state[start : start + count])
        start += count
    return parts
