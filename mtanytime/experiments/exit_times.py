"""Milliseconds of every exit of a recipe's anytime networks, all timed in one run, in turn."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mtanytime.anytime import AnytimeNetwork, fold_batch_norms, prepare_steps
from mtanytime.checks import require
from mtanytime.experiments.anytime_recipes import build_network
from mtanytime.experiments.recipe import Settings, check_names
from mtanytime.measure.costs import exit_costs
from mtanytime.measure.runtimes import prepare, time_in_turn

TIMED = ("sliced", "msdnet", "inclusive")
Call = Callable[[], Any]


def exit_times(
    settings: Settings,
    batch_sizes: Sequence[int] = (1, 64),
    runtimes: Sequence[str] = ("eager",),
    repeats: int = 20,
    progress: bool = True,
) -> pd.DataFrame:
    """Time the exits of networks with fresh weights, batch norms folded, on 32×32 images.

    Args:
        settings: of `RECIPES["anytime-cifar10-full"]`; its `models` are timed, of which "separate" cannot be.
        batch_sizes: images per batch.
        runtimes: see `measure.runtimes.prepare`.
        repeats: timed rounds, each of which runs every exit of every model in every runtime once.
        progress: show a progress bar per batch size.

    Returns:
        One row per model, runtime, answer and exit: model, exit, answer ("alone", the exit's own network; "step-up",
        all answers up to this exit, by `refine`, where the network and the runtime have it), macs and macs_own_head
        (see `measure.exit_costs`), runtime, threads, and latencyB_ms for each batch size B: the lower quartile of the
        rounds, which other work on the machine disturbs least.

    Raises:
        ValueError: no batch size, one below 1, a model that cannot be timed, or as `build_network` and `prepare`.
    """
    require(len(batch_sizes) > 0 and min(batch_sizes) >= 1, "batch_sizes", "one or more sizes >= 1", batch_sizes)
    check_names("models", settings["models"], TIMED)
    networks = {model: build_network(model, settings, 10).eval() for model in settings["models"]}
    costs = {model: exit_costs(network) for model, network in networks.items()}
    table: pd.DataFrame | None = None
    for batch in batch_sizes:
        images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        rows, calls = [], []
        for model, network in networks.items():
            for runtime in runtimes:
                for answer, exit_calls in _answers(network, images, runtime).items():
                    shared = {"answer": answer, "runtime": runtime, "threads": torch.get_num_threads()}
                    numbers = costs[model][["exit", "macs", "macs_own_head"]].to_dict("records")
                    rows += [{"model": model, **cost, **shared} for cost in numbers]
                    calls += exit_calls
        table = pd.DataFrame(rows) if table is None else table
        table[f"latency{batch}_ms"] = np.percentile(time_in_turn(calls, repeats, progress=progress), 25, axis=1)
    return table


def _answers(
    network: AnytimeNetwork, images: Float[Tensor, "batch 3 height width"], runtime: str
) -> dict[str, list[Call]]:
    """What computes each exit's answer: its own network or, if there is a way, the steps up to it."""
    exits = range(1, network.exits + 1)
    answers = {"alone": [prepare(fold_batch_norms(network.extract(k), dense=True), images, runtime) for k in exits]}
    if runtime in ("eager", "channels-last") and hasattr(network, "refine"):
        layout = torch.channels_last if runtime == "channels-last" else torch.contiguous_format
        steps = prepare_steps(deepcopy(network).to(memory_format=layout))
        images = images.to(memory_format=layout)
        answers["step-up"] = [lambda k=k: list(islice(steps.refine(images), k)) for k in exits]
    return answers
