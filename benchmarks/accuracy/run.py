"""What heads keep of back-propagation's accuracy: bp, and greedy behind each head.

In each set-up, the same model, data, seeds, steps and data order; each training is a ``pipelocal train`` of
its own. Runs are kept, and a study that was stopped goes on::

    python benchmarks/accuracy/run.py --quick --json accuracy.json
    python benchmarks/accuracy/run.py --setups resnet20-4 --data-root DIR --keep RUNS --json accuracy.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, training
from benchmarks.accuracy import costs, figures, rates, tables
from benchmarks.accuracy.setups import SETUPS, SetUp
from benchmarks.common import BenchmarkError
from benchmarks.training import Run
from pipelocal.config import TrainConfig

Arm = tuple[str, str, int]
"""Names of the set-up and of the arm, and the seed."""
Value = TypeVar("Value", bound=float)


def main() -> None:
    """The study of heads."""
    study(SETUPS, default="resnet20-4", document=__doc__)


def study(
    setups: Mapping[str, SetUp],
    *,
    default: str,
    document: str | None,
    columns: tables.Columns = tables.HEADS,
    plot: Callable[[Sequence[figures.Row], Path], None] = figures.plot,
) -> None:
    """Train what is missing, print, write.

    Args:
        setups: by name; ``quick`` is for ``--quick``.
        default: name of the one that is taken by default.
        document: says what it is.
        columns: of the tables.
        plot: draws the picture of all rows into a file.
    """
    options = parse(sys.argv[1:], setups, default, document)
    common.check_writable(options.json)
    device = common.resolve_device(options.device)
    wanted: list[Arm] = [
        (name, arm, seed)
        for name in options.setups
        for arm, seed in planned(name, setups[name], options)
    ]
    tried = {} if options.rates is None else rates.known(options.rates, setups)
    arms = dict.fromkeys((name, arm) for name, arm, _ in wanted if (name, arm) not in tried)
    trials = rates.trials(setups, arms, options, device)
    tried |= rates.tried(trials, train(trials, options, "rate"), options)
    if options.rates is not None:
        rates.keep(tried, options.rates)
    configs = {
        (name, arm, seed): setups[name].config(
            arm, options, seed=seed, device=device, **rates.chosen(tried.get((name, arm)))
        )
        for name, arm, seed in wanted
        if setups[name].search is None or (name, arm) in tried
    }
    runs = train(configs, options, "seed")
    measured = {} if options.keep is None else costs.kept(options.keep)
    environment = common.describe_environment(threads=1, device=device)
    made = {name: environment[name] for name in ("torch", "device", "date")}
    rows = [
        {**row, "made": made}
        for name in options.setups
        for row in figures.rows(name, setups[name], runs, measured, tried)
    ]
    if not rows:
        raise BenchmarkError("no run is finished: leave out --report")
    if options.add and options.json.exists():
        earlier = json.loads(options.json.read_text())["results"]
        rows = figures.joined(earlier, rows, setups)
    targets = [*figures.targets(rows), *figures.claims(setups, rows)]
    tables.show(rows, columns)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=environment,
        results=rows,
        targets=targets,
    )
    if options.into is not None:
        common.put_into(options.into, tables.markdown(rows, columns))
    plot(rows, options.json.with_suffix(".png"))


def parse(
    arguments: Sequence[str], setups: Mapping[str, SetUp], default: str, document: str | None
) -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(document or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="digits alone: below 3 minutes")
    add(
        "--setups",
        nargs="+",
        choices=[*setups],
        default=[default],
        metavar="NAME",
        help=", ".join(setups),
    )
    add("--arms", nargs="+", metavar="NAME", help="these only, beside the first two")
    add("--seeds", type=int, nargs="+", help="in place of the set-up's own")
    add("--epochs", type=int, help="in place of the set-up's own")
    add("--data-root", metavar="DIR", help="folder with the data set's files, or the text")
    add("--tokenizer", metavar="FILE", help="of set-ups with a vocabulary")
    add(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep runs there, and go on with those that are there",
    )
    add(
        "--rates",
        type=Path,
        metavar="FILE",
        help="take the outcomes of the searches for rates from there, and add those of further arms",
    )
    add("--report", action="store_true", help="train nothing; report on what --keep has")
    add("--add", action="store_true", help="rows of other arms and set-ups in the result file stay")
    add("--into", type=Path, metavar="FILE", help="README that gets the tables")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.setups = ["quick"]
    if options.report and options.keep is None:
        parser.error("--report: say with --keep where the runs are")
    return options


def planned(name: str, setup: SetUp, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Arm and seed of each run of a set-up; all arms of a seed before the next seed."""
    arms = [*list(setup.arms)[:2], *options.arms] if options.arms else [*setup.arms]
    further = (
        ()
        if options.seeds
        else dict.fromkeys(s for own in setup.further_seeds.values() for s in own)
    )
    for seed in options.seeds or (*setup.seeds, *further):
        for arm in dict.fromkeys(arms):
            if arm not in setup.arms:
                raise BenchmarkError(f"--arms {arm}: {name} has {', '.join(setup.arms)}")
            if seed not in further or seed in setup.further_seeds.get(arm, ()):
                yield arm, seed


def train(
    configs: Mapping[tuple[str, str, Value], TrainConfig], options: argparse.Namespace, what: str
) -> dict[tuple[str, str, Value], Run]:
    """The finished runs; those that diverge are said and left out.

    Args:
        configs: by set-up, arm and a value.
        options: of the command line.
        what: the value is.
    """
    if options.report:
        kept = {arm: training.kept_run(config, options.keep) for arm, config in configs.items()}
        return {arm: run for arm, run in kept.items() if isinstance(run, Run)}
    runs: dict[tuple[str, str, Value], Run] = {}
    arms = [*configs]
    names = [f"{setup}, {arm}, {what} {value:g}" for setup, arm, value in arms]
    for index, run in training.train_those_that_converge(
        [*configs.values()], names, jobs=options.jobs, keep=options.keep
    ):
        runs[arms[index]] = run
        accuracy = run.summary["eval_accuracy"]
        print(f"{len(runs)}/{len(arms)}  {names[index]}: accuracy {accuracy:.4f}", flush=True)
    return runs


if __name__ == "__main__":
    common.run_main(main)
