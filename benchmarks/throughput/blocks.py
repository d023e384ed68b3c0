"""All ways to train a model take turns in blocks of a second, in the same processes; run by torchrun.

What a block of one takes is held against the block of another beside it, so that what the machine does in the
meantime, which changes within minutes, is the same for both. Every rank keeps to a core of its own, but for
back-propagation in one process, which has all of them. Rank 0 prints the seconds of a step in every round as
its last line, by method.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from benchmarks.cuts import StageAlone
from benchmarks.throughput.own import Own
from benchmarks.throughput.peer import (
    MULTI,
    NOT_COUNTED,
    SINGLE,
    Step,
    pipeline_step,
    plain_step,
    random_batch,
)
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.ranks.host import set_up_host
from pipelocal.system.strict_json import to_json

ALONE, AT_ONCE = "slowest stage alone", "slowest of all stages at once"
"""Stages without edges: with the machine for itself, and with the other ranks computing too."""
OWN, LINEAR = "pipelocal", "pipelocal, linear heads"
BP, DDP = "BP, one process", "DDP"
FEWEST = 3
"""Steps of a block."""

Block = Callable[[int], float]
"""Runs so many steps on all ranks; this rank's seconds of a step, 0 where it has none to tell."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train."""

    name: str
    block: Block


def main() -> None:
    """Run one rank."""
    options = parse()
    set_up_host(1)
    dist.init_process_group("gloo")
    rank, cores = dist.get_rank(), sorted(os.sched_getaffinity(0))
    own_core = {cores[rank % len(cores)]}
    pin(own_core)
    config = TrainConfig(
        model=options.model,
        data=options.data,
        batch_size=options.batch_size,
        objective="greedy",
        lr=0.01,
        log_every=10**6,
        window=2,  # so that a block knows how many batches may be under way
    )
    contenders = list(all_contenders(config, options, own_core, set(cores)))
    steps = {each.name: steps_of_a_block(each, options.block_s) for each in contenders}
    seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
    order = random.Random(0)
    for _ in range(options.rounds):
        for each in order.sample(contenders, len(contenders)):
            seconds[each.name].append(slowest(each.block(steps[each.name])))
    if rank == 0:
        print(to_json({"steps": steps, "seconds": seconds}), flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # live DDP objects can deadlock destroy_process_group


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cut", required=True, help="of the default heads")
    parser.add_argument("--linear-cut", required=True, help="of linear heads, and of the schedules")
    parser.add_argument("--finer-cut", help="of schedules with two stages a rank")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--block-s", type=float, required=True)
    parser.add_argument("--peers", choices=("none", "few", "all"), required=True)
    return parser.parse_args()


def all_contenders(
    config: TrainConfig, options: argparse.Namespace, own_core: set[int], cores: set[int]
) -> Iterator[Contender]:
    """All ways; every rank makes them in this order."""
    ranks = dist.get_world_size()
    for name, head, cut in ((OWN, "auto", options.cut), (LINEAR, "linear", options.linear_cut)):
        own = replace(config, head=head, cut=cut)
        x, target = random_batch(blueprint_of(own), config.batch_size)
        yield Contender(name=name, block=last_stage(Own(name, own, x, target)))
        stage = StageAlone(blueprint_of(own), own, dist.get_rank() + 1, steps=10**6)
        suffix = name.removeprefix(OWN)
        yield Contender(name=f"{ALONE}{suffix}", block=in_turn(stage.step))
        yield Contender(name=f"{AT_ONCE}{suffix}", block=together(stage.step))
    if options.peers == "none":
        return
    blueprint = blueprint_of(replace(config, cut=options.linear_cut))
    for micro_batches in (ranks, 4 * ranks):
        for method in (*SINGLE, *MULTI) if options.peers == "all" else ("1F1B",):
            cut = options.finer_cut if method in MULTI else options.linear_cut
            step = pipeline_step(
                blueprint_of(replace(config, cut=cut)), method, micro_batches, x, target
            )
            yield Contender(name=f"{method}, m = {micro_batches}", block=together(step))
    yield Contender(name=DDP, block=together(plain_step(blueprint, x, target, ddp={})))
    whole = plain_step(blueprint, x, target, ddp=None)
    yield Contender(name=BP, block=with_all_cores(whole, own_core, cores))


def last_stage(own: Own) -> Block:
    """Pipelocal, as its last stage sees it."""

    def block(steps: int) -> float:
        dist.barrier()
        seconds = own.block(steps)
        return seconds if dist.get_rank() == dist.get_world_size() - 1 else 0.0

    return block


def together(step: Step) -> Block:
    """What all ranks do at once."""

    def block(steps: int) -> float:
        dist.barrier()
        return seconds_of_a_step(step, steps)

    return block


def in_turn(step: Step) -> Block:
    """What each rank does while the others wait."""

    def block(steps: int) -> float:
        seconds = 0.0
        for turn in range(dist.get_world_size()):
            dist.barrier()
            if turn == dist.get_rank():
                seconds = seconds_of_a_step(step, steps)
        return seconds

    return block


def with_all_cores(step: Step, own_core: set[int], cores: set[int]) -> Block:
    """What rank 0 does with a thread on every rank's core, while the others wait."""

    def block(steps: int) -> float:
        dist.barrier()
        if dist.get_rank() > 0:
            return 0.0
        with spread(own_core, cores):
            return seconds_of_a_step(step, steps)

    return block


@contextmanager
def spread(own_core: set[int], cores: set[int]) -> Iterator[None]:
    """Let this process use as many cores as there are ranks."""
    pin(set(sorted(cores)[: dist.get_world_size()]))
    torch.set_num_threads(dist.get_world_size())
    try:
        yield
    finally:
        torch.set_num_threads(1)
        pin(own_core)


def pin(cores: Iterable[int]) -> None:
    """Keep all threads of this process, and those to come, to some cores."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def seconds_of_a_step(step: Step, steps: int) -> float:
    """Mean seconds of so many steps."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def slowest(seconds: float) -> float:
    """The most that any rank tells, on all ranks."""
    told = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return float(told)


def steps_of_a_block(contender: Contender, block_s: float) -> int:
    """As many steps as take so long, at least a few; the first ones pay for what is done once."""
    slowest(contender.block(NOT_COUNTED))
    return max(FEWEST, round(block_s / slowest(contender.block(FEWEST))))


if __name__ == "__main__":
    main()
