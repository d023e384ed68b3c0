"""Compares a run's options with the defaults, and with those of other runs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from pipelocal.api.pipeline import Pipeline
from pipelocal.checkpoint.description import Description, changed_code, data_differences
from pipelocal.config import TrainConfig
from pipelocal.report.record import RunRecord
from pipelocal.run.earlier import as_of_now
from pipelocal.run.options import RunOptions
from pipelocal.system.describing import described
from pipelocal.telemetry.formats import UNKNOWN

PLACES = ("out", "config", "python")
"""Where a run was written and read, which changes nothing in it."""


def options_shown(run: RunRecord) -> list[tuple[str, str, str, bool]]:
    """Return the name, value and default of every option, and whether the two differ."""
    defaults = _defaults(python=bool(run.options.get("python")))
    found = []
    for name, value in as_of_now(run.options).items():
        if name == "python":
            continue
        known = name in defaults
        default = defaults.get(name)
        differs = name not in PLACES and (not known or text(value) != text(default))
        found.append((name, text(value), text(default) if known else UNKNOWN, differs))
    return found


def differing_options(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return the options in which runs differ, with the value in each."""
    every = [_complete(run) for run in runs]
    names = dict.fromkeys(name for options in every for name in options if name not in PLACES)
    values = {name: [text(options.get(name)) for options in every] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def _complete(run: RunRecord) -> dict[str, Any]:
    """Return a run's options, with the defaults of those that its version did not know."""
    own = as_of_now(run.options)
    return own if run.options.get("python") else {**_defaults(python=False), **own}


def other_differences(runs: Sequence[RunRecord]) -> list[str]:
    """Say in a line each in what else runs differ from the first: code, data, versions."""
    first, *others = runs
    found = []
    for run in others:
        then, now = first.description, run.description
        if then is not None and now is not None:
            found += [f"{run.path} and {first.path}: {what}" for what in _differences(then, now)]
    return found


def text(value: Any) -> str:
    """Return an option's value as it is shown."""
    if value is None or value == "None":  # as a Pipeline describes what it was not given
        return UNKNOWN
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


@cache
def _defaults(*, python: bool) -> Mapping[str, Any]:
    if not python:
        known: dict[str, Any] = json.loads(json.dumps(asdict(TrainConfig())))
        return known
    defaults = asdict(RunOptions())
    given = inspect.signature(Pipeline).parameters.values()
    own = {p.name: described(p.default) for p in given if p.default is not p.empty}
    return {**defaults, **own, "objective": "greedy"}


def _differences(then: Description, now: Description) -> list[str]:
    found = [f"the model: {what}" for what in then.model.differences(now.model)]
    found += [f"the data: {what}" for what in data_differences(then.data, now.data)]
    found += [f"the code of {what}" for what in changed_code(then.references, now.references)]
    for name in sorted(then.versions.keys() | now.versions.keys()):
        ours, theirs = then.versions.get(name, "none"), now.versions.get(name, "none")
        if ours != theirs:
            found.append(f"{name} {theirs}, not {ours}")
    return found
