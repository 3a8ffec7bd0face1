"""Exported networks on the clock: every exit and the step-up beside torch, and answers to random deadlines."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import nn
from tqdm import tqdm

from mtanytime.anytime import AnytimePredictor
from mtanytime.anytime.stepping import SlicedNetwork
from mtanytime.checks import require
from mtanytime.deploy import export
from mtanytime.deploy.steps import networks_to_export
from mtanytime.deploy.weights import Precision
from mtanytime.features import unwrapped

Timed = tuple[list[float], list[float]]  # milliseconds of each exit alone; of each answer of a step-up, since its start
QUARTILE = 25  # the lower quartile of the rounds is what other work on the machine disturbs least


def export_times(
    networks: dict[str, nn.Module],
    folder: Path,
    image_shape: Sequence[int] = (3, 32, 32),
    batch_sizes: Sequence[int] = (1, 64),
    precisions: Sequence[Precision] = ("float32",),
    rounds: int = 20,
    progress: bool = True,
) -> pd.DataFrame:
    """Export networks and time every exit, and the step-up from the image, by onnxruntime and by torch, in turn.

    All run on as many threads as torch uses.

    Args:
        networks: by name.
        folder: where to keep the exported folders, NAME-PRECISION; it must not hold them yet.
        image_shape: of all of them.
        batch_sizes: images per batch.
        precisions: of the stored weights.
        rounds: timed rounds, each of which runs everything once.
        progress: show progress bars.

    Returns:
        One row per network, exit, runtime, precision and batch size: network, exit, runtime ("torch" or "onnxruntime"),
        precision, batch, ms (the exit's own network), chain_ms (from the image to this exit's answer, all answers
        before it given; nan where a network is not cut into slices), bytes (of the exit's graph and the weights it
        refers to, or of its program of torch.export), largest_difference (of the exit's and the chain's logits from
        torch's).

    Raises:
        ValueError: no batch size, one below 1, or as `export`.
    """
    from mtanytime.deploy.predict import Predictor  # imported here because it needs onnxruntime

    require(len(batch_sizes) > 0 and min(batch_sizes) >= 1, "batch_sizes", "one or more sizes >= 1", batch_sizes)
    require(rounds >= 1, "rounds", "a number >= 1", rounds)
    rows, timed, shape = [], [], tuple(image_shape)
    for name, network in networks.items():
        for precision in precisions:
            place = folder / f"{name}-{precision}"
            manifest = export(network, place, image_shape=shape, precision=precision, progress=progress)
            predictor = Predictor(place, threads=torch.get_num_threads())
            about = {"network": name, "runtime": "onnxruntime", "precision": precision}
            steps = manifest["steps"] or manifest["exits"]
            for part, step in zip(manifest["exits"], steps, strict=True):
                difference = max(part["largest_difference"], step["largest_difference"])
                rows.append({**about, "exit": part["exit"], "bytes": part["bytes"], "largest_difference": difference})
            timed.append(_by_onnxruntime(predictor))
        for part in manifest["exits"]:
            size = manifest["files"][part["torch_export"]]["bytes"]
            about = {"network": name, "runtime": "torch", "precision": "float32"}
            rows.append({**about, "exit": part["exit"], "bytes": size, "largest_difference": 0.0})
        timed.append(_by_torch(network, shape))
    tables = []
    for batch in batch_sizes:
        alone, chain = _in_turn(timed, (batch, *shape), rounds, progress)
        tables.append(pd.DataFrame(rows).assign(batch=batch, ms=alone, chain_ms=chain))
    columns = ["network", "exit", "runtime", "precision", "batch", "ms", "chain_ms", "bytes", "largest_difference"]
    return pd.concat(tables, ignore_index=True)[columns]


def deadline_answers(folder: Path, count: int = 1000, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Ask an exported network for answers to one image by random deadlines.

    Args:
        folder: of `export`.
        count: how many deadlines, uniform from half of the first answer's time to 1.5 times the last one's, on one
            thread, as measured here.
        seed: of the deadlines.
        progress: show a progress bar.

    Returns:
        One row per deadline: deadline_ms, exit, answered_ms (when that answer was ready) and returned_ms (when the call
        returned: a step that ends too late is not interrupted); and, the same in all rows, first_ms, the first answer's
        median time, and longest_ms, the longest step's.

    Raises:
        ValueError: as `Predictor`; count below 1.
    """
    from mtanytime.deploy.predict import Predictor  # imported here because it needs onnxruntime

    require(count >= 1, "count", "a number >= 1", count)
    predictor = Predictor(folder)
    image = np.random.default_rng(seed).random((1, *predictor.image_shape), dtype=np.float32)
    predictor.warm_up(rounds=30)
    ms = np.median([[answer.milliseconds for answer in predictor.answers(image)] for _ in range(30)], axis=0)
    first = np.median([predictor.answer_by(image, 1e-9).milliseconds for _ in tqdm(range(50), disable=not progress)])
    deadlines = np.random.default_rng(seed).uniform(0.5 * first, 1.5 * ms[-1], count)
    rows = []
    for deadline in tqdm(deadlines, "deadlines", disable=not progress):
        started = time.perf_counter()
        answer = predictor.answer_by(image, float(deadline))
        returned = 1000 * (time.perf_counter() - started)
        times = {"answered_ms": answer.milliseconds, "returned_ms": returned}
        rows.append({"deadline_ms": deadline, "exit": answer.exit} | times)
    return pd.DataFrame(rows).assign(first_ms=first, longest_ms=np.diff(ms, prepend=0).max())


def kept_deadlines(table: pd.DataFrame) -> dict[str, float]:
    """How a table of `deadline_answers` kept its promises.

    answered: of the deadlines at least 20 % above the first answer's time, the share with an answer ready by then;
    returned: of all deadlines from the first answer's time on, the share of calls that returned at most the longest
    step's time after the deadline; longest_ms: that time; latest_ms: how long after its deadline the latest returned.
    """
    first, longest = table["first_ms"].iloc[0], table["longest_ms"].iloc[0]
    possible = table[table["deadline_ms"] >= 1.2 * first]
    late = (table["returned_ms"] - table["deadline_ms"])[table["deadline_ms"] >= first]
    return {
        "answered": float((possible["answered_ms"] <= possible["deadline_ms"]).mean()),
        "returned": float((late <= longest).mean()),
        "longest_ms": float(longest),
        "latest_ms": float(late.max()),
    }


def _by_onnxruntime(predictor: Any) -> Callable[[np.ndarray], Timed]:
    def timed(images: np.ndarray) -> Timed:
        alone = [_ms(lambda k=k: predictor.predict(images, k)) for k in range(1, predictor.exits + 1)]
        chain = [answer.milliseconds for answer in predictor.answers(images)]
        return alone, chain if predictor.manifest["steps"] else [np.nan] * len(alone)

    return timed


def _by_torch(network: nn.Module, image_shape: Sequence[int]) -> Callable[[np.ndarray], Timed]:
    exits = networks_to_export(network.eval())
    sliced = isinstance(unwrapped(network), SlicedNetwork)
    predictor = AnytimePredictor(network, image_shape) if sliced else None

    @torch.no_grad()
    def timed(images: np.ndarray) -> Timed:
        batch = torch.from_numpy(images)
        alone = [_ms(lambda part=part: part(batch)) for part in exits]
        chain: list[float] = []
        if predictor is None:
            return alone, [np.nan] * len(alone)
        predictor.answer_by(batch, float("inf"), lambda answer: chain.append(answer.milliseconds))
        return alone, chain

    return timed


def _in_turn(
    timed: Sequence[Callable[[np.ndarray], Timed]], shape: tuple[int, ...], rounds: int, progress: bool
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    alone, chain = [], []
    for _ in tqdm(range(rounds + 2), f"timing, batch {shape[0]}", unit="round", disable=not progress):
        both = [one(images) for one in timed]
        alone.append(np.concatenate([part[0] for part in both]))
        chain.append(np.concatenate([part[1] for part in both]))
    return np.percentile(alone[2:], QUARTILE, axis=0), np.percentile(chain[2:], QUARTILE, axis=0)


def _ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)
