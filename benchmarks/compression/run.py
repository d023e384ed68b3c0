"""Gradient compression between replicas that see other labels than each other: bytes and accuracy.

Every method is trained with labels dealt evenly to the replicas and with labels dealt by class, at a
learning rate of its own: the best on training samples that were held out, for a seed that is not used
again::

    python benchmarks/compression/run.py --quick --json compression.json
    python benchmarks/compression/run.py --data-root DIR --json compression.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common
from benchmarks.common import BenchmarkError, Target
from benchmarks.compression import forked
from pipelocal.data import data_info

HERE = Path(__file__).resolve().parent
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FIRST_RATE = 0.1
FULL, BF16, SIGN = "full precision", "bf16", "sign"
STAGES = 2

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to average gradients."""

    name: str
    options: tuple[str, ...] = ()
    rate_of: str | None = None
    """Takes the learning rate of this method, and is not tuned; None to be tuned."""


def methods(shares: Sequence[float], ranks: Sequence[int]) -> list[Method]:
    """All of them, full precision first."""
    return [
        Method(name=FULL),
        Method(name=BF16, options=("--compress", "bf16"), rate_of=FULL),
        *(
            Method(
                name=f"powersgd, rank {rank}",
                options=("--compress", f"powersgd={rank}"),
            )
            for rank in ranks
        ),
        Method(name=SIGN, options=("--compress", "sign")),
        *(
            Method(
                name=f"sparse-sign {share:g}",
                options=("--compress", f"sparse-sign={share:g}"),
            )
            for share in shares
        ),
    ]


def main() -> None:
    """Tune, train, print, write."""
    options = _parse()
    common.check_writable(options.json)
    if not options.quick and options.data_root is None and options.data != "digits":
        raise BenchmarkError(f"--data {options.data}: say where its files are, with --data-root")
    all_methods = methods(options.shares, options.ranks)
    rows: list[Row] = []
    for skew in options.skews:
        rates: dict[str, float] = {}
        for method in all_methods:
            if method.rate_of is None:
                tuning = tune(method, skew, options)
                rates[method.name] = best(tuning) if tuning else options.rates[0]
                rows += tuning
            else:
                rates[method.name] = rates[method.rate_of]
            for seed in options.seeds:
                rows.append(trained(method, skew, rates[method.name], seed, options, tuning=False))
    lines = summed_up(rows)
    targets = make_targets(lines)
    show(lines)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1),
        results=[*lines, *rows],
        targets=targets,
    )
    plot(lines, options.json.with_suffix(".png"))


def _parse() -> argparse.Namespace:
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument(
        "--quick", action="store_true", help="a short form of under 3 minutes, on digits"
    )
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-root", help="folder of the data set's files")
    parser.add_argument("--samples", type=int, default=6144, help="different ones to train on")
    parser.add_argument("--passes", type=int, default=6, help="over the samples")
    parser.add_argument("--held-out", type=int, default=5000, help="training samples to tune on")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="of each replica")
    parser.add_argument("--skews", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.02, 0.1, 0.3])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2], help="of powersgd")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=list(RATES), help="to choose from"
    )
    parser.add_argument("--tuning-seed", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    options.rates = sorted(options.rates)
    if options.tuning_seed in options.seeds:
        raise BenchmarkError(f"--tuning-seed {options.tuning_seed} is one of --seeds: give another")
    if options.quick:
        options.data, options.samples, options.passes, options.held_out = "digits", 1152, 2, 256
        options.rates, options.seeds = [FIRST_RATE], [0]
        options.skews, options.shares = [1.0], [0.1]
    return options


def tune(method: Method, skew: float, options: argparse.Namespace) -> list[Row]:
    """Runs at learning rates around the best one; none where there is no choice."""

    if len(options.rates) == 1:
        return []

    def run(rate: float) -> Row:
        return trained(method, skew, rate, options.tuning_seed, options, tuning=True)

    return climb(options.rates, run)


def climb(rates: Sequence[float], run: Callable[[float], Row]) -> list[Row]:
    """Rows of neighbouring rates, until the best one has another on both sides or the rates end.

    Args:
        rates: to choose from, rising.
        run: the row of a rate.
    """
    middle = min(range(len(rates)), key=lambda i: abs(rates[i] - FIRST_RATE))
    low, high = max(middle - 1, 0), min(middle + 1, len(rates) - 1)
    rows = [run(rates[i]) for i in range(low, high + 1)]
    while True:
        if low > 0 and best(rows) == rates[low]:
            low -= 1
            rows.insert(0, run(rates[low]))
        elif high < len(rates) - 1 and best(rows) == rates[high]:
            high += 1
            rows.append(run(rates[high]))
        else:
            return rows


def best(rows: Sequence[Row]) -> float:
    """The learning rate of the most accurate row."""
    return float(max(rows, key=lambda row: row["accuracy"])["rate"])


def trained(
    method: Method,
    skew: float,
    rate: float,
    seed: int,
    options: argparse.Namespace,
    *,
    tuning: bool,
) -> Row:
    """One run. Of one whose loss became NaN or infinite the accuracy is that of guessing."""
    own = ["--data", options.data, "--replicas", str(options.replicas)]
    own += ["--batch-size", str(options.batch_size), "--samples", str(options.samples)]
    own += ["--passes", str(options.passes), "--skew", f"{skew:g}"]
    own += ["--held-out", str(options.held_out)] if tuning else []
    train = ["train", "--model", f"{HERE / 'model.py'}:groupnorm_cnn", "--stages", str(STAGES)]
    train += [
        "--objective",
        "greedy",
        "--head",
        "linear",
        "--lr",
        f"{rate:g}",
        "--seed",
        str(seed),
        "--plain",
    ]
    train += [*method.options]
    if options.data_root is not None:
        train += ["--data-root", options.data_root]
    what = f"{method.name}, skew {skew:g}, rate {rate:g}, seed {seed}"
    row: Row = {
        "part": "tuning" if tuning else "test",
        "method": method.name,
        "skew": skew,
        "rate": rate,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = Path(scratch, "run")
        arguments = [*own, *train, "--out", str(out)]
        try:
            forked.train(options.replicas, arguments, Path(scratch), what=what)
        except BenchmarkError as error:
            if "NaN or infinite" not in str(error):
                raise
            row |= {"accuracy": 1 / data_info(options.data).known_classes, "diverged": True}
        else:
            summary = json.loads((out / "summary.json").read_text())
            row |= {"accuracy": summary["eval_accuracy"], "bytes": _bytes(summary, options)}
    print(f"{what}: {row['accuracy']:.4f}{' (tuning)' if tuning else ''}", flush=True)
    return row


def _bytes(summary: Row, options: argparse.Namespace) -> float:
    """Of gradients, that a replica sends for an update; mean over the replicas and updates."""
    updates = summary["steps"] / options.replicas
    sent = sum(stage["gradient_bytes"] for stage in summary["stages"])
    return float(sent / updates / options.replicas)


def summed_up(rows: Sequence[Row]) -> list[Row]:
    """A line for each method and skew, over the seeds."""
    runs = [row for row in rows if row["part"] == "test"]
    whole = next(row["bytes"] for row in runs if row["method"] == FULL and "bytes" in row)
    lines = []
    for skew, method in dict.fromkeys((row["skew"], row["method"]) for row in runs):
        own = [row for row in runs if (row["skew"], row["method"]) == (skew, method)]
        # Of sparse signs they depend a little on what is drawn.
        sizes = [row["bytes"] for row in runs if row["method"] == method and "bytes" in row]
        size = statistics.fmean(sizes) if sizes else None
        lines.append(
            {
                "part": "summary",
                "method": method,
                "skew": skew,
                "rate": own[0]["rate"],
                "bytes_per_update": size,
                "of_full_precision": None if size is None else size / whole,
                "accuracy": common.spread([row["accuracy"] for row in own]),
                "diverged": sum("diverged" in row for row in own),
            }
        )
    return lines


def make_targets(lines: Sequence[Row]) -> list[Target]:
    """What skew costs each method, and what the sizes of gradients are worth to signs."""
    means = {(line["method"], line["skew"]): line["accuracy"]["mean"] for line in lines}
    names = list(dict.fromkeys(line["method"] for line in lines))
    skews = sorted({line["skew"] for line in lines})
    targets = []
    for name in names if len(skews) > 1 else ():
        points = 100 * (means[name, skews[-1]] - means[name, skews[0]])
        what = f"{name}: skew {skews[-1]:g} minus skew {skews[0]:g}, points of accuracy"
        targets.append(common.reported(what, points))
    for skew in skews:
        for name in names:
            if name.startswith("sparse-sign"):
                points = 100 * (means[name, skew] - means[SIGN, skew])
                what = f"{name} minus sign at skew {skew:g}, points of accuracy"
                targets.append(common.reported(what, points))
    return targets


def show(lines: Sequence[Row]) -> None:
    """Methods in lines, skews in columns."""
    skews = list(dict.fromkeys(line["skew"] for line in lines))
    columns = ["method", "bytes per update", "of full precision"]
    columns += [f"{what}, skew {skew:g}" for skew in skews for what in ("rate", "accuracy")]
    table = []
    for name in dict.fromkeys(line["method"] for line in lines):
        own = {line["skew"]: line for line in lines if line["method"] == name}
        size, share = own[skews[0]]["bytes_per_update"], own[skews[0]]["of_full_precision"]
        row = [name, *("-" if size is None else text for text in (f"{size:,.0f}", f"{share:.3f}"))]
        for skew in skews:
            row += [f"{own[skew]['rate']:g}", _accuracy_text(own[skew]["accuracy"])]
        table.append(row)
    common.print_table("accuracy in percent, mean ± standard deviation", columns, table)


def _accuracy_text(accuracy: dict[str, float | None]) -> str:
    mean, sd = accuracy["mean"], accuracy["sd"]
    assert mean is not None
    return f"{100 * mean:.2f}" if sd is None else f"{100 * mean:.2f} ± {100 * sd:.2f}"


def plot(lines: Sequence[Row], path: Path) -> None:
    """Accuracy over bytes: means, with a bar from the least to the greatest of the seeds."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    names = list(dict.fromkeys(line["method"] for line in lines))
    for skew, mark in zip(dict.fromkeys(line["skew"] for line in lines), "os^v", strict=False):
        for i, name in enumerate(names):
            line = next(line for line in lines if (line["method"], line["skew"]) == (name, skew))
            if line["bytes_per_update"] is None:
                continue
            mean, low, high = (100 * line["accuracy"][key] for key in ("mean", "min", "max"))
            axes.errorbar(
                [line["bytes_per_update"]],
                [mean],
                [[mean - low], [high - mean]],
                fmt=mark,
                color=f"C{i}",
                label=f"{name}, skew {skew:g}",
                alpha=0.7,
                capsize=3,
            )
    axes.set_xscale("log")
    axes.set(xlabel="bytes of gradients that a replica sends for an update", ylabel="accuracy, %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
