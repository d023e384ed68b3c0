"""The options of the commands for runs that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelocal.options import Limits, option


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a run, or its newest snapshot if it has not ended: every stage's head, and their ensemble."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder that train made."""
    data_root: str | None = None
    """Folder of the data set's files, if not the one that the run was trained with."""
    averaged: bool = False
    """Take the averaged weights, of a run with --ema."""
    batch_size: int | None = option(None, limits=Limits(1, 10**7))
    """Samples in a batch, if not the training's."""
    device: str = "auto"
    """auto (CUDA where there is any), cpu or cuda."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the uncut model of a run to a file, with or without auxiliary heads."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder that train made."""
    to: str
    """File to write; its ending says what: .pt (a state dict, for torch.load with weights_only=True),
    .safetensors (the same), or .pt2 (a program for torch.export.load, for batches of any size)."""
    heads: bool = False
    """With the auxiliary heads: as heads.STAGE.NAME in a state dict, as one output a stage in a program."""
    stage: int | None = option(None, limits=Limits(1, 10_000))
    """Write the network up to this stage, with its head in place of the classifier, as heads.STAGE.NAME in
    a state dict; by default the whole model."""
    averaged: bool = False
    """Take the averaged weights, of a run with --ema."""


@dataclass(frozen=True, kw_only=True)
class TimelineConfig:
    """Show who computed and who waited in a run that was trained with --trace, and what held it up."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder that train --trace made."""
    to: str | None = None
    """PNG file to write; timeline.png in the run folder by default."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write report.html into a run folder: curves, cut, time, bytes, memory, options, and what stands out."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder that train made; the run need not have ended."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare runs: final figures, speed, memory and bytes, and the options in which they differ."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")]
    """Run folders that train made, two or more; runs need not have ended."""
    html: str | None = None
    """HTML file to write, with the runs' curves in one picture each."""
    json: bool = False
    """Print JSON instead of tables."""
