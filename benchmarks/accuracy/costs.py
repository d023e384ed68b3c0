"""What a cut costs behind each head, measured on an idle machine.

For each arm of a set-up the network is cut by ``--balance time``, heads included, and a training step of
each of its stages is timed alone, and one of the uncut network by back-propagation: in float32, on one
thread. Kept beside the runs, so that ``run.py --report`` puts it into the tables::

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
from benchmarks.cuts import balanced_cut, seconds_of_stage
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

    cut: str
    """As ``--cut`` takes it."""
    heads: list[str]
    """Of each stage but the last."""
    head_multiply_adds: float
    """Of the forward pass through all heads, over those of the uncut network."""
    slowest: float
    """Seconds of the slowest stage's training step over those of the uncut network's."""
    busy: float
    """Mean over the stages of the time of a step, over the slowest one's."""


def cost_of(config: TrainConfig, whole_s: float) -> Cost:
    """Cut and measure.

    Args:
        config: of a training in stages.
        whole_s: seconds of a step of the uncut network.
    """
    cut = balanced_cut(config)
    blueprint = blueprint_of(replace(config, cut=cut))
    seconds = [
        seconds_of_stage(blueprint, config, number, REPEATS)
        for number in range(1, blueprint.stages + 1)
    ]
    return Cost(
        cut=cut,
        heads=[str(blueprint.head_name(number)) for number in range(1, blueprint.stages)],
        head_multiply_adds=heads_share(blueprint),
        slowest=max(seconds) / whole_s,
        busy=statistics.fmean(seconds) / max(seconds),
    )


def heads_share(blueprint: Blueprint) -> float:
    """Multiply-adds of all auxiliary heads over those of the uncut network."""
    chain = blueprint.chain
    stops = [cut.stop for cut in blueprint.cuts[:-1]]
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
        setup, whole_s = setups[name], None
        for arm in options.arms or setup.arms:
            config, bp = (in_float32(setup.config(each, options)) for each in (arm, BP))
            if recipe_of(config).uncut or name_of(name, arm) in found:
                continue
            if whole_s is None:
                whole_s = seconds_of_stage(blueprint_of(bp), bp, 1, REPEATS)
            cost = found[name_of(name, arm)] = cost_of(config, whole_s)
            print(f"{name}, {arm}: {cost}", flush=True)
            text = json.dumps({each: asdict(found[each]) for each in found}, indent=1)
            (options.keep / FILE).write_text(text)


if __name__ == "__main__":
    common.run_main(main)
