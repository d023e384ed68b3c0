"""The public names of :mod:`pipelocal`, which brings them from here once one of them is used."""

from pipelocal import heads, objectives, tasks
from pipelocal.api import Pipeline
from pipelocal.config import EvaluateConfig, ExportConfig, TrainConfig
from pipelocal.config.training import train
from pipelocal.data import DATASETS
from pipelocal.errors import DataError, PipelocalError, StageError, UserError
from pipelocal.heads import HEADS
from pipelocal.models import MODELS, Chain, Unit
from pipelocal.objective import (
    DISTANCES,
    OBJECTIVES,
    SGR,
    BackPropagation,
    Greedy,
    LocalPass,
    Objective,
    Place,
    Relay,
    WayBack,
)
from pipelocal.partition.partitioners import PARTITIONERS, PartitionRequest
from pipelocal.pipeline.callbacks import BatchEnd, Callback, EpochEnd, EvaluationEnd
from pipelocal.results.early_exit import HeadedNetwork, Prediction, load, load_with_heads
from pipelocal.results.evaluate import evaluate, plain_state_dict
from pipelocal.stage.decay_groups import decay_groups
from pipelocal.stage.result import StepResult
from pipelocal.stage.stage import Stage

__all__ = [
    # training from Python
    "Pipeline",
    "Chain",
    "Unit",
    "tasks",
    "heads",
    "objectives",
    "Greedy",
    "SGR",
    "BackPropagation",
    "decay_groups",
    "Callback",
    "BatchEnd",
    "EpochEnd",
    "EvaluationEnd",
    # user-defined parts
    "LocalPass",
    "Objective",
    "Place",
    "Relay",
    "WayBack",
    "PartitionRequest",
    "Stage",
    "StepResult",
    # runs and their folders
    "train",
    "evaluate",
    "plain_state_dict",
    "load",
    "load_with_heads",
    "HeadedNetwork",
    "Prediction",
    "TrainConfig",
    "EvaluateConfig",
    "ExportConfig",
    # registries
    "DATASETS",
    "DISTANCES",
    "HEADS",
    "MODELS",
    "OBJECTIVES",
    "PARTITIONERS",
    # errors
    "PipelocalError",
    "UserError",
    "DataError",
    "StageError",
]
