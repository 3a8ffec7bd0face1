"""What a network costs and what its exits are worth: multiply-adds, parameters, latency, curves, calibration.

An anytime network here is any module with `heads` (a ModuleList), `exits` (their number), a forward pass that gives the
list of their logits, thin to wide, and `extract(k)`, exit k's stand-alone network (`anytime.network.AnytimeNetwork`).
Any other module counts as a network of one exit. Either may stand in a `Normalized`.

A *curve* is a table with one row an exit: model, exit, macs, accuracy (in [0, 1]) and more, also of several models and,
where it has a column seed, runs. Between exits, accuracies are interpolated linearly in the logarithm of the cost.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mtanytime.backbones import Normalized
from mtanytime.datasets import Batches, ImageSet
from mtanytime.randomness import seeded
from mtanytime.stateless import call_at, undisturbed
from mtanytime.training import Precision, autocast, require

Shape = Sequence[int]  # of one image: channels, height, width

# What a network costs.


def macs(module: nn.Module, image_shape: Shape = (3, 32, 32)) -> int:
    """Multiply-adds of one image through a module in eval mode, counted by torch's flop counter as it runs (flops / 2).

    Matrix products and convolutions alone are counted, as papers do: neither additions of a bias nor batch norm,
    activations and pooling. Modes, buffers and torch's random state are left as they were. ValueError for a shape that
    is not three numbers.
    """
    return _count(module, image_shape)[0]


def parameters(module: nn.Module) -> int:
    """How many parameters a module has, trained or not; one that is shared counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def exit_costs(network: nn.Module, image_shape: Shape = (3, 32, 32)) -> pd.DataFrame:
    """What each exit costs for one image: exit (from 1), macs, macs_own_head, params.

    macs_own_head is `macs` of exit k alone, `extract(k)`, and params its parameters. macs adds the heads of the exits
    before it: what an anytime answer costs whose earlier answers were given too. (Of all that comes before only the
    heads are added: where exits share no activations, as in an inclusive ResNeXt, giving the earlier answers costs
    their passes as well.) ValueError for a head that does not run once in a forward pass.
    """
    with undisturbed(network, _like(network).device, training=False):
        alone, heads = _taken_apart(network)
        earlier = [0, *accumulate(_count(network, image_shape, heads)[1])][: len(alone)]
        own = np.array([macs(part, image_shape) for part in alone])
    columns = {"macs": own + earlier, "macs_own_head": own, "params": [parameters(part) for part in alone]}
    return _by_exit(columns)


@torch.no_grad()
def _count(module: nn.Module, image_shape: Shape, parts: Sequence[nn.Module] = ()) -> tuple[int, list[int]]:
    """Multiply-adds of one image through a module, and of these each part's; hooks, not the counter's own names, tell
    a part's, so that it may have any place in the module and one that does not run is found."""
    image, counter = _images(module, 1, image_shape), FlopCounterMode(display=False)
    flops: dict[nn.Module, list[int]] = {part: [] for part in parts}

    def noted(sign: int) -> Callable[..., None]:
        return lambda part, *_: flops[part].append(sign * counter.get_total_flops())

    handles = [part.register_forward_pre_hook(noted(-1)) for part in flops]
    handles += [part.register_forward_hook(noted(1)) for part in flops]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one kernel hides its products from the counter
    try:
        with undisturbed(module, image.device, training=False) as buffers, sdpa_kernel(SDPBackend.MATH), counter:
            call_at(module, buffers, image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    for k, part in enumerate(parts, 1):
        if (runs := len(flops[part]) // 2) != 1:
            raise ValueError(f"head {k} of {type(module).__name__} ran {runs} times in a forward pass; wanted once")
    return counter.get_total_flops() // 2, [sum(flops[part]) // 2 for part in parts]


def _taken_apart(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Every exit's stand-alone network and the heads, of a network in eval mode; one exit's is the network itself."""
    inner = network.network if isinstance(network, Normalized) else network
    if not hasattr(inner, "extract"):
        return [network], []
    alone = [inner.extract(k) for k in range(1, inner.exits + 1)]
    if isinstance(network, Normalized):
        settings = network.mean.flatten().tolist(), network.std.flatten().tolist(), network.size
        alone = [Normalized(part, *settings).to(network.mean) for part in alone]
    return [part.eval() for part in alone], list(inner.heads)


def _like(module: nn.Module) -> Tensor:
    """A tensor of the device and type that a module computes with."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def _images(module: nn.Module, count: int, image_shape: Shape) -> Tensor:
    require(len(image_shape) == 3 and min(image_shape) >= 1, "image_shape (channels, height, width)", image_shape)
    images = torch.rand(count, *image_shape, generator=torch.Generator().manual_seed(0))
    like = _like(module)
    return images.to(like.device, like.dtype)


# How long it takes.


def latency(
    module: nn.Module, images: Float[Tensor, "batch channel height width"], *, repeats: int = 30, warmup: int = 5
) -> dict[str, Any]:
    """Time a module's forward pass on a batch: latency_ms (median), spread_ms (interquartile range), batch, threads,
    device.

    In eval mode and without gradients; modes are put back. The images go to the module's device and type before; an
    accelerator is waited for. The first `warmup` passes are not counted.
    """
    like = _like(module)
    with undisturbed(module, like.device, training=False):
        return _timed([module], images.to(like.device, like.dtype), repeats, warmup, progress=False)[0]


def latencies(
    network: nn.Module,
    image_shape: Shape = (3, 32, 32),
    batch_sizes: Sequence[int] = (1, 64),
    *,
    repeats: int = 20,
    warmup: int = 3,
    progress: bool = True,
) -> pd.DataFrame:
    """Time every exit's stand-alone network on random images: exit, and the columns of `latency`.

    Exits take turns, one pass each a round, so that a slow moment of the machine hits all alike.
    """
    require(len(batch_sizes) > 0 and min(batch_sizes) >= 1, "batch sizes >= 1", batch_sizes)
    rows = []
    with undisturbed(network, _like(network).device, training=False):
        alone, _ = _taken_apart(network)
        for batch in batch_sizes:
            found = _timed(alone, _images(network, batch, image_shape), repeats, warmup, progress)
            rows += [{"exit": k, **row} for k, row in enumerate(found, 1)]
    return pd.DataFrame(rows)


@torch.no_grad()
def _timed(modules: list[nn.Module], images: Tensor, repeats: int, warmup: int, progress: bool) -> list[dict[str, Any]]:
    """What `latency` says of each module; all by turns on the same images."""
    require(repeats >= 1 and warmup >= 0, "repeats >= 1 and warmup >= 0", (repeats, warmup))
    times = np.empty((len(modules), warmup + repeats))
    for i in tqdm(range(warmup + repeats), f"timing batch {len(images)}", file=sys.stdout, disable=not progress):
        for j, module in enumerate(modules):
            synchronise(images.device)
            started = time.perf_counter()
            module(images)
            synchronise(images.device)
            times[j, i] = 1000 * (time.perf_counter() - started)
    lower, median, upper = np.percentile(times[:, warmup:], [25, 50, 75], axis=1)
    setting = {"batch": len(images), "threads": torch.get_num_threads(), "device": str(images.device)}
    return [
        {"latency_ms": ms, "spread_ms": spread, **setting}
        for ms, spread in zip(median.tolist(), (upper - lower).tolist(), strict=True)
    ]


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what was asked of it; before a clock is read."""
    backend = getattr(torch, device.type)  # torch.cpu, whose call does nothing, torch.cuda, torch.mps, …
    backend.synchronize(*(() if device.type == "mps" else (device,)))  # there is only one mps


# What its exits answer.


@torch.no_grad()
def predictions(
    network: nn.Module,
    data: ImageSet | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = True,
) -> tuple[Float[Tensor, "exits images classes"], Int[Tensor, " images"]]:
    """Logits of all exits in eval mode, and the labels, on the CPU; an output that is one tensor is one exit.

    Modes and torch's random state are put back. Logits are float32 or wider, whatever the precision they are computed
    in. ValueError for exits that tell different numbers of classes apart.
    """
    like, batches = _like(network), _batches(data, batch_size)
    outputs, labels = [], []
    with undisturbed(network, like.device, False), seeded(0, like.device), autocast(like.device, precision):
        for images, truth in tqdm(
            batches.epoch(0), "predicting", len(batches), unit="batch", file=sys.stdout, disable=not progress
        ):
            output = network(images.to(like.device, like.dtype))
            exits = [output] if isinstance(output, Tensor) else list(output)
            if len({logits.shape for logits in exits}) != 1:
                raise ValueError(f"wanted logits of one shape from all exits; got {[tuple(o.shape) for o in exits]}")
            logits = torch.stack(exits)
            outputs.append(logits.to("cpu", torch.promote_types(logits.dtype, torch.float32)))
            labels.append(truth.cpu())
    return torch.cat(outputs, dim=1), torch.cat(labels)


def curve(
    model: str,
    network: nn.Module,
    data: ImageSet | DataLoader,
    *,
    seed: int | None = None,
    latency_batch: int | None = None,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = True,
) -> pd.DataFrame:
    """A network's curve on a set: model, exit, macs, macs_own_head, params[, latency_ms], accuracy[, seed].

    `exit_costs` and `predictions` say how its columns are measured. `model` and `seed` name the run; `latency_batch`
    adds the median time of a batch of so many images (`latencies`). ValueError also for logits that are not finite.
    """
    image_shape = tuple(next(_batches(data, 1).epoch(0))[0].shape[1:])
    table = exit_costs(network, image_shape)
    table.insert(0, "model", model)
    if latency_batch is not None:
        table["latency_ms"] = latencies(network, image_shape, (latency_batch,), progress=progress)["latency_ms"]
    outputs, labels = predictions(network, data, batch_size=batch_size, precision=precision, progress=progress)
    if len(outputs) != len(table):
        raise ValueError(f"{type(network).__name__} gives {len(outputs)} answers; wanted one an exit, {len(table)}")
    table["accuracy"] = _right(outputs, labels).double().mean(dim=1).numpy()
    return table if seed is None else table.assign(seed=seed)


def calibration(
    outputs: Float[Tensor, "exits images classes"], labels: Int[Tensor, " images"], bins: int = 15
) -> pd.DataFrame:
    """How far each exit's confidence can be believed: exit, accuracy, confidence, ece.

    Confidence is the largest softmax probability (here its mean); ece the expected calibration error of Guo et al. 2017
    (arXiv:1706.04599, equation 3): images fall into `bins` equal intervals (a, b] of confidence, and |accuracy - mean
    confidence| is averaged over them, weighted by their images. ValueError for labels that are no class, and logits
    that are not finite.
    """
    require(bins >= 1, "bins >= 1", bins)
    right = _right(outputs, labels).double()
    confidence = outputs.double().softmax(dim=2).amax(dim=2)
    place = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    excess = torch.zeros(len(outputs), bins, dtype=torch.float64).scatter_add_(1, place, confidence - right)
    ece = excess.abs().sum(dim=1) / len(labels)
    return _by_exit({"accuracy": right.mean(dim=1), "confidence": confidence.mean(dim=1), "ece": ece})


def flips(outputs: Float[Tensor, "exits images classes"], labels: Int[Tensor, " images"]) -> pd.DataFrame:
    """How often a wider answer changes what is right, as fractions of all images; a row for each exit after the first.

    right_to_wrong and wrong_to_right compare with the exit before. ever_right_to_wrong: wrong here, right at one or
    more of the earlier exits; ever_wrong_to_right: right here, wrong at one or more. Errors as in `calibration`.
    """
    right = _right(outputs, labels)
    now, before = right[1:], right[:-1]
    ever_right, ever_wrong = (answers.cummax(dim=0).values.bool() for answers in (before.byte(), (~before).byte()))
    changes = {
        "right_to_wrong": before & ~now,
        "wrong_to_right": ~before & now,
        "ever_right_to_wrong": ever_right & ~now,
        "ever_wrong_to_right": ever_wrong & now,
    }
    return _by_exit({name: change.double().mean(dim=1) for name, change in changes.items()}, first=2)


def _by_exit(columns: dict[str, Any], first: int = 1) -> pd.DataFrame:
    table = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    table.insert(0, "exit", np.arange(first, first + len(table)))
    return table


def _right(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each exit's answer to each image is right (exits, images); checks both."""
    if outputs.ndim != 3 or labels.shape != outputs.shape[1:2] or not outputs.numel():
        came = f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"wanted logits (exits, images, classes) and labels (images,); got {came}")
    if not (labels.min() >= 0 and labels.max() < outputs.shape[2]):
        low, high = labels.min().item(), labels.max().item()
        raise ValueError(f"wanted labels 0 to {outputs.shape[2] - 1}, the logits' classes; got {low} to {high}")
    broken = ~outputs.isfinite().all(dim=2)
    if broken.any():
        k, image = broken.nonzero()[0].tolist()
        raise ValueError(f"logits of exit {k + 1} for image {image} are not finite; wanted finite ones")
    return outputs.argmax(dim=2) == labels


def _batches(data: ImageSet | DataLoader, batch_size: int) -> Batches:
    return Batches(data, None if isinstance(data, DataLoader) else batch_size, seed=0, shuffle=False)


# What curves say. `cost` names the column of what is paid: macs, macs_own_head or latency_ms.


def area_under_curve(
    curve: pd.DataFrame, between: tuple[float, float] | None = None, *, cost: str = "macs"
) -> pd.DataFrame:
    """Mean accuracy over the logarithm of the budget, for each model (and seed): model[, seed], area.

    The area under accuracy against log(cost), over the width of the range. The range is each curve's own, first to
    last exit (for a single exit, its accuracy), or `between` = (low, high), the same for all. There, a budget below a
    curve's first exit allows no answer and counts as accuracy 0, and above its last exit the last answer stands.
    ValueError for a range that is not 0 < low < high, and for a curve that `interpolated` refuses.
    """
    if between is not None:
        require(0 < between[0] < between[1] < math.inf, "between = (low, high) with 0 < low < high", between)
    rows = []
    for run, budgets, accuracies in _runs(_checked(curve, cost), cost):
        low, high = (budgets[0], budgets[-1]) if between is None else np.log(between)
        if low == high:
            rows.append({**run, "area": accuracies[0]})
            continue
        inside = budgets[(low < budgets) & (budgets < high)]
        x = np.unique([*inside, *(end for end in (low, high) if end >= budgets[0])])
        y = np.interp(x, budgets, accuracies)  # beyond the last exit: its accuracy
        rows.append({**run, "area": float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (high - low))})
    return pd.DataFrame(rows)


def interpolated(curve: pd.DataFrame, at: float | Sequence[float] | np.ndarray, *, cost: str = "macs") -> pd.DataFrame:
    """Accuracy of each model (and seed) at given costs: model[, seed], the cost, accuracy; NaN outside a curve's range.

    Raises ValueError for costs that are not positive, columns that are missing (named), an accuracy outside [0, 1], and
    a run with two rows of the same exit or cost (pick one level of a taxonomy first). Rows may have any order.
    """
    costs = np.atleast_1d(np.asarray(at, dtype=float))
    require(bool(((costs > 0) & np.isfinite(costs)).all()), f"a {cost} above 0 to interpolate at", at)
    found = [
        pd.DataFrame({**run, cost: costs, "accuracy": _at(costs, budgets, accuracies)})
        for run, budgets, accuracies in _runs(_checked(curve, cost), cost)
    ]
    return pd.concat(found, ignore_index=True)


def gap(
    curve: pd.DataFrame, model: str, against: str, *, cost: str = "macs", last_stands: bool = False
) -> pd.DataFrame:
    """How far `model` is above `against` at each of the latter's exits, in points (per cent of the images).

    Columns: exit and cost of `against`; accuracy, of `model` interpolated there, and accuracy_against, both means over
    seeds; gap_points, their difference, and sem_points, its standard error, the runs taken as independent (NaN with one
    seed). NaN where a run of `model` does not reach; with `last_stands`, only below its first exit: a budget beyond its
    last exit buys that one. ValueError also for a model that the curve does not hold.
    """
    table = _checked(curve, cost, model, against)
    theirs = _mean(table, against, cost)
    of_model = _runs(table[table["model"] == model], cost)
    at = theirs[cost].to_numpy()
    ours = pd.DataFrame([_at(at, budgets, accuracies, last_stands) for _, budgets, accuracies in of_model])
    accuracy = ours.mean(skipna=False).to_numpy()
    return pd.DataFrame(
        {
            "exit": theirs["exit"],
            cost: theirs[cost],
            "accuracy": accuracy,
            "accuracy_against": theirs["accuracy"],
            "gap_points": 100 * (accuracy - theirs["accuracy"]),
            "sem_points": 100 * np.hypot(ours.sem(skipna=False).to_numpy(), theirs["sem"]),
        }
    )


def savings(curve: pd.DataFrame, model: str, against: str, *, cost: str = "macs") -> pd.DataFrame:
    """How much less `model` costs than `against` at the accuracy of each of the latter's exits, in per cent.

    Columns: exit of `against` and its accuracy (mean over seeds); the cost of `model` and, with _against, of the other:
    the least at which its mean curve reaches that accuracy; saving_percent. So an exit of `against` that is no better
    than a cheaper one counts at the cheaper one's cost. A model whose first exit is already better costs that exit; NaN
    for one that is never so good. Errors as in `gap`.
    """
    table = _checked(curve, cost, model, against)
    ours, theirs = _mean(table, model, cost), _mean(table, against, cost)
    least, least_against = (
        np.array([_least_cost(mean, accuracy, cost) for accuracy in theirs["accuracy"]]) for mean in (ours, theirs)
    )
    found = theirs[["exit", "accuracy"]].assign(**{cost: least, f"{cost}_against": least_against})
    return found.assign(saving_percent=100 * (1 - least / least_against))


def _checked(curve: pd.DataFrame, cost: str, *models: str) -> pd.DataFrame:
    """The curve, its costs and accuracies as numbers."""
    columns = ["model", "exit", cost, "accuracy"]
    if missing := [column for column in columns if column not in curve.columns]:
        raise ValueError(f"wanted a curve with columns {columns}; {missing} missing in {list(curve.columns)}")
    require(len(curve) > 0, "a curve with rows", "none")
    amounts, accuracy = (pd.to_numeric(curve[column], errors="coerce") for column in (cost, "accuracy"))
    good = {cost: (amounts > 0) & (amounts < math.inf), "accuracy": accuracy.between(0, 1)}
    for column, wanted in ((cost, "finite and above 0"), ("accuracy", "in [0, 1]")):
        if not good[column].all():
            row = curve[~good[column]].iloc[0]
            raise ValueError(f"{column} of {row['model']!r}, exit {row['exit']} is {row[column]}; wanted {wanted}")
    for column in ("exit", cost):
        if (twice := curve.duplicated([*_keys(curve), column])).any():
            row = curve[twice].iloc[0]
            raise ValueError(f"wanted each {column} once in a run; {row['model']!r} has {row[column]} twice")
    for model in models:
        has = curve["model"].unique().tolist()
        require(model in has, f"a model of the curve (has: {', '.join(map(str, has))})", model)
    return curve.assign(**{cost: amounts, "accuracy": accuracy})


def _keys(curve: pd.DataFrame) -> list[str]:
    return ["model", "seed"] if "seed" in curve.columns else ["model"]


def _runs(table: pd.DataFrame, cost: str) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Each run of a checked curve: its model and seed, the logarithms of its costs, rising, and its accuracies."""
    keys = _keys(table)
    for values, rows in table.groupby(keys, sort=False, dropna=False, observed=True):
        rows = rows.sort_values(cost)
        yield dict(zip(keys, values, strict=True)), np.log(rows[cost].to_numpy()), rows["accuracy"].to_numpy()


def _at(costs: np.ndarray, budgets: np.ndarray, accuracies: np.ndarray, last_stands: bool = False) -> np.ndarray:
    beyond = accuracies[-1] if last_stands else np.nan
    return np.interp(np.log(costs), budgets, accuracies, left=np.nan, right=beyond)


def _mean(table: pd.DataFrame, model: str, cost: str) -> pd.DataFrame:
    """A model's mean curve over seeds: exit, cost, accuracy and its standard error sem, by rising cost."""
    by_exit = table[table["model"] == model].groupby("exit", observed=True)
    if (runs := by_exit.size()).nunique() > 1:
        raise ValueError(f"wanted the same exits of {model!r} for every seed; got runs by exit {runs.to_dict()}")
    found = {cost: by_exit[cost].mean(), "accuracy": by_exit["accuracy"].mean(), "sem": by_exit["accuracy"].sem()}
    return pd.DataFrame(found).reset_index().sort_values(cost, ignore_index=True)


def _least_cost(mean: pd.DataFrame, accuracy: float, cost: str) -> float:
    """The least cost at which a mean curve reaches an accuracy."""
    costs, accuracies = mean[cost].to_numpy(), mean["accuracy"].to_numpy()
    if not (reached := accuracies >= accuracy).any():
        return math.nan
    i = int(reached.argmax())
    if i == 0 or accuracies[i] == accuracy:
        return costs[i]
    return math.exp(np.interp(accuracy, accuracies[i - 1 : i + 1], np.log(costs[i - 1 : i + 1])))
