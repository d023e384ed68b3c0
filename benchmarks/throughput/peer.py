"""What a user would train the same model with otherwise; run by torchrun, one process a rank.

Pipeline schedules of ``torch.distributed.pipelining`` over the stages of a cut, data parallelism
(``DDP``), and back-propagation in one process (``BP``). All do the same work a step: one global
batch, forward, backward, one step of SGD with momentum. Rank 0 prints the median seconds of a step
as its last line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.nn.parallel import DistributedDataParallel

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.models.in_place import disable_inplace
from pipelocal.ranks.host import set_up_host
from pipelocal.run.blueprint import Blueprint
from pipelocal.stage.layout import laid_out, put_channels_last
from pipelocal.tasks.classification import cross_entropy

NOT_COUNTED = 3
"""First steps, which pay for what is done once."""

SINGLE = {
    "GPipe": pipelining.ScheduleGPipe,
    "1F1B": pipelining.Schedule1F1B,
}
"""Schedules of one stage a rank."""
MULTI = {
    "interleaved 1F1B": pipelining.ScheduleInterleaved1F1B,
    "zero bubble": pipelining.ScheduleInterleavedZeroBubble,
}
"""Schedules of one or several stages a rank, dealt out in turn."""

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How all methods compute: as ``--autocast bf16`` and ``--channels-last`` of pipelocal."""

    bf16: bool = False
    channels_last: bool = False

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """The module's output, under autocast if it is asked for."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out: Tensor = module(x)
            return out

    def lay_out(self, module: nn.Module, x: Tensor) -> Tensor:
        """Put the weights in the layout that is asked for; the input in it."""
        if self.channels_last:
            put_channels_last(module)
        return laid_out(x, channels_last=self.channels_last)


PLAIN = Compute()


def main() -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cut", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="autocast; bf16 between stages too")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--few-messages", action="store_true", help="of DDP: gradients in one")
    options = parser.parse_args()
    few = {"broadcast_buffers": False, "bucket_cap_mb": 1000} if options.few_messages else {}
    compute = Compute(bf16=options.bf16, channels_last=options.channels_last)
    set_up_host(options.threads)
    dist.init_process_group("gloo")
    blueprint = blueprint_of(
        TrainConfig(model=options.model, data=options.data, cut=options.cut, objective="greedy")
    )
    x, target = random_batch(blueprint, options.batch_size)
    if options.method in ("BP", "DDP"):
        ddp = few if options.method == "DDP" else None
        step = plain_step(blueprint, x, target, ddp=ddp, compute=compute)
    else:
        parts = options.micro_batches
        step = pipeline_step(blueprint, options.method, parts, x, target, compute=compute)
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    dist.barrier()
    if dist.get_rank() == 0:
        print(statistics.median(seconds[NOT_COUNTED:]), flush=True)
    sys.stdout.flush()
    os._exit(0)  # live DDP objects can deadlock destroy_process_group


def random_batch(blueprint: Blueprint, rows: int) -> tuple[Tensor, Tensor]:
    """Samples ``[rows, ...]`` and labels, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    chain = blueprint.chain
    shape = (rows, *blueprint.info.target_shape)
    target = torch.randint(blueprint.classes, shape, generator=generator)
    if chain.input_dtype.is_floating_point:
        return torch.randn(rows, *chain.input_shape, generator=generator), target
    return torch.randint(blueprint.classes, (rows, *chain.input_shape), generator=generator), target


def plain_step(
    blueprint: Blueprint,
    x: Tensor,
    target: Tensor,
    *,
    ddp: dict[str, Any] | None,
    compute: Compute = PLAIN,
) -> Step:
    """A step of the whole model; with DDP, which takes these options, on this rank's share of the rows."""
    model: nn.Module = blueprint.chain.build_whole(seed=0)
    x = compute.lay_out(model, x)
    if ddp is not None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        x, target = x.chunk(ranks)[rank], target.chunk(ranks)[rank]
        model = DistributedDataParallel(model, **ddp)
    optimizer = sgd(model)

    def step() -> None:
        out = compute.run(model, x).float()
        cross_entropy(out, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def pipeline_step(
    blueprint: Blueprint,
    method: str,
    micro_batches: int,
    x: Tensor,
    target: Tensor,
    *,
    compute: Compute = PLAIN,
) -> Step:
    """A step of a pipeline schedule; stage i is on rank i modulo the ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    numbers = range(rank, blueprint.stages, ranks)
    modules: list[nn.Module] = [build_part(blueprint, number, compute) for number in numbers]
    stages: list[Any] = [
        pipelining.PipelineStage(module, number, blueprint.stages, torch.device("cpu"))
        for number, module in zip(numbers, modules, strict=True)
    ]
    arguments: dict[str, Any] = {"n_microbatches": micro_batches, "loss_fn": cross_entropy}
    schedule: Any
    if method in SINGLE:
        (stage,) = stages
        schedule = SINGLE[method](stage, **arguments)
    else:
        schedule = MULTI[method](stages, **arguments)
    optimizer = sgd(nn.ModuleList(list(modules)))
    inputs = (x,) if rank == 0 else ()
    labels = {"target": target} if rank == ranks - 1 else {}

    def step() -> None:
        schedule.step(*inputs, **labels)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build_part(blueprint: Blueprint, number: int, compute: Compute) -> nn.Module:
    """Stage ``number``, from 0, as a module; the last one with the classifier."""
    cut = blueprint.cuts[number]
    module: nn.Module = blueprint.chain.build(cut.start, cut.stop, seed=0)
    last = number == blueprint.stages - 1
    if last:
        module = nn.Sequential(module, blueprint.chain.build_classifier(seed=0))
    disable_inplace(module)  # the schedules hand inputs on that must not be changed
    if compute.channels_last:
        put_channels_last(module)
    return Part(module, compute, first=number == 0, last=last)


class Part(nn.Module):
    """A stage whose output and whose input's gradient can be sent; gloo takes contiguous tensors only.

    Images that are channels last travel as ``[B, H, W, C]``, so that nothing is copied for the way.
    """

    def __init__(self, part: nn.Module, compute: Compute, *, first: bool, last: bool) -> None:
        super().__init__()
        self.part, self.compute = part, compute
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = ContiguousGradient.apply(x)  # type: ignore[no-untyped-call]
        if self.compute.channels_last and x.dim() == 4:
            x = laid_out(x, channels_last=True) if self.first else x.permute(0, 3, 1, 2)
        out = self.compute.run(self.part, x)
        if self.last:
            return out.float()
        if self.compute.bf16:
            out = out.to(torch.bfloat16)
        if self.compute.channels_last and out.dim() == 4:
            out = out.permute(0, 2, 3, 1)
        return out.contiguous()


class ContiguousGradient(torch.autograd.Function):
    """The identity; its gradient is contiguous."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """As pipelocal's stages have it by default."""
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


if __name__ == "__main__":
    main()
