"""Step time with ``--compile``, beside none: back-propagation and pipelocal's stages, in one process.

Each training is a ``pipelocal train`` of its own, and a step's time is the median over records of eight
batches, the first ones, in which it compiles, left out::

    python benchmarks/compile/run.py --quick --json compile.json
    python benchmarks/compile/run.py --device cuda --json compile.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, torchrun
from benchmarks.common import BenchmarkError
from pipelocal.config import TrainConfig

Row = dict[str, Any]
NONE = "none"
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
    parser.add_argument("--models", nargs="+", default=["resnet20"])
    parser.add_argument("--backends", nargs="+", default=["inductor"], help="of torch.compile")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.models, options.backends = ["mlp"], ["aot_eager"]
        options.batch_size, options.steps = 16, 48
    device = common.resolve_device(options.device)
    common.check_writable(options.json)
    rows: list[Row] = []
    for model in options.models:
        for backend in (NONE, *options.backends):
            for name, own in METHODS.items():
                config = TrainConfig(
                    model=model,
                    batch_size=options.batch_size,
                    max_steps=options.steps,
                    epochs=10_000,
                    evaluate_every=10_000,
                    log_every=LOG_EVERY,
                    device=device,
                    compile=None if backend == NONE else backend,
                    **own,
                )
                rows.append(row(name, config))
                common.write_result(
                    options.json,
                    environment={
                        **common.describe_environment(threads=1, device=device),
                        "batch_size": options.batch_size,
                    },
                    results=with_ratios(rows),
                    targets=[],
                )
    common.print_table(
        "step time with torch.compile",
        ("model", "method", "back end", "ms", "over none"),
        [
            (
                each["model"],
                each["method"],
                each["backend"],
                each["error"] or f"{each['ms']:.2f}",
                f"{each['over_none']:.2f}" if each["over_none"] else "-",
            )
            for each in with_ratios(rows)
        ],
    )


def row(name: str, config: TrainConfig) -> Row:
    """A training's step time in ms, or the line that it ended in."""
    found: Row = {"model": config.model, "method": name, "backend": config.compile or NONE}
    try:
        metrics = torchrun.metrics_over_ranks(1, config)
    except BenchmarkError as error:
        found |= {"ms": None, "error": str(error)}
    else:
        last = max(line["stage"] for line in metrics)
        ms = 1000 * torchrun.seconds_of_a_batch(metrics, last, config.batch_size)
        found |= {"ms": ms, "error": None}
    print(found, flush=True)
    return found


def with_ratios(rows: list[Row]) -> list[Row]:
    """The rows with each one's time over that of the same without ``--compile``."""
    none = {(r["model"], r["method"]): r["ms"] for r in rows if r["backend"] == NONE}
    return [
        {**r, "over_none": r["ms"] / base if r["ms"] and base else None}
        for r in rows
        for base in [none[r["model"], r["method"]]]
    ]


if __name__ == "__main__":
    common.run_main(main)
