"""What reconciliation buys, and what it costs: the study from which the defaults come.

Accuracy: bp, greedy and sgr in several forms, for several numbers of stages and heads, on the same
data, seeds, steps and first weights. Cost: time and memory of a training step of a middle stage,
greedy and sgr in turns::

    python benchmarks/reconciliation/run.py --quick --json reconciliation.json
    python benchmarks/reconciliation/run.py --json reconciliation.json
    python benchmarks/reconciliation/run.py --data cifar10 --data-root DIR --epochs 60 \
        --batch-size 128 --device cuda --json cifar10.json
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch

from benchmarks import common
from benchmarks.common import Run, Target
from benchmarks.live_bytes import LiveBytes
from pipelocal.build import Blueprint
from pipelocal.config import TrainConfig
from pipelocal.data import DataInfo
from pipelocal.host import set_up_host
from pipelocal.telemetry.memory import resident_bytes

FORMS: dict[str, dict[str, Any]] = {
    "greedy": {"objective": "greedy"},
    "exact": {"objective": "sgr", "reconcile": "exact", "reconcile_every": 1},
    "first-order": {"objective": "sgr", "reconcile_every": 1, "reconcile_fraction": 1.0},
    "default": {"objective": "sgr"},
}
"""Compared for every number of stages with the first head, and for every head at one number."""

FIRST_ORDER: dict[str, Any] = FORMS["first-order"]
VARIANTS: dict[str, dict[str, Any]] = {
    "weight 0.01": {**FIRST_ORDER, "reconcile_weight": "0.01"},
    "weight 0.2": {**FIRST_ORDER, "reconcile_weight": "0.2"},
    "squared, 0.1": {**FIRST_ORDER, "distance": "squared", "reconcile_weight": "0.1"},
    "relative, 0.01": {**FIRST_ORDER, "distance": "relative", "reconcile_weight": "0.01"},
    "every 4th": {**FIRST_ORDER, "reconcile_every": 4},
    "half of the rows": {**FIRST_ORDER, "reconcile_fraction": 0.5},
    "a quarter of the rows": {**FIRST_ORDER, "reconcile_fraction": 0.25},
    "weight rising": {**FIRST_ORDER, "reconcile_schedule": "warmup"},
    "weight falling": {**FIRST_ORDER, "reconcile_schedule": "decay"},
    "delta int8": {**FIRST_ORDER, "delta": "int8"},
    "delta pooled": {**FIRST_ORDER, "delta": "pooled"},
    "delta sketch 64": {**FIRST_ORDER, "delta": "sketch", "delta_size": 64},
}
"""Compared at one number of stages, with the first head."""

TRAINING_WINDOW = 50
Row = dict[str, Any]


def main() -> None:
    """Train, measure, print, write."""
    options = parse(sys.argv[1:])
    device = common.resolve_device(options.device)
    common.check_writable(options.json)
    cells = list(plan_cells(options))
    configs = [config(options, device, cell, seed) for seed in options.seeds for cell in cells]
    print(f"{len(configs)} runs", flush=True)

    def tell(_run: Run, finished: int) -> None:
        if finished % 10 == 0 or finished == len(configs):
            print(f"{finished}/{len(configs)}", flush=True)

    runs = common.train_all(configs, jobs=options.jobs, on_finish=tell)
    rows = []
    for index, cell in enumerate(cells):
        rows.append(summarise(cell, runs[index :: len(cells)]))
    costs = [cost(name, options) for name in ("first-order", "default", "exact")]
    compare_with_greedy(rows)
    targets = make_targets(rows, costs)
    show(rows, costs)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment=common.describe_environment(threads=1, device=device),
        results=[*rows, *costs],
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="result file; the plot is beside")
    add("--quick", action="store_true", help="a short form of under 3 minutes")
    add("--data", default="digits", help="data set (%(default)s)")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--model", default="resnet32", help="model (%(default)s)")
    add("--stages", type=int, nargs="+", default=[2, 4, 8, 16])
    add("--variants-at", type=int, default=4, help="stages of the variants (%(default)s)")
    add("--variants", nargs="*", default=list(VARIANTS), help="which of them (all)")
    add("--heads", nargs="+", default=["linear", "mlp"])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=12, help="passes over the training data (%(default)s)")
    add("--batch-size", type=int, default=64, help="samples in a batch (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.variants if name not in VARIANTS]
    if unknown:
        parser.error(f"--variants {unknown[0]!r}: choose of {', '.join(VARIANTS)}")
    if options.quick:
        options.model, options.stages, options.heads = "resnet8", [4], ["linear"]
        options.seeds, options.epochs = [0, 1], 6
    return options


def plan_cells(options: argparse.Namespace) -> list[Row]:
    """Every kind of run: its name, stages, head and options."""
    cells: list[Row] = [{"form": "bp", "stages": 1, "head": "-", "options": {"objective": "bp"}}]
    for stages in options.stages:
        for head in options.heads:
            for form, own in FORMS.items():
                if head == options.heads[0] or stages == options.variants_at:
                    cells.append({"form": form, "stages": stages, "head": head, "options": own})
    if not options.quick:
        for form in options.variants:
            own = VARIANTS[form]
            cell = {"form": form, "stages": options.variants_at, "head": options.heads[0]}
            cells.append({**cell, "options": own})
    return cells


def config(options: argparse.Namespace, device: str, cell: Row, seed: int) -> TrainConfig:
    """The options of one run."""
    own = {} if cell["form"] == "bp" else {"stages": cell["stages"], "head": cell["head"]}
    return TrainConfig(
        **cell["options"],
        **own,
        model=options.model,
        data=options.data,
        data_root=options.data_root,
        epochs=options.epochs,
        evaluate_every=options.epochs,  # the end is all that is looked at
        batch_size=options.batch_size,
        seed=seed,
        device=device,
    )


def summarise(cell: Row, runs: Sequence[Run]) -> Row:
    """Means over the seeds."""
    stages = [run.summary["stages"] for run in runs]
    last = [own[-1] for own in stages]
    losses = [
        run.last_training(len(own), "loss", batches=TRAINING_WINDOW)
        for run, own in zip(runs, stages, strict=True)
    ]
    cosines = [[stage["cosine"] for stage in own if stage["cosine"] is not None] for own in stages]
    return {
        "kind": "accuracy",
        **cell,
        "test_accuracy": common.spread([run.summary["eval_accuracy"] for run in runs]),
        "of_each_seed": [run.summary["eval_accuracy"] for run in runs],
        "ensemble_accuracy": common.spread([run.summary["ensemble_accuracy"] for run in runs]),
        "train_accuracy": statistics.fmean(stage["accuracy"] for stage in last),
        "train_loss": statistics.fmean(loss for loss in losses if loss is not None),
        "cosine": statistics.fmean(statistics.fmean(own) for own in cosines)
        if all(cosines)
        else None,
        "sent_bytes": statistics.fmean(sum(stage["sent_bytes"] for stage in own) for own in stages),
        "command": runs[0].command(),
    }


def compare_with_greedy(rows: list[Row]) -> None:
    """Add to every row of sgr by how many points it is better than greedy, seed by seed."""
    greedy = {
        (row["stages"], row["head"]): row["of_each_seed"] for row in rows if row["form"] == "greedy"
    }
    for row in rows:
        base = greedy.get((row["stages"], row["head"]))
        if base is not None and row["form"] != "greedy":
            gains = [100 * (a - b) for a, b in zip(row["of_each_seed"], base, strict=True)]
            row["points_over_greedy"] = common.spread(gains)


def cost(form: str, options: argparse.Namespace) -> Row:
    """Time and memory of a step of a middle stage, over greedy's."""
    model = "resnet20" if options.quick else "resnet32"
    greedy, ours = Trial("greedy", model), Trial(form, model)
    set_up_host(1)
    ratios = []
    for round_ in range(3 if options.quick else 9):
        plain, reconciled = greedy.seconds(ours.every), ours.seconds(ours.every)
        if round_ > 0:  # the first pays for what is done once
            ratios.append(reconciled / plain)
    memory = {}
    for name, trial in (("greedy", greedy), (form, ours)):
        with LiveBytes() as counter:
            trial.seconds(4)
        memory[name] = counter.peak + resident_bytes(trial.stage)
    return {
        "kind": "cost",
        "form": form,
        "model": model,
        "step_time_over_greedy": statistics.median(ratios),
        "of_each_round": ratios,
        "memory_over_greedy": memory[form] / memory["greedy"],
        "process_memory_over_greedy": peak_bytes(form, model) / peak_bytes("greedy", model),
    }


class Trial:
    """The second of four stages, with a batch for it.

    Args:
        form: how it reconciles, or greedy.
        model: which model is cut.
        rows: samples in the batch.
    """

    def __init__(self, form: str, model: str, rows: int = 64) -> None:
        info = DataInfo(name="cost", sample_shape=(3, 32, 32), classes=10)
        own = TrainConfig(**{"model": model, "stages": 4, **FORMS[form]})
        blueprint = Blueprint.draw(own, info=info)
        self.every = own.reconcile_every
        self.stage = blueprint.build_stage(2, own, device=torch.device("cpu"), total_steps=1000)
        self.x = torch.randn(rows, *blueprint.output_shape(1))
        self.target = torch.randint(10, (rows,))
        self.delta = torch.randn(self.x.shape) / rows

    def seconds(self, steps: int) -> float:
        """Of so many steps, every so many of them reconciled."""
        started = time.perf_counter()
        for step in range(steps):
            reconciled = self.stage.wants_delta and step % self.every == 0
            self.stage.step(self.x, self.target, self.delta if reconciled else None)
        return time.perf_counter() - started


def peak_bytes(form: str, model: str) -> int:
    """What a process of its own needs for the training of the stage, at most."""
    with get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_peak_bytes, (form, model)))


def _peak_bytes(form: str, model: str) -> int:
    set_up_host(1)
    Trial(form, model, rows=2).seconds(4)  # loads what is needed once
    before = psutil.Process().memory_info().rss
    Trial(form, model, rows=256).seconds(4)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def make_targets(rows: list[Row], costs: list[Row]) -> list[Target]:
    """What the defaults must keep, and where sgr beats greedy."""
    targets = []
    for row in costs:
        if row["form"] == "default":
            time_ratio, memory = row["step_time_over_greedy"], row["memory_over_greedy"]
            targets += [
                common.at_most("default sgr: mean step time over greedy", time_ratio, 1.25),
                common.at_most("default sgr: peak stage memory over greedy", memory, 1.10),
            ]
    for row in rows:
        if row["form"] == "default":
            name = f"{row['stages']} stages, {row['head']}: points of default sgr over greedy"
            targets.append(common.at_least(name, row["points_over_greedy"]["mean"], 0.0))
    return targets


def show(rows: list[Row], costs: list[Row]) -> None:
    """Print both parts."""

    def percent(spread: dict[str, float | None]) -> str:
        sd = "" if spread["sd"] is None else f" ± {100 * spread['sd']:.2f}"
        return f"{100 * (spread['mean'] or 0):.2f}{sd}"

    def points(row: Row) -> str:
        gain = row.get("points_over_greedy")
        return "-" if gain is None else f"{gain['mean']:+.2f} ± {gain['sd'] or 0:.2f}"

    common.print_table(
        "accuracy in percent, mean ± sd over the seeds",
        (
            "form",
            "stages",
            "head",
            "test",
            "over greedy",
            "ensemble",
            "train",
            "train loss",
            "cosine",
        ),
        [
            (
                row["form"],
                str(row["stages"]),
                row["head"],
                percent(row["test_accuracy"]),
                points(row),
                percent(row["ensemble_accuracy"]),
                f"{100 * row['train_accuracy']:.2f}",
                f"{row['train_loss']:.4f}",
                "-" if row["cosine"] is None else f"{row['cosine']:.3f}",
            )
            for row in rows
        ],
    )
    common.print_table(
        "a step of a middle stage over greedy's, mean over a cycle",
        ("form", "time", "memory", "peak of a process"),
        [
            (
                r["form"],
                f"{r['step_time_over_greedy']:.2f}",
                f"{r['memory_over_greedy']:.2f}",
                f"{r['process_memory_over_greedy']:.2f}",
            )
            for r in costs
        ],
    )


def plot(rows: list[Row], path: Path) -> None:
    """Test accuracy against the number of stages, a panel for each head."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    heads = list(dict.fromkeys(row["head"] for row in rows if row["form"] in FORMS))
    figure, panels = pyplot.subplots(
        1, len(heads), figsize=(5 * len(heads), 4), sharey=True, squeeze=False
    )
    (bp,) = (row for row in rows if row["form"] == "bp")
    for axes, head in zip(panels[0], heads, strict=True):
        for form in FORMS:
            own = [row for row in rows if row["form"] == form and row["head"] == head]
            axes.errorbar(
                [row["stages"] for row in own],
                [100 * row["test_accuracy"]["mean"] for row in own],
                [100 * (row["test_accuracy"]["sd"] or 0) for row in own],
                marker="o",
                capsize=3,
                label=form,
            )
        axes.axhline(100 * bp["test_accuracy"]["mean"], color="black", label="bp")
        axes.set_xscale("log", base=2)
        axes.set(title=f"head {head}", xlabel="stages", ylabel="test accuracy, %")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
