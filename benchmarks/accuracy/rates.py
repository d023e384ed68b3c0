"""The learning rate of each arm of a set-up that has it searched: of one grid for all arms.

Every rate is tried on a seed that no other run has. A tenth of the training data is held out, and the
accuracy on it decides, so the test data have no part in the choice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import held_out, training
from benchmarks.accuracy.setups import Search, SetUp
from benchmarks.common import BenchmarkError
from benchmarks.training import Run
from pipelocal.config import TrainConfig
from pipelocal.system.strict_json import to_json

NOISE = 0.006
"""One standard error of an accuracy of 0.7 on 6,000 samples. Short searches favour high rates, so of rates
that cannot be told apart the lowest is taken."""
Trial = tuple[str, str, float]
"""Names of the set-up and of the arm, and the rate."""
Tried = dict[tuple[str, str], dict[float, float]]
"""By set-up and arm, the held-out accuracy of each rate that did not diverge."""


def trials(
    setups: Mapping[str, SetUp],
    arms: Iterable[tuple[str, str]],
    options: argparse.Namespace,
    device: str,
) -> dict[Trial, TrainConfig]:
    """The runs of all searches.

    Args:
        setups: by name.
        arms: set-ups and arms that are to be trained.
        options: as :meth:`SetUp.config` takes them.
        device: as there.
    """
    return {
        (name, arm, rate): _trial(setups[name], search, arm, rate, options, device)
        for name, arm in arms
        if (search := setups[name].search) is not None
        for rate in search.rates
    }


def _trial(
    setup: SetUp, search: Search, arm: str, rate: float, options: argparse.Namespace, device: str
) -> TrainConfig:
    """One arm with one rate."""
    data = held_out.reference(setup.options["data"])
    further = {**search.options, "data": data, "lr": rate}
    return setup.config(arm, options, seed=held_out.SEED, device=device, **further)


def tried(
    configs: Mapping[Trial, TrainConfig], runs: Mapping[Trial, Run], options: argparse.Namespace
) -> Tried:
    """What the searches found; arms of which every rate diverged, or a run is not finished, are left out.

    Args:
        configs: of all searches.
        runs: of those that are finished.
        options: of the command line: report and keep.
    """
    unfinished = {
        (name, arm)
        for (name, arm, _), config in configs.items()
        if options.report and training.kept_run(config, options.keep) is None
    }
    found: Tried = {}
    for (name, arm, rate), run in sorted(runs.items()):
        if (name, arm) not in unfinished:
            found.setdefault((name, arm), {})[rate] = run.summary["eval_accuracy"]
    return found


def known(path: Path, setups: Mapping[str, SetUp]) -> Tried:
    """What earlier searches found, as :func:`keep` wrote it; nothing if there is no such file.

    Args:
        path: of the file.
        setups: by name, with the grids of today.

    Raises:
        BenchmarkError: if the file has a rate that its set-up's grid has not.
    """
    if not path.exists():
        return {}
    found: Tried = {}
    for name, arms in json.loads(path.read_text()).items():
        search = setups[name].search if name in setups else None
        for arm, by_rate in arms.items():
            found[name, arm] = {float(rate): accuracy for rate, accuracy in by_rate.items()}
            if search is not None and (strange := found[name, arm].keys() - {*search.rates}):
                raise BenchmarkError(
                    f"--rates {path}: {name}, {arm!r} was searched at {min(strange):g}, which is not among "
                    f"{', '.join(f'{rate:g}' for rate in search.rates)}; take that arm out of the file"
                )
    return found


def keep(found: Tried, path: Path) -> None:
    """Write what searches found: held-out accuracies by set-up, arm and rate."""
    by_setup: dict[str, dict[str, dict[str, float]]] = {}
    for (name, arm), by_rate in found.items():
        by_setup.setdefault(name, {})[arm] = {f"{rate:g}": by_rate[rate] for rate in by_rate}
    path.write_text(to_json(by_setup, indent=2) + "\n")


def chosen(by_rate: Mapping[float, float] | None) -> dict[str, Any]:
    """The best rate as an option; none where there was no search."""
    return {} if by_rate is None else {"lr": best(by_rate)}


def best(by_rate: Mapping[float, float]) -> float:
    """The lowest of the rates whose accuracy is the highest, or less than :data:`NOISE` below it."""
    enough = max(by_rate.values()) - NOISE
    return min(rate for rate, accuracy in by_rate.items() if accuracy > enough)
