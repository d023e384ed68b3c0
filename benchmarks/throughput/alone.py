"""The stages of a cut without edges: median seconds of a step of each, as a JSON list.

In one process the stages take turns, each with the machine for itself: the rate of the slowest one is
what a pipeline is held against. Over as many ranks as stages they run at once, one a rank, and each
rank prints a list of one: what is left of that rate when the cores share caches, memory and clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.throughput.peer import NOT_COUNTED, random_batch
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.ranks.host import set_up_host
from pipelocal.system.strict_json import to_json


def main() -> None:
    """Time the stages, one after the other, or this rank's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cut", required=True)
    parser.add_argument("--objective", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    set_up_host(1)
    config = TrainConfig(
        model=options.model,
        data=options.data,
        cut=options.cut,
        objective=options.objective,
        head="linear",
    )
    blueprint = blueprint_of(config)
    first, target = random_batch(blueprint, options.batch_size)
    # Whole cycles of reconciled and other batches, so that the mean is that of a long run.
    every = config.reconcile_every if config.objective == "sgr" else 1
    steps = -(-options.steps // every) * every
    seconds = []
    for number in own_stages(blueprint.stages):
        stage = blueprint.build_stage(number, device=torch.device("cpu"), total_steps=steps)
        rows = options.batch_size
        x = first if number == 1 else torch.randn(rows, *blueprint.output_shape(number - 1))
        delta = torch.randn(x.shape) / rows if stage.wants_delta else None
        own = []
        for step in range(NOT_COUNTED + steps):
            reconciled = (step - NOT_COUNTED) % every == 0
            started = time.perf_counter()
            stage.step(x, target, delta if reconciled else None)
            own.append(time.perf_counter() - started)
        counted = own[NOT_COUNTED:]
        cycles = [sum(counted[i : i + every]) / every for i in range(0, steps, every)]
        seconds.append(statistics.median(cycles))
    print(to_json(seconds))


def own_stages(stages: int) -> list[int]:
    """What this process runs."""
    ranks = int(os.environ["WORLD_SIZE"])
    return list(range(1, stages + 1)) if ranks == 1 else [int(os.environ["RANK"]) + 1]


if __name__ == "__main__":
    main()
