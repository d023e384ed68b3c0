"""Forward gradients on LocalMixer: the arms of arXiv 2210.03310, and the variance of one layer's gradients.

Each arm first searches its learning rate over the same grid, in shorter runs on a seed of their own, by the
accuracy on a part of the training data that is held out; then it trains at the best. Runs are kept, and a
study that was stopped goes on::

    python benchmarks/methods/lg_fg.py --quick --json lg-fg.json
    python benchmarks/methods/lg_fg.py --setups mnist --data-root DIR --keep RUNS --json lg-fg.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, held_out, training
from benchmarks.common import BenchmarkError, Target
from benchmarks.methods import lg_fg_variance as variance
from pipelocal.config import TrainConfig

Options = Mapping[str, Any]
"""Options of :class:`~pipelocal.config.TrainConfig`, by name."""
Row = dict[str, Any]
MODELS = Path(__file__).with_name("lg_fg_models.py")


def forward(stages: int, *options: str) -> Options:
    """Forward gradients with these options of the objective."""
    return {"objective": "lg-fg", "stages": stages, "objective_options": options}


def arms(blocks: int) -> dict[str, Options]:
    """The paper's arms for a model of so many blocks; of one block, LG-BP is BP."""
    local = {"LG-BP": {"objective": "greedy", "stages": blocks, "head": "downstream=0"}}
    return {
        "BP": {"objective": "bp", "stages": blocks},
        **(local if blocks > 1 else {}),
        "FG-W": forward(1, "perturb=weight", "losses=one"),
        "FG-A": forward(1, "losses=one"),
        "LG-FG-W": forward(blocks, "perturb=weight"),
        "LG-FG-A": forward(blocks),
    }


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """A model and data, and what is asked of the arms."""

    title: str
    options: Options
    """Of every run."""
    search: Options
    """In place of some of them, of the runs that search for a rate."""
    blocks: int
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    seeds: tuple[int, ...] = (0,)
    paper: Mapping[str, float] | None = None
    """Its test errors, in percent."""


COMMON: Options = {"batch_size": 128, "weight_decay": 1e-4, "warmup_steps": 50}
CIFAR: Options = {**COMMON, "data": "cifar10", "train_samples": 10_000, "epochs": 20}
CIFAR_PAPER = {"BP": 33.62, "LG-BP": 33.84, "FG-W": 55.95, "FG-A": 59.72, "LG-FG-A": 30.68}
SETUPS = {
    "quick": SetUp(
        title="LocalMixer, 4 blocks of 64 channels, digits",
        options={"model": f"{MODELS}:small_mixer", "data": "digits", "epochs": 8},
        search={},
        blocks=4,
        rates=(0.1,),
    ),
    "mnist": SetUp(
        title="LocalMixer M/1/16, MNIST",
        # Its files lie in the place of Fashion-MNIST's.
        options={"model": "local-mixer-m-1-16", "data": "fashion-mnist", "epochs": 30, **COMMON},
        search={"epochs": 2, "train_samples": 10_000},
        blocks=1,
        seeds=(0, 1),
        paper={"BP": 2.41, "FG-W": 8.56, "FG-A": 3.76, "LG-FG-W": 5.66, "LG-FG-A": 2.55},
    ),
    "cifar10": SetUp(
        title="LocalMixer, 4 blocks of 256 channels, 4x4 patches, 10,000 images of CIFAR-10",
        options={"model": f"{MODELS}:mixer", **CIFAR},
        search={"epochs": 2},
        blocks=4,
        paper=CIFAR_PAPER,
    ),
    "cifar10-m-8-16": SetUp(
        title="LocalMixer M/8/16, 10,000 images of CIFAR-10",
        options={"model": "local-mixer", **CIFAR, "epochs": 10},
        search={"epochs": 1},
        blocks=4,
        paper=CIFAR_PAPER,
    ),
}


def main() -> None:
    """Search, train what is missing, measure, print, write."""
    options = parse(sys.argv[1:])
    common.check_writable(options.json)
    rows = [row for name in options.setups for row in study(name, SETUPS[name], options)]
    spreads = variance.measured(200 if options.quick else 600)
    targets = [*targets_of(rows), variance.target(spreads)]
    show(rows)
    variance.show(spreads)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1, device=options.device),
        results=[*rows, *spreads],
        targets=targets,
    )
    variance.plot(spreads, options.json.with_suffix(".png"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="digits alone: below 3 minutes")
    add("--setups", nargs="+", choices=[*SETUPS], default=["mnist"], metavar="NAME")
    add("--arms", nargs="+", metavar="NAME", help="these only")
    add("--rates", nargs="+", type=float, help="in place of the set-up's own; one is not searched")
    add("--seeds", nargs="+", type=int, help="in place of the set-up's own")
    add("--epochs", type=int, help="in place of the set-up's own")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--keep", type=Path, metavar="DIR", help="keep runs, and go on with those there")
    add("--device", default="cpu", help="auto, cpu or cuda (%(default)s)")
    add("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    options.device = common.resolve_device(options.device)
    if options.quick:
        options.setups = ["quick"]
    return options


def study(name: str, setup: SetUp, options: argparse.Namespace) -> list[Row]:
    """A row for each arm of a set-up."""
    known = arms(setup.blocks)
    wanted = options.arms or [*known]
    if unknown := set(wanted) - known.keys():
        raise BenchmarkError(f"--arms {' '.join(unknown)}: {name} has {', '.join(known)}")
    rates = tuple(options.rates or setup.rates)

    def config(arm: str, rate: float, seed: int, **further: Any) -> TrainConfig:
        own: dict[str, Any] = {**setup.options, **known[arm], **further}
        root, device = options.data_root, options.device
        return TrainConfig(**own, lr=rate, seed=seed, data_root=root, device=device, threads=1)

    chosen = dict.fromkeys(wanted, rates[0])
    if len(rates) > 1:
        tried = [(arm, rate) for arm in wanted for rate in rates]
        data = held_out.reference(setup.options["data"])
        search = {**setup.search, "data": data}
        configs = [config(arm, rate, held_out.SEED, **search) for arm, rate in tried]
        found = {tried[i]: accuracy for i, accuracy in trained(configs, options, "search")}
        for arm in wanted:
            chosen[arm] = max(rates, key=lambda rate: found.get((arm, rate), -1.0))
    length = {} if options.epochs is None else {"epochs": options.epochs}
    seeds = options.seeds or setup.seeds
    runs = [(arm, seed) for seed in seeds for arm in wanted]
    configs = [config(arm, chosen[arm], seed, **length) for arm, seed in runs]
    errors: dict[str, list[float]] = {}
    for i, accuracy in trained(configs, options, name):
        errors.setdefault(runs[i][0], []).append(100 * (1 - accuracy))
    return [
        {
            "setup": name,
            "arm": arm,
            "rate": chosen[arm],
            "seeds": len(errors[arm]),
            "error": common.spread(errors[arm]),
            "paper": (setup.paper or {}).get(arm),
        }
        for arm in wanted
        if arm in errors
    ]


def trained(
    configs: Sequence[TrainConfig], options: argparse.Namespace, what: str
) -> Iterator[tuple[int, float]]:
    """Yield index and accuracy of each run that does not diverge."""
    names = [f"{what} {c.objective} {' '.join(c.objective_options)} lr {c.lr}" for c in configs]
    for i, run in training.train_those_that_converge(
        configs, names, jobs=options.jobs, keep=options.keep
    ):
        accuracy = run.summary["eval_accuracy"]
        print(f"{names[i]}: accuracy {accuracy:.4f}", flush=True)
        yield i, accuracy


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """The paper's order, as far as these arms show it."""
    found = []
    for name in dict.fromkeys(row["setup"] for row in rows):
        error = {row["arm"]: row["error"]["mean"] for row in rows if row["setup"] == name}

        def gap(one: str, other: str, error: Mapping[str, float] = error) -> float | None:
            return error[one] - error[other] if one in error and other in error else None

        for one, other, goal in (("LG-FG-A", "BP", None), ("FG-W", "LG-FG-A", 4.0)):
            value = gap(one, other)
            label = f"{name}: error of {one} above {other}'s, points"
            if value is not None and goal is None:
                bound = 1.0 if name == "mnist" else 5.0
                found.append(common.at_most(label, value, bound))
            elif value is not None and goal is not None:
                found.append(common.at_least(label, value, goal))
        several = gap("FG-A", "LG-FG-A")
        if several is not None and SETUPS[name].blocks > 1:
            label = f"{name}: error of FG-A above LG-FG-A's, points"
            found.append(common.at_least(label, several, 5.0))
    return found


def show(rows: Sequence[Row]) -> None:
    """Print a table for each set-up."""
    for name in dict.fromkeys(row["setup"] for row in rows):
        common.print_table(
            SETUPS[name].title,
            ("arm", "rate", "seeds", "test error %", "the paper's"),
            [
                (
                    row["arm"],
                    f"{row['rate']:g}",
                    str(row["seeds"]),
                    f"{row['error']['mean']:.2f}",
                    "-" if row["paper"] is None else f"{row['paper']:.2f}",
                )
                for row in rows
                if row["setup"] == name
            ],
        )


if __name__ == "__main__":
    common.run_main(main)
