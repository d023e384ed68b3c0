"""What a gloo link between two ranks takes; run by torchrun, rank 0 prints JSON.

Messages go forth and back; half of the median round trip is the time of one.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist

from pipelocal.system.strict_json import to_json

LARGE = 2**22
"""Bytes."""
REPEATS = 50


def main() -> None:
    """Run one rank."""
    dist.init_process_group("gloo")
    small, large = seconds_of(4), seconds_of(LARGE)
    if dist.get_rank() == 0:
        rate = LARGE / max(large - small, 1e-9)
        print(to_json({"latency_s": small, "bytes_per_s": rate}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def seconds_of(size: int) -> float:
    """Of one message of so many bytes."""
    message = torch.zeros(size // 4)
    first = dist.get_rank() == 0
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for sends in (first, not first):
            if sends:
                dist.send(message, dst=1 if first else 0)
            else:
                dist.recv(message, src=1 if first else 0)
        seconds.append((time.perf_counter() - started) / 2)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
