"""Trains the cells of the rounds, each in a process of its own, and makes a row of each."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import common, training
from benchmarks.common import BenchmarkError
from benchmarks.reconciliation import grid
from benchmarks.reconciliation.grid import Cell
from benchmarks.training import Failure, Run
from pipelocal.config import TrainConfig

TRAINING_WINDOW = 50
BEST_OF_A_HEAD = 2
"""Screened cells of each head that are varied."""
MOST_OF_A_HEAD = 3
"""Cells of the same setting and head that are repeated, at most."""
ALWAYS_REPEATED = Cell(head="downstream", distance="cosine", weight=0.01, every=grid.SELDOM)
"""Looks best or not, it is the form that sgr has by default."""

Row = dict[str, Any]


class Study:
    """The runs so far, and what comes of them.

    Args:
        options: of the command line.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        self._options = options
        self._device = device
        self._outcomes: dict[Cell, dict[int, Run | Failure]] = {}

    def run(self) -> list[Row]:
        """Go through the rounds; a row for each cell of which there is a run."""
        options, screening = self._options, [self._options.seed]
        wanted = [cell for cell in grid.screened(options.heads) if self._wanted(cell)]
        self.train("screen", wanted, screening)
        self.train("fine", grid.weighted(grid.FURTHER, options.heads), screening)
        best = [
            cell
            for head in options.heads
            for cell in self.best(BEST_OF_A_HEAD, most=BEST_OF_A_HEAD, head=head)
        ]
        self.train("vary", grid.varied(best), screening)
        carried = [cell for cell in grid.carried(options.heads) if self._wanted(cell)]
        self.train("carry", carried, screening)
        chosen = self.best(options.repeat, most=MOST_OF_A_HEAD)
        if ALWAYS_REPEATED in self._outcomes and ALWAYS_REPEATED not in chosen:
            chosen.append(ALWAYS_REPEATED)
        pairs = [each for cell in chosen for each in (cell.base, cell)]
        bases = [Cell(setting=cell.setting, objective="bp") for cell in chosen]
        self.train("repeat", dict.fromkeys([*pairs, *bases]), options.seeds)
        return [self.row(cell) for cell in self._outcomes]

    def train(self, name: str, cells: Iterable[Cell], seeds: Sequence[int]) -> None:
        """Train each cell on each seed, apart from what is kept of earlier runs.

        Of a round that is not to be done, only what is kept counts.
        """
        wanted = [(cell, seed) for seed in seeds for cell in cells]
        keep = self._options.keep
        todo: dict[
            TrainConfig, list[tuple[Cell, int]]
        ] = {}  # bp is the same with any number of stages
        for cell, seed in wanted:
            config = self.config(cell, seed)
            outcome = None if keep is None else training.kept_run(config, keep)
            if outcome is None:
                todo.setdefault(config, []).append((cell, seed))
            else:
                self._outcomes.setdefault(cell, {})[seed] = outcome
        if self._options.only_kept or name not in self._options.rounds:
            print(
                f"{name}: {sum(map(len, todo.values()))} of {len(wanted)} runs are missing",
                flush=True,
            )
            return
        print(f"{name}: {len(wanted)} runs, {len(todo)} of them to do", flush=True)
        started = training.train_each(list(todo), jobs=self._options.jobs, keep=keep)
        for finished, (index, outcome) in enumerate(started, start=1):
            of_run = list(todo.values())[index]
            cell, seed = of_run[0]
            what = f"{cell.setting}, {cell.head}, {cell.form}, seed {seed}"
            if isinstance(outcome, Failure) and not outcome.diverged:
                raise BenchmarkError(f"{what}, exit code {outcome.code}: {outcome.reason}")
            for cell, seed in of_run:
                self._outcomes.setdefault(cell, {})[seed] = outcome
            gain = self.gain(cell, seed)
            print(
                f"{finished}/{len(todo)}  {what}: "
                f"{'diverged' if isinstance(outcome, Failure) else f'{percent(outcome):.2f}'}"
                f"{'' if gain is None else f' ({gain:+.2f})'}",
                flush=True,
            )

    def best(self, count: int, *, most: int, head: str | None = None) -> list[Cell]:
        """The cells that gain most over greedy on the screening seed.

        Args:
            count: of cells.
            most: of the same setting and head.
            head: of this head in the main setting only; None for all cells.
        """
        gains = {
            cell: gain
            for cell in self._outcomes
            if cell.objective == "sgr"
            and cell.weight > 0
            and (head is None or (cell.head, cell.setting) == (head, grid.MAIN))
            and (head is None or (cell.schedule, cell.where) == ("constant", "all"))
            and (gain := self.gain(cell, self._options.seed)) is not None
        }
        chosen: list[Cell] = []
        for cell in sorted(gains, key=lambda cell: -gains[cell]):
            alike = [c for c in chosen if (c.setting, c.head) == (cell.setting, cell.head)]
            if len(chosen) < count and len(alike) < most:
                chosen.append(cell)
        return chosen

    def gain(self, cell: Cell, seed: int) -> float | None:
        """Points of test accuracy over greedy with the same setting, head and seed; None if not known."""
        own = self._outcomes.get(cell, {}).get(seed)
        base = self._outcomes.get(cell.base, {}).get(seed)
        if not (isinstance(own, Run) and isinstance(base, Run)) or cell.objective != "sgr":
            return None
        return percent(own) - percent(base)

    def row(self, cell: Cell) -> Row:
        """What came of a cell. Gains on the seed that chose the cell stand apart: they are too good."""
        outcomes = self._outcomes[cell]
        seeds = sorted(outcomes)
        runs = [run for seed in seeds if isinstance(run := outcomes[seed], Run)]
        fresh = [self.gain(cell, seed) for seed in seeds if seed != self._options.seed]
        gains = [gain for gain in fresh if gain is not None]
        values = asdict(cell)
        of_stages = [run.summary["stages"] for run in runs]
        losses = [
            run.last_training(len(stages), "loss", batches=TRAINING_WINDOW)
            for run, stages in zip(runs, of_stages, strict=True)
        ]
        return {
            "kind": "cell",
            **values.pop("setting"),
            **values,
            "form": cell.form,
            "seeds": seeds,
            "of_each_seed": [run.summary["eval_accuracy"] for run in runs],
            "diverged": len(outcomes) - len(runs),
            "test_accuracy": common.spread([percent(run) for run in runs]) if runs else None,
            "train_loss": _mean(losses),
            "gain_when_screened": self.gain(cell, self._options.seed),
            "gain": spread_with_error(gains) if gains else None,
            **{
                name: _mean([stage[name] for stages in of_stages for stage in stages])
                for name in ("cosine", "residual", "cap")
            },
            "command": training.command(next(iter(outcomes.values())).config),
        }

    def config(self, cell: Cell, seed: int) -> TrainConfig:
        """The options of one run."""
        options = self._options
        return TrainConfig(
            **cell.options(),
            data=options.data,
            data_root=options.data_root,
            train_samples=options.train_samples,
            epochs=options.epochs,
            evaluate_every=options.epochs,  # the end is all that is looked at
            batch_size=options.batch_size,
            warmup_steps=options.warmup_steps,
            channels_last=cell.setting.model == "cnn",
            keep_snapshots=0,
            seed=seed,
            device=self._device,
        )

    def _wanted(self, cell: Cell) -> bool:
        forms = self._options.forms
        return not forms or cell.weight == 0 or cell.form in forms


def percent(run: Run) -> float:
    """Test accuracy of the last head, in percent."""
    return 100 * float(run.summary["eval_accuracy"])


def spread_with_error(gains: Sequence[float]) -> dict[str, Any]:
    """As :func:`common.spread`, with the standard error of the mean, and the number of seeds."""
    found = common.spread(gains)
    sd = found["sd"]
    error = None if sd is None else sd / len(gains) ** 0.5
    return {**found, "standard_error": error, "seeds": len(gains)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
