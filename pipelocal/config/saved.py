"""Reads the options of an earlier run from its folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelocal.checkpoint.pick_snapshot import run_of
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config.toml_file import load_toml
from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError
from pipelocal.system.paths import check_path


def options_of(folder: RunFolder) -> TrainConfig:
    """Read the options of a run.

    Raises:
        UserError: the folder's ``config.toml`` does not contain them.
    """
    written = folder.options()
    if written.get("python"):
        raise UserError(
            f"the run in {folder.path} was trained from Python, by a Pipeline of {written['model']}, which a "
            f"folder cannot hold: make the same Pipeline, and call its load({str(folder.path)!r})"
        )
    return load_toml(str(folder.path / "config.toml"), what="")


def options_to_go_on_with(resume: str) -> TrainConfig:
    """Read the options that a new run takes over from the run that ``--resume`` names.

    Raises:
        UserError: it does not name a run.
    """
    check_path("--resume", resume)
    run = run_of(Path(resume))
    if not (run / "config.toml").is_file():
        raise UserError(
            f"--resume {resume}: there is no run in {run}: give auto, never, the folder of a run, or that "
            f"of one of its snapshots"
        )
    folder = RunFolder(run)
    config = located(options_of(folder), folder)
    return replace(config, out=None, resume="auto", init=None, config=None)


def located(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """Return the options of a run, with the current paths of the files that they name."""
    changes: dict[str, Any] = dict(folder.description().located(asdict(config), folder.path))
    return replace(config, **changes)
