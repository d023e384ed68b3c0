"""Perturbation against back-propagation in recurrent networks: the same passes, seeds and data order for all.

A pass with noise costs no more than a backward pass, so equal batches are equal passes. The rate of each
method is the one of its grid with the least training loss at the first seed. Runs are kept, and a study that
was stopped goes on; start it in the repository's root::

    python benchmarks/methods/anp.py --quick --json anp.json
    python benchmarks/methods/anp.py --keep RUNS --json anp.json
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, training
from benchmarks.common import Target
from benchmarks.methods import sequences
from benchmarks.training import Run
from pipelocal.config import TrainConfig

HERE = "benchmarks.methods.sequences"
SEEDS = (0, 1, 2)
DECORRELATE = 0.001
"""Of 0.0001, 0.001, 0.003 and 0.01 the best on the first seed of the first two set-ups."""
GAP_EVERY = 100
"""Batches between comparisons with the gradient of back-propagation through the network."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How stages are trained, and the grid of its rates."""

    options: tuple[str, ...] = ()
    """Of ``--objective anp``; none for back-propagation."""
    truncated: bool = False
    """Whether it is through one step of time."""
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)


TRAJECTORY = (0.0003, 0.001, 0.003, 0.01, 0.03)
RELEASED = (0.015, 0.05, 0.15, 0.5, 1.5)
"""The rule underestimates the gradient: 450 times at 64 units and samples, 70 times at the read-out."""
DECORRELATED = f"decorrelate={DECORRELATE}"

METHODS: Mapping[str, Method] = {
    "BPTT": Method(),
    "BP, 1 step": Method(truncated=True),
    "ANP, released": Method(options=("rule=released",), rates=RELEASED),
    "ANP, trajectory": Method(options=("rule=trajectory",), rates=TRAJECTORY),
    "ANP, released, decorrelated": Method(options=("rule=released", DECORRELATED), rates=RELEASED),
    "ANP, trajectory, decorrelated": Method(
        options=("rule=trajectory", DECORRELATED), rates=TRAJECTORY
    ),
    "NP": Method(options=("rule=np",), rates=TRAJECTORY),
    "WP": Method(options=("rule=wp",), rates=(0.00003, 0.0001, 0.0003, 0.001, 0.003)),
}


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """Data and network."""

    title: str
    data: str
    model: str
    """Name in ``sequences``; that of its truncated form is longer."""
    epochs: int
    stages: int = 1
    task: str | None = None


SETUPS: Mapping[str, SetUp] = {
    "every": SetUp(
        title="digits by rows, 64 units, loss at every step",
        data=f"{HERE}:digits_every_step",
        model="one_layer",
        epochs=60,
    ),
    "last": SetUp(
        title="digits by rows, 64 units, loss at the last step",
        data="digits",
        model="one_layer_last",
        epochs=60,
    ),
    "stages": SetUp(
        title="digits by rows, 4 layers in 4 stages, loss at the last step",
        data="digits",
        model="four_layers_last",
        epochs=40,
        stages=4,
    ),
    "mackey-glass": SetUp(
        title="Mackey-Glass, 15 ahead, 64 units",
        data=f"{HERE}:mackey_glass",
        model="one_layer",
        epochs=120,
        task="regression",
    ),
}

QUICK = ["BPTT", "ANP, trajectory", "NP", "WP"]

Arm = tuple[str, str, float, int]
"""Set-up, method, rate and seed."""


def config_of(arm: Arm, *, epochs: int | None, device: str) -> TrainConfig:
    """The run of an arm."""
    name, method_name, rate, seed = arm
    setup, method = SETUPS[name], METHODS[method_name]
    model = setup.model + ("_truncated" if method.truncated else "")
    return TrainConfig(
        model=f"{HERE}:{model}",
        data=setup.data,
        task=setup.task,
        stages=setup.stages,
        objective="anp" if method.options else "greedy",
        objective_options=method.options,
        epochs=epochs or setup.epochs,
        evaluate_every=epochs or setup.epochs,
        lr=rate,
        weight_decay=0.0,
        seed=seed,
        threads=1,
        device=device,
        measure_bp_gap=GAP_EVERY,
    )


def study(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is missing; return a row for each set-up and method, those that diverged left out."""
    device = common.resolve_device(options.device)
    rows = []
    for name in options.setups:
        tried = [
            (name, method, rate, options.seeds[0])
            for method in options.methods
            for rate in (METHODS[method].rates[-2:-1] if options.quick else METHODS[method].rates)
        ]
        runs = dict(trained(tried, options, device))
        best = {
            method: min(found, key=lambda arm: training_loss(runs[arm]))[2]
            for method in options.methods
            if (found := [arm for arm in runs if arm[1] == method])
        }
        more = [
            (name, method, rate, seed)
            for seed in options.seeds[1:]
            for method, rate in best.items()
        ]
        runs |= dict(trained(more, options, device))
        for method, rate in best.items():
            own = [run for arm, run in runs.items() if arm[1:3] == (method, rate)]
            rows.append(row_of(name, method, rate, own))
    return rows


def trained(
    arms: Sequence[Arm], options: argparse.Namespace, device: str
) -> Iterator[tuple[Arm, Run]]:
    """Yield the finished runs; those that diverge are said and left out."""
    configs = [config_of(arm, epochs=options.epochs, device=device) for arm in arms]
    for index, run in training.train_those_that_converge(
        configs, [str(arm) for arm in arms], jobs=options.jobs, keep=options.keep
    ):
        print(f"{arms[index]}: training loss {training_loss(run):.4f}", flush=True)
        yield arms[index], run


def training_loss(run: Run) -> float:
    """Mean of the last stage's training loss over the last 50 batches."""
    loss = run.last_training(run.config.stages, "loss", batches=50)
    return math.inf if loss is None else loss


def row_of(setup: str, method: str, rate: float, runs: Sequence[Run]) -> dict[str, Any]:
    """Collect the figures of a method over its seeds."""
    last = [run.summary["stages"][-1]["figures"]["eval"] for run in runs]
    cosines = [
        record["update_cosine"]
        for run in runs
        for record in run.metrics
        if record["event"] == "bp_gap" and record["stage"] == 1
    ]
    regression = SETUPS[setup].task == "regression"
    return {
        "setup": setup,
        "method": method,
        "rate": rate,
        "seeds": len(runs),
        "training_loss": common.spread([training_loss(run) for run in runs]),
        "accuracy": None if regression else common.spread([each["accuracy"] for each in last]),
        "mse": common.spread([each["rmse"] ** 2 for each in last]) if regression else None,
        "update_cosine": common.spread(cosines),
        "command": runs[0].command(),
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for each set-up."""
    for name in dict.fromkeys(row["setup"] for row in rows):
        table = []
        for row in rows:
            if row["setup"] != name:
                continue
            figure = row["mse"] or row["accuracy"]
            scale, digits = (1, 4) if row["mse"] else (100, 1)
            sd = "" if figure["sd"] is None else f" ± {scale * figure['sd']:.{digits}f}"
            table.append(
                (
                    row["method"],
                    f"{row['rate']:g}",
                    f"{row['training_loss']['mean']:.3f}",
                    f"{scale * figure['mean']:.{digits}f}{sd}",
                    f"{row['update_cosine']['mean']:.3f}",
                )
            )
        what = "test MSE" if SETUPS[name].task else "test accuracy, %"
        columns = ("method", "rate", "training loss", what, "cosine with BP's gradient")
        common.print_table(SETUPS[name].title, columns, table)
    if any(row["setup"] == "mackey-glass" for row in rows):
        print(f"persistence: test MSE {sequences.persistence():.4f}; the mean: about 1")


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """What was expected, where the study has the figures."""
    found = {(row["setup"], row["method"]): row for row in rows}
    targets = []
    for name, better, worse in (
        ("last", "ANP, trajectory", "ANP, released"),
        ("last", "ANP, trajectory", "NP"),
        ("last", "NP", "WP"),
        ("every", "ANP, trajectory, decorrelated", "ANP, trajectory"),
    ):
        if (name, better) in found and (name, worse) in found:
            one, two = (found[name, each]["accuracy"]["mean"] for each in (better, worse))
            targets.append(common.at_least(f"{name}: accuracy, {better} - {worse}", one - two, 0))
    if ("last", "NP") in found:
        cosine = found["last", "NP"]["update_cosine"]["mean"]
        targets.append(common.at_least("last: cosine of NP with BP's gradient", cosine, 0.01))
    return targets


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file")
    add(
        "--quick",
        action="store_true",
        help="four methods at one rate and seed, 10 epochs: below 3 minutes",
    )
    add("--setups", nargs="+", choices=[*SETUPS], default=[*SETUPS], metavar="NAME")
    add("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], metavar="NAME")
    add("--seeds", type=int, nargs="+", default=[*SEEDS])
    add("--epochs", type=int, help="in place of the set-up's own")
    add("--keep", type=Path, metavar="DIR", help="keep runs there, and go on with those there")
    add("--device", default="cpu", help="auto, cpu or cuda (%(default)s)")
    add("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.setups, options.seeds, options.epochs = ["last"], [0], options.epochs or 10
        options.methods = QUICK
    return options


def main() -> None:
    """Train what is missing, print, write."""
    options = parse(sys.argv[1:])
    common.check_writable(options.json)
    rows = study(options)
    targets = targets_of(rows)
    show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1, device=options.device),
        results=rows,
        targets=targets,
    )


if __name__ == "__main__":
    common.run_main(main)
