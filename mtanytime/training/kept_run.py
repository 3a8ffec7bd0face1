"""A trainer's run in its folder: write tables and checkpoints, and restore the last one.

Of several processes, the first reads and writes the folder for all of them.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from mtanytime.checks import Words, mismatch
from mtanytime.training.checkpoint import check_finite, get_states, set_states
from mtanytime.training.distributed import Processes
from mtanytime.training.interrupt import delay_interrupt
from mtanytime.training.run_folder import Row, RunFolder
from mtanytime.training.schedule import check_extension


class KeptRun:
    """The part of `Trainer` that saves and restores its run; without a folder, the run stays in memory."""

    processes: Processes
    folder: RunFolder | None  # of the first process; None in the others
    kept: bool  # whether the run has a folder
    modules: dict[str, nn.Module]  # these and the optimizers are in each checkpoint
    optimizers: dict[str, Optimizer]
    tables: dict[str, list[Row]]
    origin: dict[str, Any]  # the recipe, part and settings that made the run; kept in checkpoints
    step: int
    steps: int
    seconds: float
    _best: dict[str, Any] | None  # epoch, val_accuracy and weights of the best validation epoch
    _last: dict[str, Tensor] | None  # the run's own weights while the network holds those of `load_best`
    _scores: dict[str, Any] | None  # the result's accuracies
    _rows_every: dict[str, int]  # table -> steps between its rows
    _network: dict[str, Any]  # its description
    _mid_step: bool
    _saved_step: int
    _saved_at: float

    def _extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds besides modules and optimizers: plain values and tensors."""
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `_extra_state` returned."""

    def _error_context(self) -> str:
        lr = f"learning rate {self.optimizers['optimizer'].param_groups[0]['lr']:.4g}"
        return lr if self._saved_step < 0 else f"{lr}; the last checkpoint is from step {self._saved_step}"

    def _add(self, table: str, rows: list[Row]) -> None:
        """Add rows to a table, in memory and in the folder."""
        self.tables.setdefault(table, []).extend(rows)
        if self.folder is not None:
            self.folder.append(table, rows)

    def _restore(self) -> None:
        """Restore the run's own state after `load_best`, or after a step that was not finished."""
        if self._last is not None:
            self.modules["model"].load_state_dict(self._last)
            self._last = None
        if self._mid_step:
            if not self.kept:
                raise RuntimeError("the run broke off within a step and has no folder with a checkpoint to return to")
            self._load()

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Lock the folder, if there is one, and drop rows after the checkpoint; always save on exit."""
        with ExitStack() as stack:
            with self.processes.together():
                if self.folder is not None:
                    stack.enter_context(self.folder.held())
            if self.processes.from_first(self.folder is not None and self.folder.changed_elsewhere):
                self._load()  # another trainer has trained in the folder
            if self.folder is not None:
                for table in self.tables:
                    self.folder.trim(table, self.step)
                if self._saved_step < 0:
                    self._save()  # so that there is always a checkpoint to return to
            try:
                yield
            finally:
                with delay_interrupt():
                    self._save()

    def _save(self, force: bool = False) -> None:
        """Write a checkpoint, unless this step has one already (and `force` is off) or the step is not finished."""
        if self._mid_step or (self.step == self._saved_step and not force):
            return
        self._check_weights()
        if self.folder is not None and not self.folder.read_only:
            checkpoint = {"step": self.step, "seconds": self.seconds, "best": self._best, "scores": self._scores}
            checkpoint |= get_states(self.modules, self.optimizers, self._last)
            network = self._network | {"origin": self.origin}
            self.folder.save(checkpoint | {"network": network, "extra": self._extra_state()})
            self._saved_step = self.step
        self._saved_at = time.monotonic()

    def _check_weights(self) -> None:
        """Raise FloatingPointError for weights that are not finite; the run then goes on from its last checkpoint."""
        before, self._mid_step = self._mid_step, True
        check_finite(self.modules, f"after step {self.step} ({self._error_context()})")
        self._mid_step = before

    def _load(self) -> None:
        """Load the folder's last checkpoint, if it has one."""
        with self.processes.together():
            checkpoint = None if self.folder is None else self.folder.load()
            if self.folder is not None and checkpoint is None and self.step > 0:
                raise RuntimeError(f"{self.folder.path} has lost its checkpoint; make a new trainer to start again")
        checkpoint = self.processes.from_first(checkpoint)
        if checkpoint is None:
            return
        place = self.processes.from_first("" if self.folder is None else f"{self.folder.path / 'checkpoint.pt'}")
        try:
            set_states(checkpoint, self.modules, self.optimizers, self.steps)
            self._load_extra_state(checkpoint["extra"])
            self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
            self._best, self.origin = checkpoint["best"], checkpoint.get("network", {}).get("origin", {})
            self._scores = checkpoint["scores"] if self.step >= self.steps else None  # a longer run has none yet
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            came = Words(f"one that does not fit it: {error}")
            raise mismatch(place, "a checkpoint of this run", came) from error
        tables = self.tables
        with self.processes.together():
            if self.folder is not None:
                read, every = self.folder.read, self._rows_every
                self.tables = {name: read(name, self.step, self.steps, every.get(name)) for name in tables}
                if self.folder.extends:
                    check_extension(self)
        self.tables = self.processes.from_first(self.tables)
        self._mid_step, self._saved_step = False, self.step
