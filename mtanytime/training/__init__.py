"""Training runs: the loop, its settings, its run folder, and what identifies a run."""

from mtanytime._moved import find
from mtanytime.training.identity import describe_data, describe_model, fingerprint, name_of
from mtanytime.training.run_folder import Row, RunFolder
from mtanytime.training.schedule import SCHEDULES, STEP_BY_STEP, Schedule
from mtanytime.training.settings import TrainerSettings
from mtanytime.training.stored_run import StoredRun, load_run
from mtanytime.training.trainer import StepReport, Trainer, TrainingResult

__all__ = [
    "SCHEDULES",
    "STEP_BY_STEP",
    "Row",
    "RunFolder",
    "Schedule",
    "StepReport",
    "StoredRun",
    "Trainer",
    "TrainerSettings",
    "TrainingResult",
    "describe_data",
    "describe_model",
    "fingerprint",
    "load_run",
    "name_of",
]


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("training", name)
