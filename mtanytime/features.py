"""Taps: the feature maps of any network by module path."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from difflib import SequenceMatcher
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.backbones import Normalized
from mtanytime.checks import Words, mismatch, require
from mtanytime.functional import functional_call, trial_run
from mtanytime.layouts import Layout, is_compiled, record_layouts, to_map


def _inside(model: nn.Module) -> nn.Module | None:
    """The network inside DataParallel, DistributedDataParallel or the result of `torch.compile`, else None."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)  # that of torch.compile


def check_network(network: object, argument: str = "network") -> None:
    """Raise ValueError for anything but a torch.nn.Module, such as what `load_run` returns."""
    inner = getattr(network, "network", None)
    remedy = f"give its attribute network, a {type(inner).__name__}" if isinstance(inner, nn.Module) else ""
    require(isinstance(network, nn.Module), argument, "a torch.nn.Module", Words(f"a {type(network).__name__}"), remedy)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside a `Normalized` and wrappers (see `bare`), or the model itself; layer paths start from it.

    Raises ValueError for anything but a network.
    """
    check_network(model)
    while (inner := model.network if isinstance(model, Normalized) else _inside(model)) is not None:
        model = inner
    return model


def without_wrappers(model: nn.Module) -> nn.Module:
    """The model inside of DataParallel, DistributedDataParallel and `torch.compile`, with its `Normalized`."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def bare(model: nn.Module, argument: str = "model") -> nn.Module:
    """The model without wrappers that hide its modules (see `without_wrappers`), also without one in a `Normalized`.

    A `Normalized` stays; one that holds such a wrapper is copied, with the same network in it.

    Raises:
        ValueError: no network; a torch.jit network, whose layers cannot be read; or a wrapper deeper inside.
    """
    check_network(model, argument)
    model = without_wrappers(model)
    if isinstance(model, Normalized):
        network = bare(model.network, argument)
        if network is not model.network:
            model = copy(model)
            model._modules = {**model._modules, "network": network}
        return model
    if isinstance(model, torch.jit.ScriptModule):
        got = Words(f"a torch.jit one ({type(model).__name__})")
        raise mismatch(
            argument, "a network of Python modules", got, "pass the network that it was scripted or traced from"
        )
    for path, module in model.named_modules():
        if _inside(module) is not None:
            got = Words(f"{type(module).__name__} at {path!r}")
            raise mismatch(argument, "a network without wrapped parts", got, "put the network inside it in its place")
    return model


@contextmanager
def hooked(network: nn.Module, layers: Iterable[str], hook: Callable[..., None]) -> Iterator[None]:
    """Within the block, call `hook(layer, module, args, kwargs, output)` after each run of each of the layers."""
    with ExitStack() as handles:
        for layer in layers:
            module = network.get_submodule(layer)
            handles.callback(module.register_forward_hook(partial(hook, layer), with_kwargs=True).remove)
        yield


def _full_paths(model: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """The path of each layer in `model.named_modules()` -> the layer as given, which may start inside a `Normalized`.

    Raises ValueError for an unknown layer, one that is listed twice and an empty list.
    """
    network = unwrapped(model)
    name = type(network).__name__
    require(len(layers) > 0, "layers", f"at least one module path of {name}", layers)
    inner = [path for path, _ in network.named_modules(remove_duplicate=False) if path]
    outer = {path for path, _ in model.named_modules(remove_duplicate=False) if path}
    prefix = ""
    while isinstance(model, Normalized):
        model, prefix = model.network, prefix + "network."
    full_paths: dict[str, str] = {}
    for layer in layers:
        path = prefix + layer if layer in inner else layer
        if path not in outer:  # perhaps a path of the wrapped network
            path = ".".join(part for part in layer.split(".") if part not in ("module", "_orig_mod"))
            path = prefix + path if path in inner else path
        if path not in outer:
            near = sorted(inner, key=lambda path: -SequenceMatcher(None, path, layer).ratio())
            known = ", ".join(near[:8]) + ", ..." * (len(near) > 8)
            raise mismatch("layers", f"layers of {name} ({known})", layer)
        require(path not in full_paths, "layers", "each layer once", Words(f"{layer!r} twice"))
        full_paths[path] = layer
    return full_paths


def _description(output: Any, batch: int) -> str | None:
    """None for floats of one image each, (batch, …) of three or four dimensions, else the type, shape or dtype."""
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}"
    if output.ndim not in (3, 4) or len(output) != batch:
        return str(tuple(output.shape))
    return None if output.is_floating_point() else str(output.dtype)


def _input_size(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Height and width of the images that reach the network inside a `Normalized`."""
    size = tuple(images.shape[2:])
    while isinstance(model, Normalized):
        size = size if model.size is None else (model.size, model.size)
        model = model.network
    return size


def _counts_changes(output: Tensor) -> bool:
    """Whether torch counts in-place changes of a tensor: not in inference mode, not under `torch.func.vmap`."""
    return not output.is_inference() and output.detach()[:0].clone().zero_()._version > 0


class Tapped(nn.Module):
    """A network that also returns the feature maps of some of its layers, made by `tap`.

    `output, features = tapped(images)`: the network's own output, and a dict layer -> (batch, channel, height, width).
    Outputs with the channels last and tokens are viewed as such maps (see `layouts`); which layers have them is found
    out on the first call in each mode. The maps stay in the autograd graph. Hooks exist only during a call. The network
    is the submodule `model`, so that `parameters()`, `state_dict()` and `torch.func.functional_call` see it.

    If a later layer overwrites a map (`ReLU(inplace=True)` after a tapped batch norm), the map is returned as its layer
    computed it. Such maps must be copied: the first call in each mode copies all maps and reads from torch's version
    counters which of them were overwritten; later calls copy only those.

    Raises:
        ValueError: a layer whose output is not an image map, or tokens without a grid.
        RuntimeError: a layer that runs twice or not at all, or a map that is overwritten but was not on the first call
            (call again: from then on it is copied).
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.model = model = bare(model)
        self.grid = getattr(unwrapped(model), "token_grid", None) if grid is None else grid
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self._layer_at = _full_paths(model, self.layers)
        self._overwritten: dict[tuple[bool, ...], set[str]] = {}  # by the training flags of all modules
        self._layouts: dict[tuple[bool, ...], dict[str, Layout | None]] = {}  # as well

    def forward(
        self, images: Float[Tensor, "batch channel height width"], complete: bool = True
    ) -> tuple[Any, dict[str, Float[Tensor, "batch _ _ _"]]]:
        """Return the network's own output, whatever it is, and the tapped maps by layer, in the order of `layers`.

        If not `complete`, layers that do not run are left out (blocks skipped at random, as in stochastic depth).
        """
        name = type(unwrapped(self.model)).__name__
        modes = tuple(module.training for module in self.model.modules())
        copied = self._overwritten.get(modes)  # None: not known yet, so copy all
        layouts = self._layouts.setdefault(modes, {})
        size = _input_size(self.model, images)
        originals: dict[str, tuple[Tensor, int]] = {}
        features: dict[str, Tensor] = {}

        def keep(path: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            layer = self._layer_at[path]
            if layer in features:
                raise RuntimeError(f"layer {layer!r} of {name} runs more than once in a forward pass")
            description = _description(output, len(images))
            if description is None and recorder is not None and layer not in layouts:
                layouts[layer] = recorder.layout(output)
            layout = layouts.get(layer)
            if description is not None or layout is None or output.ndim != (3 if layout == "tokens" else 4):
                expected = f"an image map (batch {len(images)}, channel, height, width) of floats, or tokens"
                raise mismatch(f"layer {layer!r}", expected, Words(description or str(tuple(output.shape))))
            if _counts_changes(output):
                originals[layer] = output, output._version
            safe = layer in originals and copied is not None and layer not in copied
            kept = output if safe else output.clone()
            features[layer] = to_map(kept, layout, size, grid=self.grid, name=f"layer {layer!r}")

        with ExitStack() as stack:
            known = all(layouts.get(layer) is not None for layer in self.layers)
            recorder = None if known else stack.enter_context(record_layouts(self.model))
            stack.enter_context(hooked(self.model, self._layer_at, keep))
            output = self.model(images)
        for layer in self.layers:
            if complete and layer not in features:
                reason = " does not run in the forward pass"
                if is_compiled(self.model):
                    reason = " was not seen: compiled code may skip its hooks; call network.compile() after tap"
                raise RuntimeError(f"layer {layer!r} of {name}{reason}")
        overwritten = {layer for layer, (original, version) in originals.items() if original._version != version}
        late = set() if copied is None else overwritten - copied
        if len(originals) == len(self.layers):
            self._overwritten.setdefault(modes, set()).update(overwritten)
        if late:
            raise RuntimeError(
                f"layer {min(late)!r} of {name} was overwritten in place, unlike on the first call; call again"
            )
        return output, {layer: features[layer] for layer in self.layers if layer in features}


def tap(model: nn.Module, layers: Sequence[str], *, grid: tuple[int, int] | None = None) -> Tapped:
    """Wrap a model so that a call also returns the feature maps of `layers`, module paths such as "layer1.0.conv1".

    Tokens become maps of `grid` (rows, columns); by default that of the network's attribute `token_grid`, if it has
    one, else the largest grid shaped like the images. Class and register tokens come first and are left out.

    The paths are those of `model.named_modules()`; wrappers are taken off (see `bare`). Where the model is a
    `Normalized`, they may also start from the network inside it: "layer1" for "network.layer1"; if both are layers,
    "layer1" is the inner network's. The returned features have the paths as given. See `Tapped`. Raises ValueError for
    an unknown layer (naming similar ones), a layer that is listed twice and an empty list.

    Example:
        >>> from mtanytime import resnet, tap
        >>> tapped = tap(resnet(14, num_classes=10), ["layer1", "layer2"])
        >>> logits, maps = tapped(torch.rand(8, 3, 32, 32))
        >>> maps["layer2"].shape
        torch.Size([8, 32, 16, 16])
    """
    return Tapped(model, layers, grid)


@contextmanager
def not_compiled(network: nn.Module) -> Iterator[None]:
    """While the block lasts, modules that were compiled in place run as they are, with their hooks."""
    calls = {module: module._compiled_call_impl for module in network.modules()}
    compiled = {module: call for module, call in calls.items() if call is not None}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


def image_layers(
    model: nn.Module, images: Float[Tensor, "batch channel height width"]
) -> dict[str, tuple[int, int, int]]:
    """List all layers that `tap` accepts, in the order of `named_modules`: path -> (channel, height, width).

    These are the layers that run exactly once in eval mode on `images` and output an image map. The paths of a
    `Normalized` start from the network inside it. The model is left unchanged.

    Raises ValueError for images that are not floats, such as uint8 ones.
    """
    floats, remedy = images.is_floating_point(), "divide uint8 images by 255"
    require(floats, "images", "a tensor of floats in [0, 1]", images.dtype, remedy)
    model = bare(model)
    network = unwrapped(model)
    size, grid = _input_size(model, images), getattr(network, "token_grid", None)
    runs: Counter[str] = Counter()
    shapes: dict[str, tuple[int, int, int]] = {}

    def keep(layer: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        runs[layer] += 1
        layout = recorder.layout(output) if _description(output, len(images)) is None else None
        if layout is not None:
            with suppress(ValueError):  # tokens without a grid
                shapes[layer] = tuple(to_map(output, layout, size, grid=grid).shape[1:])

    layers = [path for path, _ in network.named_modules() if path]
    with (
        torch.no_grad(),
        trial_run(model, images.device, training=False) as buffers,
        not_compiled(network),
        record_layouts(network) as recorder,
        hooked(network, layers, keep),
    ):
        functional_call(model, buffers, images.clone())
    return {layer: shapes[layer] for layer in layers if runs[layer] == 1 and layer in shapes}
