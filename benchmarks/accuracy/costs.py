"""What a cut costs behind each head, measured on an idle machine.

For each arm of a set-up the network is cut by ``--balance time``, heads included, and a training step of
each of its stages, by the arm's objective, is timed alone, and one of the uncut network by back-propagation:
in float32, on one thread. Multiply-adds and the bytes of tensors are counted in the same steps. Kept beside
the runs, so that ``run.py --report`` puts it into the tables::

    python benchmarks/accuracy/costs.py --setups resnet20-4 --data-root DIR --keep RUNS
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.accuracy.setups import BP, SETUPS, SetUp
from benchmarks.cuts import (
    balanced_cut,
    multiply_adds_of_stage,
    peak_bytes_of_stage,
    seconds_of_stage,
)
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of, recipe_of
from pipelocal.models.operations import multiply_adds
from pipelocal.ranks.host import set_up_host
from pipelocal.run.blueprint import Blueprint

FILE = "costs.json"
"""In the folder of the runs."""
REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one arm of a set-up."""

    cut: str | None
    """As ``--cut`` takes it; None for an arm that trains the network uncut."""
    heads: list[str]
    """Of each stage but the last."""
    head_multiply_adds: float
    """Of the forward pass through all heads, over those of the uncut network."""
    slowest: float
    """Seconds of the slowest stage's training step over those of the uncut network's."""
    busy: float
    """Mean over the stages of the time of a step, over the slowest one's."""
    step_multiply_adds: float | None = None
    """Of a training step of all stages over that of the uncut network; None if it was not counted yet."""
    peak_memory: float | None = None
    """Most bytes of tensors of a stage over those of the uncut network, in training; None likewise."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a training step takes."""

    seconds: float
    multiply_adds: float
    peak_bytes: int

    @classmethod
    def of(cls, blueprint: Blueprint, config: TrainConfig, number: int) -> Step:
        """Measure a stage, alone."""
        return cls(
            seconds=seconds_of_stage(blueprint, config, number, REPEATS),
            multiply_adds=multiply_adds_of_stage(blueprint, config, number),
            peak_bytes=peak_bytes_of_stage(blueprint, config, number),
        )


def cost_of(config: TrainConfig, whole: Step) -> Cost:
    """Cut and measure.

    Args:
        config: of a training with auxiliary heads.
        whole: a step of the uncut network by back-propagation.
    """
    cut = None if recipe_of(config).uncut else balanced_cut(config)
    blueprint = blueprint_of(config if cut is None else replace(config, cut=cut))
    steps = [Step.of(blueprint, config, number) for number in range(1, blueprint.stages + 1)]
    seconds = [step.seconds for step in steps]
    return Cost(
        cut=cut,
        heads=[blueprint.heads.name(stop) for stop in stops_of(blueprint)],
        head_multiply_adds=heads_share(blueprint),
        slowest=max(seconds) / whole.seconds,
        busy=statistics.fmean(seconds) / max(seconds),
        step_multiply_adds=sum(step.multiply_adds for step in steps) / whole.multiply_adds,
        peak_memory=max(step.peak_bytes for step in steps) / whole.peak_bytes,
    )


def stops_of(blueprint: Blueprint) -> list[int]:
    """Number of units before each auxiliary head."""
    return [cut.stop for cut in (blueprint.sections or blueprint.cuts)[:-1]]


def heads_share(blueprint: Blueprint) -> float:
    """Multiply-adds of all auxiliary heads over those of the uncut network."""
    chain, stops = blueprint.chain, stops_of(blueprint)
    heads = multiply_adds(
        (partial(blueprint.heads.build, stop), chain.crossing[stop - 1]) for stop in stops
    )
    return sum(heads) / sum(chain.multiply_adds())


def in_float32(config: TrainConfig) -> TrainConfig:
    """The same without autocast, which the planner does not cost."""
    return replace(config, autocast=None, channels_last=False)


def kept(keep: Path) -> dict[str, Cost]:
    """The costs that were measured, by set-up and arm."""
    file = keep / FILE
    found = json.loads(file.read_text()) if file.exists() else {}
    return {name: Cost(**cost) for name, cost in found.items()}


def name_of(setup: str, arm: str) -> str:
    """What an arm's cost is kept under."""
    return f"{setup}: {arm}"


def main() -> None:
    """Of heads."""
    measure(SETUPS, document=__doc__)


def measure(setups: Mapping[str, SetUp], *, document: str | None) -> None:
    """Measure what is missing; keep each as soon as it is there."""
    parser = common.Parser(description=(document or "").splitlines()[0])
    parser.add_argument("--setups", nargs="+", choices=[*setups], required=True)
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="these only")
    parser.add_argument("--data-root", metavar="DIR")
    parser.add_argument("--tokenizer", metavar="FILE")
    parser.add_argument(
        "--keep", type=Path, required=True, metavar="DIR", help="folder of the runs"
    )
    options = parser.parse_args()
    options.epochs = None
    set_up_host(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    found = kept(options.keep)
    for name in options.setups:
        setup, whole = setups[name], None
        for arm in options.arms or setup.arms:
            if arm == BP or name_of(name, arm) in found:
                continue
            config, bp = (in_float32(setup.config(each, options)) for each in (arm, BP))
            if whole is None:
                whole = Step.of(blueprint_of(bp), bp, 1)
            cost = found[name_of(name, arm)] = cost_of(config, whole)
            print(f"{name}, {arm}: {cost}", flush=True)
            text = json.dumps({each: asdict(found[each]) for each in found}, indent=1)
            (options.keep / FILE).write_text(text)


if __name__ == "__main__":
    common.run_main(main)
