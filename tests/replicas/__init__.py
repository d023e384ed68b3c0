"""What the tests of replicas share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.launching import start, world_of


def together(folder: Path, body: Callable[[dist.ProcessGroup], None], size: int) -> None:
    """Run ``body`` on the group of ``size`` real ranks; it must come to a good end on each."""

    def on_rank(rank: int) -> None:
        torch.set_num_threads(1)
        world_of(rank)
        group = dist.group.WORLD
        assert group is not None
        body(group)
        dist.barrier()
        dist.destroy_process_group()

    ranks = start(folder, on_rank, size)
    codes = ranks.wait()
    assert codes == [0] * size, f"exit codes {codes}; output:\n{ranks.output()}"


def same_on_all(tensor: torch.Tensor, group: dist.ProcessGroup) -> bool:
    """Whether all ranks have the same bits."""
    copies = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(copies, tensor.contiguous(), group=group)
    return all(torch.equal(copy, tensor) for copy in copies)
