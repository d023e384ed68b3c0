"""Step time with ``--compile`` and ``--cuda-graphs``, beside none: back-propagation and pipelocal's stages.

All trainings take turns in one process, round by round. A step's time is the median over records of eight
batches, the first ones, in which it compiles, left out::

    python benchmarks/compile/run.py --quick --json compile.json
    python benchmarks/compile/run.py --device cuda --json compile.json
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks import common, torchrun, training
from pipelocal.config import TrainConfig
from pipelocal.errors import PipelocalError
from pipelocal.ranks.host import set_up_host

Row = dict[str, Any]
NONE, GRAPHS = "none", "cuda-graphs"
METHODS: dict[str, dict[str, Any]] = {
    "BP": {"objective": "bp"},
    "pipelocal, K = 4": {"objective": "greedy", "stages": 4},
}
LOG_EVERY = 8


def main() -> None:
    """Time, print, write after every row."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--quick", action="store_true", help="a short form of under 3 minutes")
    parser.add_argument("--models", nargs="+", default=["resnet20", "vit_small"])
    parser.add_argument("--ways", nargs="+", help=f"back ends of torch.compile, and {GRAPHS}")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3, help="all runs in turns, so many times")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    options = parser.parse_args()
    device = common.resolve_device(options.device)
    options.ways = options.ways or ["inductor", *([GRAPHS] if device == "cuda" else [])]
    if options.quick:
        options.models, options.ways = ["mlp"], ["aot_eager"]
        options.batch_size, options.steps, options.rounds = 16, 48, 1
    common.check_writable(options.json)
    set_up_host(1)
    found: dict[tuple[str, str, str], list[float | str]] = {}
    for _ in range(options.rounds):
        for model in options.models:
            for way in (NONE, *options.ways):
                for method in METHODS:
                    config = config_of(model, method, way, device, options)
                    found.setdefault((model, method, way), []).append(step_ms(config))
        rows = rows_of(found)
        common.write_result(
            options.json,
            environment={
                **common.describe_environment(threads=1, device=device),
                "batch_size": options.batch_size,
            },
            results=rows,
            targets=[],
        )
    common.print_table(
        "step time in one process",
        ("model", "method", "way", "ms", "over none"),
        [
            (
                row["model"],
                row["method"],
                row["way"],
                row["error"] or f"{row['ms']:.2f}",
                f"{row['over_none']:.2f}" if row["over_none"] else "-",
            )
            for row in rows
        ],
    )


def config_of(
    model: str, method: str, way: str, device: str, options: argparse.Namespace
) -> TrainConfig:
    """What is trained in one of the ways."""
    return TrainConfig(
        model=model,
        batch_size=options.batch_size,
        max_steps=options.steps,
        epochs=10_000,
        evaluate_every=10_000,
        log_every=LOG_EVERY,
        device=device,
        plain=True,
        compile=None if way in (NONE, GRAPHS) else way,
        cuda_graphs=way == GRAPHS,
        **METHODS[method],
    )


def step_ms(config: TrainConfig) -> float | str:
    """A training's step time in ms, or the line that it ended in."""
    torch.compiler.reset()  # which would stop compiling after some models
    gc.collect()
    try:
        metrics = training.metrics_here(config)
    except PipelocalError as error:
        print(error, flush=True)
        return str(error)
    last = max(line["stage"] for line in metrics)
    ms = 1000 * torchrun.seconds_of_a_batch(metrics, last, config.batch_size)
    print(f"{config.model}, {config.objective}: {ms:.2f} ms", flush=True)
    return ms


def rows_of(found: Mapping[tuple[str, str, str], Sequence[float | str]]) -> list[Row]:
    """A row for each, with the medians of its time and of its ratio to the same method without either."""
    rows = []
    for (model, method, way), rounds in found.items():
        row: Row = {"model": model, "method": method, "way": way, "ms": None, "over_none": None}
        times = [each for each in rounds if not isinstance(each, str)]
        row["error"] = next((each for each in rounds if isinstance(each, str)), None)
        row["ms_each_round"] = times
        if row["error"] is None:
            row["ms"] = statistics.median(times)
            none = found[model, method, NONE]
            pairs = [(a, b) for a, b in zip(times, none, strict=True) if not isinstance(b, str)]
            row["over_none"] = statistics.median(a / b for a, b in pairs) if pairs else None
        rows.append(row)
    return rows


if __name__ == "__main__":
    common.run_main(main)
