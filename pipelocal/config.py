"""The options of every command: one keyword-only dataclass each, from which the CLI is made.

The text under each field is its help. A run can be held in a TOML file of the same names; the
command line overrides it, and the resolved options are written to the run folder.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelocal.data import DATASETS
from pipelocal.errors import UserError
from pipelocal.models import check_model_name
from pipelocal.objective import DISTANCES, HEADS, OBJECTIVES
from pipelocal.optim import OPTIMIZERS, SCHEDULES
from pipelocal.transport.connect import EDGES


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a model in gradient-isolated stages, on one process or, under torchrun, on many ranks."""

    model: str = "resnet8"
    """Model: mlp, resnet8, resnet20, resnet32, resnet110, or your own as package.module:function
    or file.py:function, called with the sample shape and the number of classes."""
    data: str = "digits"
    """Data set: digits (comes with scikit-learn), fashion-mnist, cifar10, cifar100 (both read from
    --data-root), or synthetic."""
    data_root: str | None = None
    """Folder that holds the files of the data set; nothing is downloaded."""
    objective: str = "sgr"
    """greedy (each stage its own loss), sgr (the same and gradient reconciliation), or bp (ordinary
    back-propagation through the uncut model, one process; --stages does not apply)."""
    stages: int = 4
    """Number of stages to cut the model into, with equal numbers of units."""
    epochs: int = 20
    """Passes over the training data."""
    max_steps: int | None = None
    """Stop after this many batches, also within an epoch."""
    batch_size: int = 64
    """Samples in a batch."""
    lr: float = 0.1
    """Learning rate at its peak."""
    seed: int = 0
    """Seed of parameters, data order, augmentation and dropout."""
    out: str | None = None
    """Run folder to make; by default runs/MODEL-DATA-OBJECTIVE with a number if that is taken."""

    head: str = "linear"
    """Auxiliary head of every stage but the last: linear (pooled) or conv (one convolution first)."""
    distance: str = "cosine"
    """Distance that sgr reconciles by: cosine, relative, or squared."""
    reconcile_weight: float = 0.05
    """Weight of the reconciliation distance against the local loss (lambda)."""

    optimizer: str = "sgd"
    """sgd or adamw."""
    momentum: float = 0.9
    """Momentum of sgd, or the first beta of adamw."""
    weight_decay: float = 5e-4
    """Weight decay."""
    schedule: str = "cosine"
    """Learning-rate schedule after the warm-up: cosine (to zero) or constant."""
    warmup_steps: int = 0
    """Batches over which the learning rate rises linearly at the start."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is not full; by default it is trained on as it is."""
    evaluate_every: int = 1
    """Evaluate after every so many epochs; the end is always evaluated."""

    device: str = "auto"
    """auto (CUDA where there is any), cpu or cuda."""
    threads: int = 1
    """CPU threads of each rank. With the same number, any number of ranks gives the same bits."""
    edge: str = "auto"
    """What carries tensors between CUDA ranks: device (NCCL), host (gloo through pinned memory), or
    auto (NCCL unless ranks share a GPU). CPU ranks always use gloo."""
    window: int = 2
    """Most batches that a stage may have sent and the next one not yet taken."""
    timeout: float = 300.0
    """Seconds without a sign from a neighbour after which a rank gives up."""
    log_every: int = 20
    """Batches between two lines of metrics.jsonl, per stage."""
    plain: bool = False
    """Print lines instead of the live table; always so when the output is no terminal."""
    config: str | None = None
    """TOML file with options of these names (dashes or underscores); the command line overrides it."""

    def validate(self) -> None:
        """Refuse what cannot work, before anything is started.

        Raises:
            UserError: an option is out of range or unknown.
        """
        check_model_name(self.model)
        DATASETS.get(self.data)
        OBJECTIVES.get(self.objective)
        HEADS.get(self.head)
        DISTANCES.get(self.distance)
        OPTIMIZERS.get(self.optimizer)
        SCHEDULES.get(self.schedule)
        for name in ("stages", "epochs", "batch_size", "evaluate_every", "threads", "window"):
            self._check_least(name, 1)
        self._check_least("log_every", 1)
        self._check_least("warmup_steps", 0)
        if self.max_steps is not None:
            self._check_least("max_steps", 1)
        for name in ("lr", "timeout"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{_option(name)} {value}: give a number above 0")
        for name in ("reconcile_weight", "weight_decay"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"{_option(name)} {value}: give a number of at least 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum {self.momentum}: give a number from 0 to below 1")
        if self.edge not in EDGES:
            raise UserError(f"--edge {self.edge}: choose one of {', '.join(EDGES)}")

    @property
    def stage_count(self) -> int:
        """Stages that the run has: back-propagation is the case of one."""
        return 1 if self.objective == "bp" else self.stages

    def _check_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise UserError(f"{_option(name)} {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a finished run: the accuracy of every stage's head, and of their ensemble."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder that train made."""
    data_root: str | None = None
    """Folder of the data set's files, if not the one that the run was trained with."""
    batch_size: int | None = None
    """Samples in a batch, if not the training's."""
    device: str = "auto"
    """auto (CUDA where there is any), cpu or cuda."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the uncut model of a finished run as a plain state dict, without auxiliary heads."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder that train made."""
    to: str
    """File to write; loads with torch.load(..., weights_only=True)."""


def load_toml(path: str) -> TrainConfig:
    """Options from a TOML file, the rest at their defaults.

    Raises:
        UserError: no such file, no valid TOML, an unknown name or a value of the wrong type.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not valid TOML: {error}") from error
    known = {field.name: field for field in fields(TrainConfig)}
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"--config {path}: there is no option '{key}'{hint}")
        options[name] = _checked(path, name, value, str(known[name].type))
    return TrainConfig(**options)


def to_toml(config: TrainConfig) -> str:
    """All options as TOML; options that are not set are left out, which means the same."""
    lines = []
    for name, value in asdict(config).items():
        if value is not None and name != "config":
            # JSON's strings, numbers and booleans are TOML's too.
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _checked(path: str, name: str, value: Any, annotation: str) -> Any:
    """The value in the field's type, where TOML's type fits."""
    wanted = annotation.removesuffix(" | None")
    if wanted == "float" and type(value) is int:
        return float(value)
    if type(value).__name__ != wanted:
        raise UserError(
            f"--config {path}: '{name}' must be of type {wanted}, not {type(value).__name__}"
        )
    return value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
