"""How long until an accuracy is reached: pipelocal, 1F1B, interleaved 1F1B and DDP.

On one machine and over a slow link, with the same model, data, global batch and number of learning rates
tried. What is learnt in a step does not depend on the link, so each method is trained once, with
evaluations all along, and the time of a step is measured in every setting; the time to an accuracy is the
product of the steps to it and the time of a step, and the time that the pipeline takes to fill::

    python benchmarks/time_to_accuracy/run.py --quick --json time_to_accuracy.json
    python benchmarks/time_to_accuracy/run.py --data-root DIR --keep KEPT --json time_to_accuracy.json

The slow link joins network namespaces of this machine, which needs root; without, only the setting on one
machine is measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import BenchmarkError
from benchmarks.communication import network
from benchmarks.communication.network import NetworkError
from benchmarks.time_to_accuracy import curves, parts, report, steps
from benchmarks.time_to_accuracy import work as work_settings
from benchmarks.time_to_accuracy.steps import Measured
from benchmarks.time_to_accuracy.work import Setting, Work, methods
from pipelocal.config import TrainConfig
from pipelocal.ranks.host import set_up_host

FULL: dict[str, Any] = {
    "data": "cifar10",
    "model": "resnet20",
    "batch_size": 128,
    "passes": [3, 4],
    "search_passes": 1,
    "rates": [0.05, 0.1, 0.2],
    "rounds": 3,
    "bf16": True,
    "channels_last": True,
}
QUICK: dict[str, Any] = {
    "data": "digits",
    "model": "resnet8",
    "batch_size": 64,
    "passes": [5],
    "search_passes": 5,
    "rates": [0.05, 0.1],
    "rounds": 1,
    "bf16": False,
    "channels_last": False,
}


def main() -> None:
    """Measure, train, print, write."""
    options = parse()
    common.check_writable(options.json)
    set_up_host(1)
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        compare(options, options.keep or Path(scratch))


def compare(options: argparse.Namespace, keep: Path) -> None:
    """Measure the steps, train, and put both together."""
    work = work_of(options)
    measured = Measured(work, keep)
    units = steps.units_of(work)
    plan = [
        (each, methods(work, each, units=units, quick=options.quick))
        for each in possible(work_settings.QUICK if options.quick else work_settings.FULL)
        if each.ranks <= units
    ]
    if not plan:
        raise BenchmarkError(f"--model {work.model} has one unit: give one that can be cut")
    try:
        for line in steps.measure(work, plan, options.rounds, measured):
            print(line, flush=True)
    except NetworkError as error:
        raise BenchmarkError(str(error)) from error
    chosen = [(each, steps.fastest_forms(each, own, measured)) for each, own in plan]
    learners = {method.learner(each.ranks) for each, own in chosen for method in own}
    ordered = sorted(learners | {report.REFERENCE}, key=lambda learner: learner.name)
    all_curves: list[curves.Curve] = []
    for item in curves.train(work, ordered, measured.cuts, jobs=options.jobs, keep=keep):
        if isinstance(item, str):
            print(item, flush=True)
        else:
            all_curves = item
    accuracy = report.wanted_accuracy(all_curves)
    found = curves.first_there(all_curves, accuracy)
    rows = report.time_rows(chosen, found, accuracy, measured)
    targets = report.make_targets(rows)
    report.show(rows, all_curves)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={**common.describe_environment(threads=1), "work": described(work)},
        results=[*rows, *tried_rows(measured), *(curve.row() for curve in all_curves)],
        targets=targets,
    )
    report.plot(rows, found, options.json.with_suffix(".png"))


def possible(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that this machine can have; says so if it is not all."""
    lacking = network.missing()
    if lacking is None:
        return list(settings)
    print(f"no link between namespaces, so one machine alone: this one lacks {lacking}")
    return [setting for setting in settings if setting.link is None]


def parse() -> argparse.Namespace:
    """The options, with the defaults of a quick or a full run."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="digits, few methods: below 3 minutes")
    add("--keep", type=Path, metavar="DIR", help="keep what is finished, and go on from that")
    add("--data", choices=list(parts.MULTIPLE), help="data set (cifar10; quick: digits)")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--model", help="model (resnet20; quick: resnet8)")
    add(
        "--passes",
        type=int,
        nargs="+",
        help="over the training data, of each training that a method has (3 4; quick: 5)",
    )
    add("--search-passes", type=int, help="of the search for learning rates (1; quick: 5)")
    add("--rates", type=float, nargs="+", help="learning rates that are tried (0.05 0.1 0.2)")
    add("--batch-size", type=int, help="samples in a batch of all ranks (128; quick: 64)")
    add("--objective", default=TrainConfig.objective, help="of pipelocal (%(default)s)")
    add("--head", default=TrainConfig.head, help="of pipelocal (%(default)s)")
    yes = argparse.BooleanOptionalAction
    add("--bf16", action=yes, help="autocast, and bf16 between stages (yes; quick: no)")
    add("--channels-last", action=yes, help="images channels last (yes; quick: no)")
    add("--seed", type=int, default=0, help="of all trainings (%(default)s)")
    add("--rounds", type=int, help="of measuring steps, all methods in turns (3; quick: 1)")
    add("--jobs", type=int, default=2, help="trainings at a time (%(default)s)")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("passes", "search_passes", "rounds", "jobs"):
        value = getattr(options, name)
        if min(value if name == "passes" else [value]) < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least 1")
    multiple = parts.MULTIPLE[options.data]
    if options.batch_size < 4 or multiple % options.batch_size:
        parser.error(
            f"--batch-size {options.batch_size}: give a divisor of {multiple}, at least 4, so that a "
            f"quarter of a pass over {options.data} is whole batches"
        )
    if options.json.suffix == ".png":
        parser.error(f"--json {options.json}: that is where the plot goes; choose another suffix")
    return options


def work_of(options: argparse.Namespace) -> Work:
    """What the options ask for."""
    names = ("data", "data_root", "model", "batch_size", "search_passes", "objective")
    own = {name: getattr(options, name) for name in (*names, "head", "bf16", "channels_last")}
    rates, passes = tuple(sorted(set(options.rates))), tuple(dict.fromkeys(options.passes))
    return Work(rates=rates, passes=passes, seed=options.seed, **own)


def described(work: Work) -> dict[str, Any]:
    """The work without paths."""
    return {name: value for name, value in vars(work).items() if name != "data_root"}


def tried_rows(measured: Measured) -> list[dict[str, Any]]:
    """All steps that were measured, those of slower counts of micro-batches too."""
    return [
        {"part": "step", "setting": setting, "method": method, "step_s_each_round": seconds}
        for setting, by_method in measured.seconds.items()
        for method, seconds in by_method.items()
    ]


if __name__ == "__main__":
    common.run_main(main)
