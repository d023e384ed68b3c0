"""A schedule of ``torch.distributed.pipelining`` on the stages of a cut; run by torchrun.

There is no optimizer step: it belongs to the user and not to the schedule. Rank 0
prints the median seconds of a training step as its last line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed import pipelining

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.ranks.host import set_up_host

NOT_COUNTED = 2
"""First steps, which pay for what is done once."""


def main() -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--cut", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--schedule", required=True)
    parser.add_argument("--micro-batches", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    set_up_host(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    blueprint = blueprint_of(
        TrainConfig(model=options.model, data="synthetic", cut=options.cut, objective="greedy")
    )
    chain, cut = blueprint.chain, blueprint.cuts[rank]
    module: nn.Module = chain.build(cut.start, cut.stop, seed=0)
    if rank == ranks - 1:
        module = nn.Sequential(module, chain.build_classifier(seed=0))
    stage = pipelining.PipelineStage(module, rank, ranks, torch.device("cpu"))
    schedule = make_schedule(options.schedule, stage, options.micro_batches)
    x = torch.randn(options.batch_size, *chain.input_shape)
    target = torch.randint(blueprint.classes, (options.batch_size,))
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        if rank == 0:
            schedule.step(x)
        elif rank == ranks - 1:
            schedule.step(target=target)
        else:
            schedule.step()
        seconds.append(time.perf_counter() - started)
        module.zero_grad(set_to_none=True)
    if rank == 0:
        print(statistics.median(seconds[NOT_COUNTED:]), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def make_schedule(name: str, stage: Any, micro_batches: int) -> Any:
    """The schedule called ``GPipe``, ``1F1B`` or ``ZB-H1``."""
    if name == "ZB-H1":
        return pipelining.ScheduleInterleavedZeroBubble(
            [stage], n_microbatches=micro_batches, loss_fn=F.cross_entropy
        )
    kind = {"GPipe": pipelining.ScheduleGPipe, "1F1B": pipelining.Schedule1F1B}[name]
    return kind(stage, n_microbatches=micro_batches, loss_fn=F.cross_entropy)


if __name__ == "__main__":
    main()
