"""Does the simulator behind ``pipelocal plan --ranks`` predict what runs over ranks take?

Every schedule is simulated from the costs that the planner measures and a link that a ping-pong
measures, and then run: pipelocal itself, and GPipe, 1F1B and zero-bubble as
``torch.distributed.pipelining`` has them. Units that wait without computing let 8 ranks run on 2
cores; on 2 ranks a ResNet computes::

    python benchmarks/simulator/run.py --quick --json simulator.json
    python benchmarks/simulator/run.py --json simulator.json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks import common, torchrun
from benchmarks.common import Target
from benchmarks.simulator.models import BATCH
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.partition.measured import Stopwatch
from pipelocal.plan.simulate.forecast import Scenario, forecast
from pipelocal.plan.simulate.job import LinkSpeed
from pipelocal.ranks.host import set_up_host
from pipelocal.run.costs import cost_model

HERE = Path(__file__).parent
SLEEPERS = f"{HERE / 'models.py'}:sleepers"
MICRO_BATCHES = 8
LARGEST_ERROR = 0.15
SMALL, LARGE = 2**16, 2**22
"""Bytes of x of a batch."""

Row = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    parser = common.Parser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind; medians count")
    options = parser.parse_args()
    common.check_writable(options.json)
    set_up_host(1)
    rounds, steps = (1, 15) if options.quick else (options.rounds, 30)
    link = measure_link()
    rows: list[Row] = []
    for ranks, size in [(4, SMALL)] if options.quick else _sleeping():
        os.environ["SLEEPERS"], os.environ["SLEEPERS_BYTES"] = str(ranks), str(size)
        cut = ",".join(map(str, range(1, ranks)))  # units of an nn.Sequential are called so
        config = TrainConfig(
            model=SLEEPERS, data="synthetic", cut=cut, batch_size=BATCH, head="linear"
        )
        rows += compare(config, "waiting", ranks, size, link, rounds, steps)
    if not options.quick:
        config = TrainConfig(
            model="resnet20", data="synthetic", cut="4,6", batch_size=BATCH, head="linear"
        )
        rows += compare(config, "resnet20", 2, None, link, rounds, steps)
    targets = make_targets(rows)
    show(rows, link)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "link": vars(link)},
        results=rows,
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def _sleeping() -> list[tuple[int, int]]:
    return [(2, SMALL), (4, SMALL), (8, SMALL), (4, LARGE), (8, LARGE)]


def measure_link() -> LinkSpeed:
    """Between two ranks of this machine."""
    output = torchrun.launch(2, [str(HERE / "link.py")], what="link")
    return LinkSpeed(**json.loads(output.splitlines()[-1]))


def compare(
    config: TrainConfig,
    units: str,
    ranks: int,
    size: int | None,
    link: LinkSpeed,
    rounds: int,
    steps: int,
) -> list[Row]:
    """Simulated and measured seconds of a batch, for every schedule."""
    rows = []
    for objective in ("greedy", "sgr"):
        own = replace(config, objective=objective)
        blueprint = blueprint_of(own)
        stopwatch = Stopwatch(device=torch.device("cpu"), repeats=5)
        costs, micro = (
            cost_model(blueprint, own, stopwatch, batch_size=rows)
            for rows in (own.batch_size, own.batch_size // MICRO_BATCHES)
        )
        scenario = Scenario(
            model=costs,
            micro=micro,
            ranks=ranks,
            link=link,
            micro_batches=MICRO_BATCHES,
            cuts=tuple(blueprint.cuts),
        )
        for outcome in forecast(scenario):
            if outcome.schedule == "pipelocal":
                name, measure = f"pipelocal {objective}", partial(measure_own, own, ranks, steps)
            elif objective == "greedy":  # the others do not depend on the objective
                name = outcome.schedule
                measure = partial(measure_peer, own, ranks, outcome.schedule, steps)
            else:
                continue
            measured = [measure() for _ in range(rounds)]
            row = {
                "units": units,
                "ranks": ranks,
                "x_bytes": size or costs.profile.units[blueprint.cuts[0].stop - 1].output_bytes,
                "schedule": name,
                "each_round": [outcome.seconds_per_batch / seconds for seconds in measured],
                "simulated_over_measured": outcome.seconds_per_batch / statistics.median(measured),
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def measure_own(config: TrainConfig, ranks: int, steps: int) -> float:
    """Seconds of a batch of pipelocal in the long run."""
    assert config.cut is not None
    options = ["--model", config.model, "--data", config.data, "--objective", config.objective]
    options += ["--cut", config.cut, "--batch-size", str(config.batch_size)]
    options += ["--max-steps", str(steps), "--drop-last", "--evaluate-every", "1000"]
    summary = torchrun.train_over_ranks(ranks, options, what=f"pipelocal, {ranks} ranks")
    return config.batch_size / float(summary["samples_per_second"])


def measure_peer(config: TrainConfig, ranks: int, schedule: str, steps: int) -> float:
    """Median seconds of a training step of a schedule of torch.distributed.pipelining."""
    assert config.cut is not None
    arguments = [str(HERE / "peer.py"), "--model", config.model, "--cut", config.cut]
    arguments += ["--batch-size", str(config.batch_size), "--schedule", schedule]
    arguments += ["--micro-batches", str(MICRO_BATCHES), "--steps", str(steps // 2)]
    return float(
        torchrun.launch(ranks, arguments, what=f"{schedule}, {ranks} ranks").splitlines()[-1]
    )


def make_targets(rows: list[Row]) -> list[Target]:
    """The largest error of every kind of units and schedule."""
    targets = []
    for units in dict.fromkeys(row["units"] for row in rows):
        own = [row for row in rows if row["units"] == units]
        for schedule in dict.fromkeys(row["schedule"] for row in own):
            errors = [_error(row) for row in own if row["schedule"] == schedule]
            name = f"{units}, {schedule}: largest error of the simulated time"
            targets.append(common.at_most(name, max(errors), LARGEST_ERROR))
    errors = [_error(row) for row in rows]
    return [*targets, common.reported("median error of all", statistics.median(errors))]


def _error(row: Row) -> float:
    return abs(float(row["simulated_over_measured"]) - 1)


def show(rows: list[Row], link: LinkSpeed) -> None:
    """A line for each model and number of ranks, a column for each schedule."""
    print(f"link: {link.bytes_per_s / 2**30:.2f} GiB/s, {link.latency_s * 1e6:.0f} us")
    schedules = list(dict.fromkeys(row["schedule"] for row in rows))
    lines: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        line = lines.setdefault((row["units"], row["ranks"], row["x_bytes"]), {})
        line[row["schedule"]] = row["simulated_over_measured"]
    common.print_table(
        f"time of a batch, simulated over measured; {MICRO_BATCHES} micro-batches",
        ("units", "ranks", "x of a batch", *schedules),
        [
            (units, str(ranks), f"{size / 2**20:.2f} MiB", *(f"{line[s]:.3f}" for s in schedules))
            for (units, ranks, size), line in lines.items()
        ],
    )


def plot(rows: list[Row], path: Path) -> None:
    """Simulated over measured, against the ranks."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    markers = {"waiting": "o", "resnet20": "x"}
    for schedule in dict.fromkeys(row["schedule"] for row in rows):
        for units, marker in markers.items():
            own = [r for r in rows if r["schedule"] == schedule and r["units"] == units]
            if own:
                axes.plot(
                    [row["ranks"] for row in own],
                    [row["simulated_over_measured"] for row in own],
                    marker,
                    alpha=0.7,
                    label=f"{schedule}, {units}",
                )
    axes.axhspan(1 - LARGEST_ERROR, 1 + LARGEST_ERROR, alpha=0.15)
    axes.set(xlabel="ranks", ylabel="simulated / measured time")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
