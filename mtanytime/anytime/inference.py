"""Use an anytime network: answer within a budget, refine until a deadline, let easy images leave early."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtanytime._moved import find
from mtanytime.anytime.early_exit import confidence
from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.prepared import prepare_steps
from mtanytime.checks import Words, mismatch, require
from mtanytime.devices import processor, synchronize
from mtanytime.features import unwrapped
from mtanytime.measure.costs import device_and_dtype, exit_costs, normalized_as, random_images
from mtanytime.measure.runtimes import time_in_turn
from mtanytime.measure.tables import as_numbers, require_rows
from mtanytime.whole_files import write_whole

Unit = Literal["macs", "ms", "exit"]


@dataclass(frozen=True)
class Answer:
    """Logits (batch, classes), the exit that computed them and, for a deadline, the milliseconds that they took."""

    logits: Float[Tensor, "batch classes"]
    exit: int
    milliseconds: float | None = None


class AnytimePredictor:
    """Predictions of a trained anytime network: within a budget, by a deadline, or as early as each image allows.

    The predictor holds a copy of the network, in eval mode and with batch norms folded into convolutions. `costs` is
    the table that budgets are looked up in: exit, macs and, for budgets in milliseconds, latency_ms.

    Example:
        >>> from mtanytime.anytime import AnytimePredictor, SliceCascade, SliceShape
        >>> predictor = AnytimePredictor(SliceCascade(10, SliceShape(widths=((16, 16), (32, 32)))))
        >>> images = torch.rand(1, 3, 32, 32)
        >>> predictor.predict(images, budget=1, unit="exit").exit  # or multiply-adds, or ms
        1
        >>> predictor.answer_by(images, deadline=0).exit  # in ms from now; at least the first answer
        1

    Args:
        network: an `AnytimeNetwork`, or one in a `Normalized`.
        image_shape: channels, height and width of the images.
        costs: a measured table, such as `measure.curve` returns; None: multiply-adds are counted here, with each exit's
            own head alone, since only that one is run, and latencies are measured when they are first needed, all
            exits in turn; a CSV file: as None, and the table is kept there with the machine that it was measured on,
            for the next time.
        batch: images per batch when latencies are measured.

    Raises:
        ValueError: a network without exits, a table without a needed column or exit or with a cost that is not a number
            above 0, a file in a folder that does not exist, or with the table of another network, machine, device,
            floating-point type, batch size or number of threads.
    """

    def __init__(
        self,
        network: nn.Module,
        image_shape: Sequence[int] = (3, 32, 32),
        costs: pd.DataFrame | str | Path | None = None,
        batch: int = 1,
    ) -> None:
        inner = unwrapped(network)
        is_anytime = isinstance(inner, AnytimeNetwork)
        require(is_anytime, "network", "an AnytimeNetwork", Words(f"a {type(inner).__name__}"))
        self._image_shape, self._batch = tuple(image_shape), batch
        self._normalize = normalized_as(network, nn.Identity())
        self._exits = [fold_batch_norms(inner.extract(k), dense=True) for k in range(1, inner.exits + 1)]
        self._refiner = prepare_steps(inner) if hasattr(inner, "refine") else None
        exits = list(range(1, inner.exits + 1))
        self._file = Path(costs).expanduser() if isinstance(costs, str | Path) else None
        self._measures = costs is None or self._file is not None
        if self._measures:
            own = exit_costs(network, image_shape)["macs_own_head"]
            costs = pd.DataFrame({"exit": exits, "macs": own})
        name = "costs" if self._file is None else str(self._file)
        if self._file is not None and self._file.exists():
            costs = _kept_costs(self._file, costs, self._here())
        elif self._file is not None:
            require(self._file.parent.is_dir(), "costs", "a file in a folder that exists", name)
        missing = {"exit", "macs"} - set(costs.columns)
        require(not missing, name, "columns exit and macs", list(costs.columns))
        for column in ("macs", "latency_ms"):
            if column in costs:
                costs = as_numbers(costs, name, column)
                good = (costs[column] > 0) & (costs[column] < math.inf)
                require_rows(good, costs, name, column, "finite numbers above 0", "exit")
        self.costs = costs.sort_values("exit", ignore_index=True)
        require(list(self.costs["exit"]) == exits, "costs", f"a row for each exit of {exits}", list(costs["exit"]))

    def choose(self, budget: float, unit: Unit = "macs") -> int:
        """Return the widest exit within a budget: multiply-adds per image, milliseconds per batch, or an exit's number.

        Raises ValueError for a budget below the cost of the cheapest exit (which it names), and for an unknown unit.
        """
        require(unit in get_args(Unit), "unit", f"one of {get_args(Unit)}", unit)
        require(isinstance(budget, Real), "budget", "a number", budget)
        if unit == "exit":
            require(budget in list(self.costs["exit"]), "budget", f"an exit from 1 to {len(self.costs)}", budget)
            return int(budget)
        column, name = ("macs", "multiply-adds per image") if unit == "macs" else ("latency_ms", "ms per batch")
        if column not in self.costs:
            self.costs["latency_ms"], self._measures = self._latencies(), True
            if self._file is not None:
                write_whole(self._file, self.costs.assign(**self._here()).to_csv(index=False))
        affordable = self.costs[self.costs[column] <= budget]
        if affordable.empty:
            least = self.costs[column].min()
            raise mismatch("budget", f"at least {least:g} {name}, the cost of the cheapest exit", Words(f"{budget:g}"))
        return int(affordable["exit"].max())

    @torch.no_grad()
    def predict(
        self, images: Float[Tensor, "batch channel height width"], budget: float, unit: Unit = "macs"
    ) -> Answer:
        """Return the widest exit's answer within a budget, for images in [0, 1].

        Raises ValueError as `choose`, for images that are not floats and, unless the budget is an exit, for images of
        another shape than the costs were measured for; for a budget in milliseconds that the predictor measures itself,
        also for another number of images than `batch`.
        """
        k = self.choose(budget, unit)
        if unit != "exit":
            expected = f"images of shape (batch, {', '.join(map(str, self._image_shape))})"
            remedy = "for a single image, images[None]"
            require(tuple(images.shape[1:]) == self._image_shape, "images", expected, tuple(images.shape), remedy)
        if unit == "ms" and self._measures:
            expected = f"{self._batch}, as many as the times were measured for"
            remedy = f"make the predictor with batch={len(images)}"
            require(len(images) == self._batch, "images", expected, len(images), remedy)
        return Answer(self._exits[k - 1](self._normalized(images)), k)

    def answer_by(
        self,
        images: Float[Tensor, "batch channel height width"],
        deadline: float,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Refine the answer to a batch until a deadline, in milliseconds from now, and return the widest answer.

        A step cannot be interrupted, so a step that is not expected to end in time is not started; its time is
        predicted from the time per multiply-add so far. The first answer is always computed, even if it is late (so a
        deadline of 0 gives the first answer). `on_answer` is called with every answer. Raises ValueError for a network
        that cannot refine and for a deadline below 0.
        """
        started = time.perf_counter()
        require(deadline >= 0, "deadline", "0 ms or more", deadline)
        cost = self.costs["macs"].tolist()
        for k, logits in enumerate(self._refine(images), 1):
            synchronize(logits.device)
            answer = Answer(logits, k, 1000 * (time.perf_counter() - started))
            if on_answer is not None:
                on_answer(answer)
            if k == len(cost) or answer.milliseconds * cost[k] / cost[k - 1] > deadline:
                break
        return answer

    def leave_early(
        self, images: Float[Tensor, "batch channel height width"], thresholds: Sequence[float]
    ) -> tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]:
        """Return each image's logits and the exit at which it leaves; only images that have not left are refined.

        An image leaves at the first exit whose confidence reaches its threshold, see `choose_thresholds`. Raises
        ValueError for a network that cannot refine, and unless there is one threshold per exit.
        """
        exits = len(self._exits)
        require(len(thresholds) == exits, "thresholds", f"{exits}, one per exit", list(thresholds))
        steps = self._refine(images)
        logits = next(steps)
        answers, taken = logits.clone(), torch.ones(len(images), dtype=torch.int64, device=logits.device)
        remaining = torch.arange(len(images), device=logits.device)  # indices of the images that have not left
        for k in range(1, exits + 1):
            answers[remaining], taken[remaining] = logits, k
            keep = (confidence(logits) < thresholds[k - 1]).to(logits.device)
            remaining = remaining[keep]
            if k == exits or not len(remaining):
                break
            logits = steps.send(keep)
        return answers, taken

    def _refine(self, images: Tensor) -> Generator[Tensor, Tensor | None, None]:
        can_refine = self._refiner is not None
        require(can_refine, "network", "one with refine, a sliced network or an MSDNet", Words("one without it"))
        return self._refiner.refine(self._normalized(images))

    def _here(self) -> dict[str, str | int]:
        """What a table of latencies holds for."""
        device, dtype = device_and_dtype(self._exits[0])
        here = {"batch": self._batch, "threads": torch.get_num_threads(), "processor": processor(device)}
        return here | {"device": device.type, "dtype": str(dtype).removeprefix("torch.")}

    @torch.no_grad()
    def _latencies(self) -> list[float]:
        """Median milliseconds per batch of each exit, with the normalization of its images."""
        images = random_images(self._exits[0], self._batch, self._image_shape)
        calls = [partial(nn.Sequential(self._normalize, part), images) for part in self._exits]
        return np.median(time_in_turn(calls, repeats=30, warmup=5), axis=1).tolist()

    def _normalized(self, images: Tensor) -> Tensor:
        """Move images to the network's device and dtype, and normalize them."""
        floats = isinstance(images, Tensor) and images.is_floating_point()
        got = images.dtype if isinstance(images, Tensor) else Words(type(images).__name__)
        require(floats, "images", "a tensor of floats in [0, 1]", got)
        reference = next(self._exits[0].parameters())
        return self._normalize(images.to(reference.device, reference.dtype))


def _kept_costs(file: Path, counted: pd.DataFrame, here: Mapping[str, str | int]) -> pd.DataFrame:
    """The table in a file. Raises ValueError unless it is of this network and machine."""
    try:
        table = pd.read_csv(file)
    except (ValueError, OSError) as error:  # pandas' parsing errors are ValueErrors
        raise mismatch(str(file), "a CSV table", Words(f"{type(error).__name__}: {error}")) from error
    missing = {"exit", "macs", "latency_ms", *here} - set(table.columns)
    require(not missing, str(file), f"columns exit, macs, latency_ms, {', '.join(here)}", list(table.columns))
    same = table[["exit", "macs"]].to_numpy().tolist() == counted[["exit", "macs"]].to_numpy().tolist()
    costs = Words(f"exits of {table['macs'].tolist()} multiply-adds")
    require(same, str(file), f"the table of this network, {counted['macs'].tolist()} multiply-adds", costs)
    for column, value in here.items():
        measured = table[column].unique().tolist()
        remedy = "delete the file, and the times are measured again"
        require(measured == [value], str(file), f"times of {column} {value}", measured, remedy)
    return table[["exit", "macs", "latency_ms"]]


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("anytime.inference", name)
