"""The options of every command: one keyword-only dataclass each, from which the CLI is made.

The text under each field is its help. A run can be held in a TOML file of the same names; the
command line overrides it, and the resolved options are written to the run folder.
"""

from pipelocal.config.doctor import DoctorConfig
from pipelocal.config.finished_run import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ReportConfig,
    TimelineConfig,
)
from pipelocal.config.launch import LaunchConfig
from pipelocal.config.plan import PlanConfig
from pipelocal.config.toml_file import load_toml, read_toml
from pipelocal.config.train import TrainConfig

__all__ = [
    "CompareConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LaunchConfig",
    "PlanConfig",
    "ReportConfig",
    "TimelineConfig",
    "TrainConfig",
    "load_toml",
    "read_toml",
]
