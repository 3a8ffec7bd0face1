"""Layers and pairs to match: resolved and checked."""

from collections.abc import Sequence

from torch import nn

from mtanytime.checks import require_wanted
from mtanytime.features import unwrapped
from mtanytime.transfer.meta_networks import Pair

Layers = Sequence[str]


def join_name(name: str, layer: str) -> str:
    """A source layer as pairs name it: "name/layer", or the layer alone where there is one unnamed source."""
    return f"{name}/{layer}" if name else layer


def source_name(name: str) -> str:
    """A source network as errors call it."""
    return f"source {name!r}" if name else "source"


def own_layers(what: str, network: nn.Module) -> Layers:
    """The `feature_layers` that a network names itself."""
    network = unwrapped(network)
    layers = getattr(network, "feature_layers", None)
    if layers is None:
        wanted = f"{what.split()[0]}_layers (features.image_layers lists some)"
        raise ValueError(f"{what}: {type(network).__name__} has no feature_layers of its own; wanted {wanted}")
    return layers


def choose_target_layers(model: nn.Module, layers: Layers | None, pairs: Sequence[Pair] | None) -> Layers:
    """The target layers to match: the given ones, else those of the pairs, else the network's own."""
    if layers is not None:
        return layers
    if pairs is not None:
        return list(dict.fromkeys(target for _, target in pairs))
    return own_layers("target", model)


def check_pairs(pairs: Sequence[Pair] | None, source_layers: Layers, target_layers: Layers) -> list[Pair]:
    """The pairs, checked against the layers; all of them where none are given."""
    if pairs is None:
        return [(source, target) for source in source_layers for target in target_layers]
    pairs = [tuple(pair) for pair in pairs]
    for pair in pairs:
        require_wanted(pairs.count(pair) == 1, "each pair once", pair)
        if pair[0] not in source_layers or pair[1] not in target_layers:
            raise ValueError(
                f"pair {pair} lies outside the layers to match (source: {', '.join(source_layers)}; "
                f"target: {', '.join(target_layers)})"
            )
    unused = [s for s in source_layers if s not in {a for a, _ in pairs}]
    unused += [t for t in target_layers if t not in {b for _, b in pairs}]
    if unused:
        raise ValueError(f"layer {unused[0]!r} is in no pair; wanted every listed layer in a pair")
    return pairs
