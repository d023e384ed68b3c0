"""Pipeline-parallel training without a global backward pass.

The parts that a program uses are these; the command line is in :mod:`pipelocal.cli`, and the
registries that take a user's own parts are ``MODELS``, ``PARTITIONERS``, ``HEADS``, ``DISTANCES``,
``OBJECTIVES`` and ``DATASETS``.
"""

from importlib.metadata import version

from pipelocal.config import EvaluateConfig, ExportConfig, TrainConfig
from pipelocal.data import DATASETS
from pipelocal.errors import DataError, PipelocalError, StageError, UserError
from pipelocal.models import MODELS, Chain, Unit
from pipelocal.objective import DISTANCES, HEADS, OBJECTIVES
from pipelocal.partition.partitioners import PARTITIONERS, PartitionRequest
from pipelocal.results.early_exit import HeadedNetwork, Prediction, load, load_with_heads
from pipelocal.results.evaluate import evaluate, plain_state_dict
from pipelocal.run.train import train
from pipelocal.stage.stage import Stage, StepResult

__version__ = version("pipelocal")

__all__ = [
    # commands
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
    # parts
    "Chain",
    "Unit",
    "PartitionRequest",
    "Stage",
    "StepResult",
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
    "__version__",
]
