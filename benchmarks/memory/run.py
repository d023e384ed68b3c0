"""Peak memory and step time of ways to train one model with one global batch.

On one device: back-propagation, with activation checkpointing, with gradient accumulation, and
pipelocal in 2 to 16 stages. Over ranks: 1F1B and pipelocal, each stage. Auxiliary heads, their
gradients, and reconciliation count like everything else::

    python benchmarks/memory/run.py --quick --json memory.json
    python benchmarks/memory/run.py --json memory.json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, torchrun
from benchmarks.common import Target
from benchmarks.memory.trial import ACCUMULATED, PLAIN
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of, cut_of
from pipelocal.partition import to_text
from pipelocal.partition.analysed import Roofline
from pipelocal.run.costs import cost_model, partitioned

HERE = Path(__file__).parent
RANKS = 4
SAVING, SAVED = 4, ", checkpointing"
"""Stages with which ``--checkpoint-activations 1 --step-early`` are looked at too, and their row's name."""
MIB = 2**20
Row = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--model", default="resnet110", help="model (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="global batch (%(default)s)")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=6, help="timings in turns, so many times")
    parser.add_argument("--head", default="auto", help="of pipelocal's stages (%(default)s)")
    parser.add_argument("--objectives", nargs="+", default=["greedy", "sgr"])
    parser.add_argument("--device", default="cpu", help="of one device: cpu or cuda (%(default)s)")
    options = parser.parse_args()
    device = common.resolve_device(options.device)
    if options.quick:
        options.model, options.batch_size, options.stages, options.rounds = "resnet20", 32, [4], 1
    common.check_writable(options.json)
    cuts = {
        stages: memory_cut(options.model, stages, options.head)
        for stages in {*options.stages, RANKS}
    }
    base = ["--model", options.model, "--batch-size", str(options.batch_size)]
    base += ["--device", device, "--head", options.head]
    one = on_one_device(
        {stages: cuts[stages] for stages in options.stages}, options.objectives, quick=options.quick
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # bytes do not depend on who else runs
        rows: list[Row] = [*pool.map(lambda name: measure(name, [*base, *one[name]]), one)]
    seconds = time_in_turns({name: [*base, *own] for name, own in one.items()}, options.rounds)
    for row in rows:
        ratios = [a / b for a, b in zip(seconds[row["method"]], seconds["BP"], strict=True)]
        row["time_over_bp"] = statistics.median(ratios)
        row["time_over_bp_each_round"] = ratios
    if device == "cpu":  # ranks that share a GPU would share its memory
        rows += over_ranks(base, cuts[RANKS], options.objectives, quick=options.quick)
    for row in rows:
        row["memory_over_bp"] = row["live_bytes"] / rows[0]["live_bytes"]
    targets = make_targets(rows, options.head)
    show(rows)
    common.print_targets(targets)
    common.write_result(
        options.json,
        environment={
            **common.describe_environment(threads=1, device=device),
            "model": options.model,
            "batch_size": options.batch_size,
            "head": options.head,
            "cuts": cuts,
        },
        results=rows,
        targets=targets,
    )
    plot(rows, options.json.with_suffix(".png"))


def on_one_device(
    cuts: dict[int, str], objectives: Sequence[str], *, quick: bool
) -> dict[str, list[str]]:
    """The arguments of each method's trial, by its name."""
    trials = {name: ["--method", name] for name in (PLAIN[:2] if quick else PLAIN)}
    for objective in objectives:
        for stages, cut in cuts.items():
            name = f"pipelocal {objective}, K = {stages}"
            own = ["--method", "pipelocal", "--objective", objective, "--cut", cut]
            trials[name] = own
            if stages == SAVING and not quick:
                trials[f"{name}{SAVED}"] = [*own, "--saving"]
                trials[f"{name}, accumulation"] = [*own, "--accumulate", str(ACCUMULATED)]
    return trials


def memory_cut(model: str, stages: int, head: str) -> str:
    """As ``--balance memory`` cuts, found on the meta device: the same on every machine."""
    config = TrainConfig(model=model, data="synthetic", stages=stages, balance="memory", head=head)
    blueprint = blueprint_of(config)
    meter = Roofline(flops=1e13, memory_bytes_per_s=1e12)
    cut = partitioned(
        blueprint,
        cut_of(config),
        config,
        lambda: cost_model(blueprint, config, meter, batch_size=config.batch_size),
    )
    return to_text(cut.chain, cut.cuts)


def measure(name: str, arguments: Sequence[str]) -> Row:
    """Peak memory of a method on one device."""
    output = torchrun.launch(1, [str(HERE / "trial.py"), *arguments], what=name)
    found = json.loads(output.splitlines()[-1])
    print(f"{name}: {found['live_bytes'] / MIB:.0f} MiB", flush=True)
    return {"method": name, "ranks": 1, **_without_rank(found)}


def time_in_turns(methods: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each method, in each round."""
    output = torchrun.launch(
        1, [str(HERE / "turns.py"), str(rounds), json.dumps(methods)], what="step times"
    )
    seconds: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    return seconds


def over_ranks(
    base: Sequence[str], cut: str, objectives: Sequence[str], *, quick: bool
) -> list[Row]:
    """Peak memory of every rank, for 1F1B and pipelocal on the same cut."""
    counts = (RANKS,) if quick else (RANKS, 4 * RANKS)
    methods = {f"1F1B, m = {m}": ["--method", "1F1B", "--micro-batches", str(m)] for m in counts}
    for objective in objectives[-1:] if quick else objectives:
        for m in (1, *counts):
            own = ["--method", "pipelocal", "--objective", objective, "--accumulate", str(m)]
            methods[f"pipelocal {objective}, m = {m}"] = own
    rows = []
    for name, own in methods.items():
        arguments = [str(HERE / "trial.py"), *base, *own, "--cut", cut]
        output = torchrun.launch(RANKS, arguments, what=name)
        ranks = sorted(
            (json.loads(line) for line in output.splitlines() if line.startswith("{")),
            key=lambda found: int(found["rank"]),
        )
        rows += [
            {
                "method": f"{name}, rank {found['rank']}",
                "ranks": RANKS,
                **_without_rank(found),
            }
            for found in ranks
        ]
    return rows


def _without_rank(found: Row) -> Row:
    return {key: value for key, value in found.items() if key != "rank"}


def make_targets(rows: Sequence[Row], head: str) -> list[Target]:
    """Memory and time on one device, and the first stage's memory over ranks."""
    found = {row["method"]: row for row in rows}
    targets = []
    for objective, of_linear in (("greedy", 1.05), ("sgr", 1.25)):
        goal = of_linear if head == "linear" else 1.3
        for saved in ("", SAVED):
            if (row := found.get(f"pipelocal {objective}, K = 4{saved}")) is None:
                continue
            name = f"one device, {objective}, K = 4{saved}"
            memory, time = f"{name}: memory over BP's", f"{name}: time over BP's"
            targets += [
                common.at_most(memory, row["memory_over_bp"], 0.40),
                common.reported(time, row["time_over_bp_each_round"])
                if saved
                else common.at_most(time, row["time_over_bp_each_round"], goal),
            ]
            checkpointed = found["BP, checkpointing"]
            times = zip(
                *(each["time_over_bp_each_round"] for each in (row, checkpointed)), strict=True
            )
            over: dict[str, common.Figure] = {
                "memory": row["memory_over_bp"] / checkpointed["memory_over_bp"],
                "time": [ours / theirs for ours, theirs in times],
            }
            for what, ratio in over.items():
                targets.append(
                    common.at_most(f"{name}: {what} over BP's with checkpointing", ratio, 1.0)
                )
    for m in (RANKS, 4 * RANKS):
        ours, theirs = (found.get(f"{who}, m = {m}, rank 0") for who in ("pipelocal sgr", "1F1B"))
        if ours is not None and theirs is not None:
            name = f"first stage of {RANKS} ranks, m = {m}: 1F1B over pipelocal sgr"
            targets.append(common.reported(name, theirs["live_bytes"] / ours["live_bytes"]))
    return targets


def show(rows: Sequence[Row]) -> None:
    """A line for each method."""
    common.print_table(
        "peak memory of a process, heads and optimizer included",
        ("method", "live tensors, MiB", "over BP", "process, MiB", "step time over BP"),
        [
            (
                row["method"],
                f"{row['live_bytes'] / MIB:.0f}",
                f"{row['memory_over_bp']:.2f}",
                f"{row['process_bytes'] / MIB:.0f}",
                f"{row['time_over_bp']:.2f}" if "time_over_bp" in row else "-",
            )
            for row in rows
        ],
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Memory against time on one device; memory of each rank beside it."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for row in rows:
        if "time_over_bp" in row:
            left.plot(row["memory_over_bp"], row["time_over_bp"], "o")
            place = (row["memory_over_bp"], row["time_over_bp"])
            left.annotate(row["method"], place, fontsize=6)
    left.set(xlabel="peak memory over BP's", ylabel="step time over BP's", title="one device")
    own = [row for row in rows if "time_over_bp" not in row]
    right.barh([row["method"] for row in own], [row["live_bytes"] / MIB for row in own])
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=7)
    right.set(xlabel="peak of live tensors, MiB", title=f"{RANKS} ranks")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    common.run_main(main)
