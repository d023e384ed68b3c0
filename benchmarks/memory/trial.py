"""One way to train, in a process of its own: its peak memory as JSON.

Run by torchrun for several ranks, which print a line each.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks import training
from benchmarks.live_bytes import LiveBytes
from benchmarks.throughput.peer import pipeline_step, random_batch, sgd
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DATASETS, ArrayDataset, DataInfo, DatasetEntry
from pipelocal.ranks.host import set_up_host
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.contracts import Contracts
from pipelocal.system.strict_json import to_json
from pipelocal.tasks.classification import cross_entropy
from pipelocal.transport.window import ring_slots

ACCUMULATED = 4
"""Parts of the batch with gradient accumulation."""
PLAIN = ("BP", "BP, checkpointing", "BP, accumulation")
DATA = DataInfo(name="noise", sample_shape=(3, 32, 32), classes=10)
SAMPLES = 512
LOG_EVERY = {"greedy": 4, "sgr": 8}
"""Batches in a record: whole cycles of ``--reconcile-every``."""


def main() -> None:
    """Run one rank."""
    set_up()
    before = psutil.Process().memory_info().rss
    options = parse(sys.argv[1:])
    live = peak_bytes(options.method, config_of(options), options.micro_batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    found = {"live_bytes": live, "process_bytes": peak, "rank": int(os.environ.get("RANK", 0))}
    print(to_json(found), flush=True)
    sys.stdout.flush()
    os._exit(0)


def set_up() -> None:
    """One thread, and the data."""
    set_up_host(1)
    DATASETS.register(DATA.name)(DatasetEntry(DATA, noise))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--cut", default="1", help="for pipelocal and pipelines")
    parser.add_argument("--objective", default="greedy")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--saving", action="store_true", help="pipelocal's own ways to save memory")
    parser.add_argument("--accumulate", type=int, default=1, help="pipelocal's micro-batches")
    parser.add_argument("--head", default="linear", help="of pipelocal's stages")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


def config_of(options: argparse.Namespace) -> TrainConfig:
    """What a trial trains."""
    return TrainConfig(
        model=options.model,
        data=DATA.name,
        batch_size=options.batch_size // options.accumulate,
        accumulate=options.accumulate,
        cut=None if options.method in PLAIN else options.cut,
        head=options.head,
        objective="bp" if options.method in PLAIN else options.objective,
        lr=0.01,
        log_every=LOG_EVERY[options.objective],
        evaluate_every=1000,
        drop_last=True,
        max_steps=options.steps * options.accumulate,
        epochs=1000,
        plain=True,
        checkpoint_activations=1 if options.saving else None,
        step_early=options.saving,
        device=options.device,
    )


def noise(_root: Path | None, seed: int) -> ArrayDataset:
    """Images that need next to no memory to make, unlike ``synthetic``'s."""
    generator = torch.Generator().manual_seed(seed)
    shape = (SAMPLES, *DATA.sample_shape)
    x = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    y = torch.arange(SAMPLES) % DATA.known_classes
    half = (0.5,) * 3
    few = slice(0, 8)
    return ArrayDataset(
        info=DATA, train_x=x, train_y=y, test_x=x[few], test_y=y[few], mean=half, std=half
    )


def peak_bytes(method: str, config: TrainConfig, micro_batches: int) -> int:
    """Most bytes of tensors that lived at a time, with the ring of the edge to this rank."""
    if config.device == "cuda":
        run(method, config, micro_batches, [])
        return int(torch.cuda.max_memory_allocated())
    counter = LiveBytes()
    with counter:
        run(method, config, micro_batches, [])
    return counter.peak + (ring_bytes(config) if method == "pipelocal" else 0)


def seconds(method: str, config: TrainConfig) -> float:
    """Median of a step's seconds, the first ones left out."""
    found: list[float] = []
    run(method, config, 1, found)
    return statistics.median(found)


def run(method: str, config: TrainConfig, micro_batches: int, found: list[float]) -> None:
    """Train some steps.

    Args:
        method: how.
        config: what; its ``max_steps`` says how long.
        micro_batches: of a pipeline schedule.
        found: takes the seconds of steps.
    """
    if method == "pipelocal":
        run_own(config, found)
        return
    pipeline = method not in PLAIN
    if pipeline:
        dist.init_process_group("gloo")
    blueprint = blueprint_of(config)
    x, target = (t.to(config.device) for t in random_batch(blueprint, config.batch_size))
    step = (
        pipeline_step(blueprint, method, micro_batches, x, target)
        if pipeline
        else plain_step(blueprint, method, x, target)
    )
    assert config.max_steps is not None
    for number in range(config.max_steps):
        started = time.perf_counter()
        step()
        if config.device == "cuda":
            torch.cuda.synchronize()
        if number > 0:
            found.append(time.perf_counter() - started)


def run_own(config: TrainConfig, found: list[float]) -> None:
    """The trainer itself, evaluation at the end included."""
    records = training.metrics_here(config)
    if not records:
        return  # rank 0 alone takes the records
    last = max(record["stage"] for record in records)
    rates = [
        record["samples_per_second"]
        for record in records
        if record["event"] == "train" and record["stage"] == last
    ]
    found += [config.batch_size * config.accumulate / rate for rate in rates[1:]]


def plain_step(blueprint: Blueprint, method: str, x: Tensor, target: Tensor) -> Callable[[], None]:
    """Back-propagation through the whole model on one device."""
    model: nn.Module = blueprint.chain.build_whole(seed=0).to(x.device)
    optimizer = sgd(model)
    parts = ACCUMULATED if method == "BP, accumulation" else 1
    units = list(model.children())

    def forward(rows: Tensor) -> Tensor:
        if method != "BP, checkpointing":
            return model(rows)  # type: ignore[no-any-return]
        for unit in units[:-1]:
            rows = checkpoint(unit, rows, use_reentrant=False)
        return units[-1](rows)  # type: ignore[no-any-return]

    def step() -> None:
        for rows, labels in zip(x.chunk(parts), target.chunk(parts), strict=True):
            (cross_entropy(forward(rows), labels) / parts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ring_bytes(config: TrainConfig) -> int:
    """What the edge of this rank receives into, which another thread makes; 0 without one."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank == 0 or ranks == 1:
        return 0
    blueprint = blueprint_of(config)
    contracts = Contracts(config, blueprint, batch_size=config.batch_size)
    first = rank * blueprint.stages // ranks
    rows = sum(message.bytes_per_row for message in contracts.forward(first).messages)
    return ring_slots(config.window) * config.batch_size * rows


if __name__ == "__main__":
    main()
