"""Test accuracy after so many steps: each learner with the best of the same learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import training
from benchmarks.common import BenchmarkError
from benchmarks.time_to_accuracy.parts import PARTS
from benchmarks.time_to_accuracy.steps import Cuts
from benchmarks.time_to_accuracy.work import Learner, Work
from benchmarks.training import Failure, Run
from pipelocal.config import TrainConfig

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a learner's test accuracy rises."""

    learner: Learner
    passes: int
    """Over the training data."""
    rate: float
    tried: dict[float, float | None]
    """Accuracy at the end of the short trainings, by learning rate; None if it diverged. Empty where
    another learner's rate was taken."""
    points: list[tuple[int, float]]
    """Steps of whole batches, and the accuracy after them."""
    command: str

    @property
    def final(self) -> float:
        """Accuracy at the end."""
        return self.points[-1][1]

    def steps_to(self, accuracy: float) -> int | None:
        """Steps before the first evaluation that was at least so good; None if none was."""
        return next((step for step, reached in self.points if reached >= accuracy), None)

    def row(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "part": "curve",
            "learner": self.learner.name,
            "passes": self.passes,
            "learning_rate": self.rate,
            "accuracy_by_rate": {f"{rate:g}": value for rate, value in self.tried.items()},
            "steps_and_accuracy": self.points,
            "command": self.command,
        }


def train(
    work: Work, learners: Sequence[Learner], cuts: Cuts, *, jobs: int, keep: Path
) -> Iterator[str | list[Curve]]:
    """Lines of progress, and at the end the learners' curves, one of each for each number of passes.

    Raises:
        BenchmarkError: a training failed, or diverged with every rate.
    """
    searching = [learner for learner in learners if learner == searched(work, learner)]
    tries = [(learner, rate) for learner in searching for rate in work.rates]
    tried: dict[Learner, dict[float, float | None]] = {learner: {} for learner in searching}
    configs = [config(work, *each, cuts, work.search_passes, evaluated=False) for each in tries]
    for index, outcome in training.train_each(configs, jobs=jobs, keep=keep):
        learner, rate = tries[index]
        points = _points(learner, outcome)
        tried[learner][rate] = points[-1][1] if points else None
        yield f"{learner.name}, learning rate {rate:g}: {_percent(tried[learner][rate])}"
    rates = {learner: best(learner, tried[learner]) for learner in searching}
    whole = [(learner, passes) for passes in work.passes for learner in learners]
    chosen = [rates[searched(work, learner)] for learner, _ in whole]
    configs = [
        config(work, learner, rate, cuts, passes, evaluated=True)
        for (learner, passes), rate in zip(whole, chosen, strict=True)
    ]
    curves: dict[tuple[Learner, int], Curve] = {}
    for index, outcome in training.train_each(configs, jobs=jobs, keep=keep):
        (learner, passes), rate = whole[index], chosen[index]
        points = _points(learner, outcome)
        if not points:
            raise BenchmarkError(f"{learner.name} diverged with {rate:g}: give lower --rates")
        curves[learner, passes] = Curve(
            learner=learner,
            passes=passes,
            rate=rate,
            tried=dict(sorted(tried.get(learner, {}).items())),
            points=points,
            command=training.command(configs[index]).replace(f"{ROOT}/", ""),
        )
        yield f"{learner.name}, {passes} passes: {_percent(points[-1][1])} at the end"
    yield [curves[each] for each in whole]


def first_there(curves: Sequence[Curve], accuracy: float) -> dict[Learner, Curve]:
    """Of each learner the curve that gets there in the fewest steps, or comes nearest if none does."""

    def steps(curve: Curve) -> tuple[float, float]:
        reached = curve.steps_to(accuracy)
        return (math.inf if reached is None else reached, -curve.final)

    learners = dict.fromkeys(curve.learner for curve in curves)
    return {
        learner: min((curve for curve in curves if curve.learner == learner), key=steps)
        for learner in learners
    }


def searched(work: Work, learner: Learner) -> Learner:
    """The learner whose best rate this one takes: a narrower wire has no search of its own."""
    return learner if learner.parts else Learner(stages=learner.stages, wire=work.plain_wire)


def best(learner: Learner, tried: dict[float, float | None]) -> float:
    """The rate that led to the highest accuracy.

    Raises:
        BenchmarkError: it diverged with every rate.
    """
    finite = {rate: accuracy for rate, accuracy in tried.items() if accuracy is not None}
    if not finite:
        raise BenchmarkError(f"{learner.name} diverged with every rate: give lower --rates")
    return max(sorted(finite), key=lambda rate: finite[rate])


def config(
    work: Work, learner: Learner, rate: float, cuts: Cuts, passes: int, *, evaluated: bool
) -> TrainConfig:
    """The options of a training, evaluated all along it or at its end alone."""
    epochs = passes * PARTS
    options: dict[str, Any] = {
        "lr": rate,
        "epochs": epochs,
        "evaluate_every": 1 if evaluated else epochs,
    }
    if learner.parts is None:
        return work.own(cuts.own(learner.stages), learner.wire, **options)
    size = work.batch_size // learner.parts
    return work.config(objective="bp", batch_size=size, accumulate=learner.parts, **options)


def _points(learner: Learner, outcome: Run | Failure) -> list[tuple[int, float]]:
    """Nothing if it diverged."""
    if isinstance(outcome, Failure):
        if outcome.diverged:
            return []
        raise BenchmarkError(f"{learner.name}, exit code {outcome.code}: {outcome.reason}")
    return [
        (record["step"] // (learner.parts or 1), record["accuracy"])
        for record in outcome.metrics
        if record["event"] == "evaluate" and record["stage"] == learner.stages
    ]


def _percent(accuracy: float | None) -> str:
    return "diverged" if accuracy is None else f"{100 * accuracy:.2f} %"
