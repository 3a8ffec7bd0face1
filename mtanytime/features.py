"""Tap the feature maps of any network by module path."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import SequenceMatcher
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.backbones import Normalized
from mtanytime.functional import functional_call, trial_run


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside a `Normalized`, else the model itself: layer paths begin here."""
    while isinstance(model, Normalized):
        model = model.network
    return model


@contextmanager
def hooked(network: nn.Module, layers: Iterable[str], hook: Callable[..., None]) -> Iterator[None]:
    """While it lasts, `hook(layer, module, args, kwargs, output)` is called after each run of each of the layers."""
    with ExitStack() as handles:
        for layer in layers:
            module = network.get_submodule(layer)
            handles.callback(module.register_forward_hook(partial(hook, layer), with_kwargs=True).remove)
        yield


def _unlike_a_map(output: Any, batch: int) -> str | None:
    """None for an image map, (batch, channel, height, width) of floats; else its type, shape or dtype."""
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}"
    if output.ndim != 4 or len(output) != batch:
        return str(tuple(output.shape))
    return None if output.is_floating_point() else str(output.dtype)


def _counts_changes(output: Tensor) -> bool:
    """Whether torch's version counter sees in-place changes: not in inference mode, not under `torch.func.vmap`."""
    return not output.is_inference() and output.detach()[:0].clone().zero_()._version > 0


class Tapped(nn.Module):
    """A network that also hands out the feature maps of some of its layers, made by `tap`.

    `output, features = tapped(images)`: the network's own output, and a dict layer path -> (batch, channel, height,
    width). The maps stay in the autograd graph. Hooks exist only during a call. The network is the submodule `model`,
    so `parameters()`, `state_dict()` and `torch.func.functional_call` see it.

    A map that a later layer overwrites (`ReLU(inplace=True)` after a tapped batch norm) is handed out as it was when
    its layer gave it. Which maps need a copy for this is learned on the first call in each mode, where all are copied,
    from torch's version counters.

    Raises ValueError where a layer does not give an image map; RuntimeError where it runs twice or not at all, or where
    a map that was not overwritten on the first call is overwritten later (call again: it is copied from then on).
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self._overwritten: dict[tuple[bool, ...], set[str]] = {}  # by the training flags of all modules
        network = unwrapped(model)
        paths = [path for path, _ in network.named_modules(remove_duplicate=False) if path]
        if not self.layers:
            raise ValueError(f"no layers to tap in {type(network).__name__}; wanted at least one of its module paths")
        for layer, count in Counter(self.layers).items():
            if layer not in paths:
                near = sorted(paths, key=lambda path: -SequenceMatcher(None, path, layer).ratio())
                has = ", ".join(near[:8]) + ", ..." * (len(near) > 8)
                raise ValueError(f"layer {layer!r} is not in {type(network).__name__} (has: {has})")
            if count > 1:
                raise ValueError(f"layer {layer!r} is listed {count} times; wanted each layer once")

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> tuple[Any, dict[str, Float[Tensor, "batch _ _ _"]]]:
        """The network's output, whatever it is, and the tapped maps by layer, in the order of `layers`."""
        network = unwrapped(self.model)
        name = type(network).__name__
        modes = tuple(module.training for module in self.model.modules())
        copied = self._overwritten.get(modes)  # None: not known yet, so copy all
        originals: dict[str, tuple[Tensor, int]] = {}
        features: dict[str, Tensor] = {}

        def keep(layer: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            if layer in features:
                raise RuntimeError(f"layer {layer!r} of {name} runs more than once in a forward pass; wanted once")
            if (found := _unlike_a_map(output, len(images))) is not None:
                wanted = f"wanted an image map (batch {len(images)}, channel, height, width) of floats"
                raise ValueError(f"layer {layer!r} gives {found}; {wanted}")
            if _counts_changes(output):
                originals[layer] = output, output._version
            safe = layer in originals and copied is not None and layer not in copied
            features[layer] = output if safe else output.clone()

        with hooked(network, self.layers, keep):
            output = self.model(images)
        for layer in self.layers:
            if layer not in features:
                raise RuntimeError(f"layer {layer!r} of {name} does not run in the forward pass; wanted once")
        overwritten = {layer for layer, (kept, version) in originals.items() if kept._version != version}
        late = set() if copied is None else overwritten - copied
        if len(originals) == len(self.layers):
            self._overwritten.setdefault(modes, set()).update(overwritten)
        if late:
            raise RuntimeError(
                f"layer {min(late)!r} of {name} was overwritten in place, unlike on the first call; try again"
            )
        return output, {layer: features[layer] for layer in self.layers}


def tap(model: nn.Module, layers: Sequence[str]) -> Tapped:
    """Wrap `model` so that a call also gives the feature maps of `layers`, module paths such as "layer1.0.conv1".

    Paths are those of `model.named_modules()`; of the wrapped network when the model is a `Normalized`. See `Tapped`.
    Raises ValueError for an unknown layer (naming the nearest ones), a layer listed twice, or an empty list.
    """
    return Tapped(model, layers)


def image_layers(
    model: nn.Module, images: Float[Tensor, "batch channel height width"]
) -> dict[str, tuple[int, int, int]]:
    """All layers that `tap` can give, in the order of `named_modules`: path -> (channel, height, width) for `images`.

    These are the layers that run exactly once in eval mode and give an image map. The model is left untouched.
    """
    network = unwrapped(model)
    runs: Counter[str] = Counter()
    shapes: dict[str, tuple[int, int, int]] = {}

    def keep(layer: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        runs[layer] += 1
        if _unlike_a_map(output, len(images)) is None:
            shapes[layer] = tuple(output.shape[1:])

    layers = [path for path, _ in network.named_modules() if path]
    with torch.no_grad(), trial_run(model, images.device, training=False) as buffers, hooked(network, layers, keep):
        functional_call(model, buffers, images.clone())
    return {layer: shapes[layer] for layer in layers if runs[layer] == 1 and layer in shapes}
