"""The layers and pairs to match: resolved from a user's arguments, and checked before training.

A layer of a single source is called by its path; with several sources, by "name/path".
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.features import Tapped, bare, tap, unwrapped
from mtanytime.functional import functional_call, input_unchanged, trial_run
from mtanytime.transfer.meta_networks import Pair
from mtanytime.transfer.pair_search import later

Layers = Sequence[str]
Pairs = Sequence[Pair] | Literal["not later"]
NOT_LATER = "not later"
Maps = dict[str, Float[Tensor, "batch _ _ _"]]


def join_name(name: str, layer: str) -> str:
    """A source layer's name in pairs: "name/layer", or the layer alone for one unnamed source."""
    return f"{name}/{layer}" if name else layer


def source_name(name: str) -> str:
    """A source network's name in errors and notes."""
    return f"source {name!r}" if name else "source"


@contextmanager
def error_context(context: str) -> Iterator[None]:
    """Turn any error in the block into a ValueError that begins with `context`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{context}: {error}") from error


# From arguments to layers and pairs.


def name_sources(source: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The source networks by name; a single one gets the name "". Wrappers are taken off (see `bare`)."""
    networks = dict(source) if isinstance(source, Mapping) else {"": source}
    valid = networks and all(isinstance(network, nn.Module) for network in networks.values())
    require(bool(valid), "source", "a network, or one or more networks by name", source)
    if isinstance(source, Mapping):
        named = all(isinstance(name, str) and name and "/" not in name for name in networks)
        require(named, "source", "names without '/'", list(networks))
    return {name: bare(network, source_name(name)) for name, network in networks.items()}


def check_pair_form(pairs: Pairs | None, rules: Sequence[str] = ()) -> None:
    """Raise ValueError for an empty list of pairs, pairs that are not two layers, or a rule that is not allowed."""
    valid = pairs is None or (len(pairs) > 0 and all(not isinstance(pair, str) and len(pair) == 2 for pair in pairs))
    valid = pairs in rules if isinstance(pairs, str) else valid
    expected = ", or ".join(["one or more (source layer, target layer)", *map(repr, rules)])
    require(valid, "pairs", expected, pairs)


def tap_layers(
    networks: Mapping[str, nn.Module],
    target: nn.Module,
    source_layers: Layers | Mapping[str, Layers] | None,
    target_layers: Layers | None,
    pairs: Pairs | None,
) -> tuple[dict[str, Tapped], Tapped, list[Pair]]:
    """Tap the sources and the target at the layers to match.

    Args:
        networks: the sources by name (see `name_sources`).
        target: the target network.
        source_layers: the sources' layers; default: those in `pairs`, else each network's own `feature_layers`.
        target_layers: the target's layers, with the same default.
        pairs: the pairs to match; default: every source layer with every target layer. "not later": those of them
            whose target layer comes no later among the target's layers than the source layer among its network's, in
            the order in which the layers are listed, from 0 for the first to 1 for the last (½ for a single one);
            layers without such a pair are left out.

    Returns:
        The tapped sources by name, the tapped target, and the pairs.

    Raises:
        ValueError: for unknown, repeated or unused layers, and pairs outside the layers.
    """
    listed = None if isinstance(pairs, str) else pairs
    chosen = _choose_source_layers(networks, source_layers, listed)
    if target_layers is None:
        paired = None if listed is None else list(dict.fromkeys(layer for _, layer in listed))
        target_layers = _own_layers("target_layers", "target", target) if paired is None else paired
    sources, tapped = _tap_all(networks, target, chosen, target_layers)
    if isinstance(pairs, str):
        pairs = _not_later(_names(sources), tapped.layers, list(sources))
        used, paired = ({pair[side] for pair in pairs} for side in (0, 1))
        kept = {name: [s for s in source.layers if join_name(name, s) in used] for name, source in sources.items()}
        sources, tapped = _tap_all(networks, target, kept, [layer for layer in tapped.layers if layer in paired])
    return sources, tapped, _check_pairs(pairs, _names(sources), tapped.layers)


def _tap_all(
    networks: Mapping[str, nn.Module], target: nn.Module, source_layers: Mapping[str, Layers], target_layers: Layers
) -> tuple[dict[str, Tapped], Tapped]:
    """Tap each source and the target. Raises ValueError with the network's name."""
    sources = {}
    for name, layers in source_layers.items():
        with error_context(source_name(name)):
            sources[name] = tap(networks[name], layers)
    with error_context("target"):
        return sources, tap(target, target_layers)


def _names(sources: Mapping[str, Tapped]) -> list[str]:
    return [join_name(name, layer) for name, source in sources.items() for layer in source.layers]


def _not_later(sources: Sequence[str], targets: Sequence[str], networks: Sequence[str]) -> list[Pair]:
    """The pairs of all that `later` calls not later, up to rounding."""
    pairs = [(source, target) for source in sources for target in targets]
    return [pair for pair, more in zip(pairs, later(pairs, networks), strict=True) if more < 1e-9]


def _choose_source_layers(
    networks: Mapping[str, nn.Module], layers: Layers | Mapping[str, Layers] | None, pairs: Sequence[Pair] | None
) -> dict[str, Layers]:
    """The layers of each source: the given ones, else those in the pairs, else its own."""
    names = ", ".join(networks)
    if layers is not None:
        by_source = layers if isinstance(layers, Mapping) else {"": layers}
        expected = "a list" if "" in networks else f"a dict with the layers of {names}"
        require(set(by_source) == set(networks), "source_layers", expected, layers)
        return {name: by_source[name] for name in networks}
    if pairs is None:
        return {name: _own_layers("source_layers", source_name(name), net) for name, net in networks.items()}
    by_pair: dict[str, list[str]] = {name: [] for name in networks}
    for joined in dict.fromkeys(source for source, _ in pairs):
        name, layer = ("", joined) if "" in networks else joined.split("/", 1) if "/" in joined else (joined, "")
        require(name in networks, "pairs", f"source layers as 'name/layer' with a name of {names}", joined)
        by_pair[name].append(layer)
    unused = [name for name, paired in by_pair.items() if not paired]
    require(not unused, "pairs", f"one or more for each source ({names})", Words(f"none for {', '.join(unused)}"))
    return by_pair


def _own_layers(argument: str, name: str, network: nn.Module) -> Layers:
    """The `feature_layers` that a network names itself."""
    network = unwrapped(network)
    layers = getattr(network, "feature_layers", None)
    if layers is None:
        expected = f"module paths, as the {name} ({type(network).__name__}) has no feature_layers"
        raise mismatch(argument, expected, None, "features.image_layers lists some")
    return layers


def _check_pairs(pairs: Sequence[Pair] | None, source_layers: Layers, target_layers: Layers) -> list[Pair]:
    """The pairs, checked against the layers; all of them by default."""
    if pairs is None:
        return [(source, target) for source in source_layers for target in target_layers]
    pairs = [tuple(pair) for pair in pairs]
    within = f"a layer of the source ({', '.join(source_layers)}) and one of the target ({', '.join(target_layers)})"
    for pair in pairs:
        require(pairs.count(pair) == 1, "pairs", "each pair once", Words(f"{pair} {pairs.count(pair)} times"))
        require(pair[0] in source_layers and pair[1] in target_layers, "pairs", within, pair)
    unused = [layer for layer in source_layers if layer not in {source for source, _ in pairs}]
    unused += [layer for layer in target_layers if layer not in {target for _, target in pairs}]
    require(not unused, "pairs", "every listed layer in a pair", Words(f"none with {', '.join(map(repr, unused))}"))
    return pairs


# Checks with the networks.


def check_apart(networks: Mapping[str, nn.Module], target: nn.Module) -> None:
    """Raise ValueError for a network, such as "source", that shares a layer or parameter with the target."""
    parts = {*target.modules(), *target.parameters()}
    for name, network in networks.items():
        shared = parts & {*network.modules(), *network.parameters()}
        expected = f"a network that shares no layer or parameter with the {name}"
        require(not shared, "target", expected, Words("one that does"))


def freeze_source(what: str, network: nn.Module, device: torch.device) -> list[str]:
    """Move a network, such as "source", to the device and put it in eval mode; return notes on what changed."""
    notes = []
    before = {str(p.device) for p in network.parameters()}
    with error_context(what):
        network.to(device)
    if before != {str(p.device) for p in network.parameters()}:
        notes.append(f"{what}: moved from {', '.join(sorted(before))} to {device}")
    if any(module.training for module in network.modules()):
        notes.append(f"{what}: was in train mode, switched to eval mode")
    network.eval()
    if any(p.requires_grad for p in network.parameters()):
        notes.append(f"{what}: its parameters require grad; it runs without gradients and is not trained")
    return notes


def try_layers(name: str, tapped: Tapped, images: Float[Tensor, "batch channel height width"], training: bool) -> Maps:
    """The maps of a tapped network for a few images. Raises ValueError with the network's name.

    The network stays unchanged.

    In eval mode, maps that are not finite are an error, too. In train mode, the maps keep their graph, and a network
    that skips layers at random runs until each has run, up to 50 times.
    """
    maps: Maps = {}
    with (
        torch.set_grad_enabled(training),
        trial_run(tapped, images.device, training) as buffers,
        error_context(f"{name}, given images of shape {tuple(images.shape[1:])}"),
    ):
        images = images.to(dtype_of(tapped, images))
        with input_unchanged(images):
            for _ in range(49 if training else 0):
                maps |= functional_call(tapped, buffers, images, False)[1]
                if len(maps) == len(tapped.layers):
                    return {layer: maps[layer] for layer in tapped.layers}
            maps = functional_call(tapped, buffers, images)[1]
        broken = [layer for layer, value in maps.items() if not value.isfinite().all()]
        require(training or not broken, "layers", "finite maps", Words(f"some of {', '.join(broken)} that are not"))
        return maps


@torch.no_grad()
def check_always_run(name: str, tapped: Tapped, images: Float[Tensor, "batch channel height width"]) -> None:
    """Raise ValueError for a network that skips a tapped layer at random in train mode: 20 passes are tried."""
    with trial_run(tapped, images.device, True) as buffers:
        for _ in range(20):
            maps = functional_call(tapped, buffers, images.to(dtype_of(tapped, images)), False)[1]
            skipped = [layer for layer in tapped.layers if layer not in maps]
            got = Words(f"{', '.join(map(repr, skipped))}, skipped at random")
            require(not skipped, f"{name}_layers", "layers that run in every step", got)


def check_trainable(target: nn.Module, maps: Maps) -> None:
    """Raise ValueError for a matched layer of the target with no trained parameter before it."""
    trained = [p for p in target.parameters() if p.requires_grad]
    for layer, value in maps.items():
        gradients = [None]
        if value.requires_grad:
            gradients = torch.autograd.grad(value.sum(), trained, retain_graph=True, allow_unused=True)
        require(
            any(gradient is not None for gradient in gradients),
            "target_layers",
            "layers that the matching loss can train",
            Words(f"{layer!r}, which gets no gradient"),
            "no trained parameter comes before it in the forward pass (is it frozen, or run under no_grad?)",
        )


def dtype_of(network: nn.Module, images: Tensor) -> torch.dtype:
    """The dtype that a network computes in; a network without parameters computes in the images' dtype."""
    return next(network.parameters(), images).dtype
