"""Opens the edges between ranks: first the contract, then one communicator per directed edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipelocal.errors import UserError
from pipelocal.transport.channels import (
    FIRST_TENSOR_TAG,
    Channel,
    GlooChannel,
    NcclChannel,
    PinnedChannel,
)
from pipelocal.transport.contract import Contract

EDGES = ("auto", "device", "host")

Pair = tuple[int, ...]
"""Sending and receiving rank of an edge."""

GLOO_TIMEOUT = timedelta(days=365)
"""A timeout never reached, even if a job is suspended: edges have their own timeout, whose error names stage
and batch."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An edge between this rank and another, in either direction."""

    contract: Contract
    own_rank: int
    peer_rank: int
    sending: bool
    """Whether this rank holds the sending end."""

    @property
    def ranks(self) -> Pair:
        """Sender and receiver."""
        return (self.own_rank, self.peer_rank)[:: 1 if self.sending else -1]

    @property
    def peer_name(self) -> str:
        """Name of the other end, for users."""
        stage = self.contract.target if self.sending else self.contract.source
        return f"stage {stage} (rank {self.peer_rank})"


def connect(
    links: list[Link],
    *,
    pairs: Sequence[Pair],
    size: int,
    rank: int,
    device: torch.device,
    device_name: str,
    edge: str,
    put: Callable[[str, Any], None],
    wait_for: Callable[[str], Any],
) -> list[Channel]:
    """Agree on each link's contract and open its channel, in the order of ``links``.

    All ranks call this, even those without links, with the default process group open.

    Args:
        links: the links of this rank.
        pairs: sender and receiver of every edge of the run, identical on all ranks, with every other
            edge first, so that no rank waits for a neighbour that is busy with the next edge, and those back
            last.
        size: number of ranks.
        rank: this rank.
        device: device of this rank's tensors.
        device_name: equal on two ranks only if they share the physical device.
        edge: ``auto``, ``device`` (NCCL) or ``host`` (gloo).
        put: publishes a fact to all ranks.
        wait_for: waits for a fact.

    Raises:
        UserError: the ends disagree, or NCCL was requested but cannot work.
    """
    put(f"device/{rank}", [device_name, edge])
    for link in links:
        put(_key(link, rank), link.contract.to_json())
    for link in links:
        link.contract.check_equal(
            wait_for(_key(link, link.peer_rank)),
            own_end=f"rank {rank}",
            other_end=f"rank {link.peer_rank}",
        )
    ends = [wait_for(f"device/{other}") for other in range(size)]
    groups = {
        pair: _open_groups(pair, nccl=use_nccl(pair, ends[pair[0]], ends[pair[1]]))
        for pair in pairs
    }
    channels = {link.ranks: _channel(link, device, *groups[link.ranks]) for link in links}
    for pair in pairs:
        for link in links:
            if link.ranks == pair:
                _first_message(link, channels[pair])
    return [channels[link.ranks] for link in links]


def use_nccl(ranks: Pair, end: list[str], other_end: list[str]) -> bool:
    """Return whether an edge, or a group of replicas, uses NCCL; all ranks get the same answer.

    Args:
        ranks: the ranks of both ends.
        end: device name and ``--edge`` of the sending rank.
        other_end: device name and ``--edge`` of the receiving rank.

    Raises:
        UserError: NCCL was requested, but it is not available or both ranks share a GPU.
    """
    (device, edge), (other_device, _) = end, other_end
    both_cuda = "/cuda/" in device and "/cuda/" in other_device
    shared = device == other_device
    if edge == "device" and both_cuda and shared:
        raise UserError(
            f"--edge device: ranks {ranks[0]} and {ranks[1]} share one GPU, which NCCL refuses: "
            f"give each rank its own GPU, or choose --edge host"
        )
    if edge == "device" and not (both_cuda and dist.is_nccl_available()):
        raise UserError("--edge device wants NCCL and CUDA on both ranks: choose --edge host")
    return edge != "host" and both_cuda and not shared and dist.is_nccl_available()


def _key(link: Link, rank: int) -> str:
    return f"edge/{link.contract.source}/{link.contract.target}/{rank}"


def _open_groups(pair: Pair, *, nccl: bool) -> tuple[dist.ProcessGroup, dist.ProcessGroup | None]:
    """Open a gloo group and, if requested, an NCCL group of two ranks.

    Every rank creates every group, in the same order, as ``new_group`` requires. (Its option
    ``use_local_synchronization`` would avoid that, but derives the group's name from the number of
    groups that a rank has created so far, which differs here: the first and the last rank have one
    edge, the others two.)
    """
    ranks = list(pair)
    gloo = dist.new_group(ranks, timeout=GLOO_TIMEOUT, backend="gloo")
    return gloo, dist.new_group(ranks, timeout=GLOO_TIMEOUT, backend="nccl") if nccl else None


def _channel(
    link: Link, device: torch.device, gloo: dist.ProcessGroup, nccl: dist.ProcessGroup | None
) -> Channel:
    if device.type != "cuda":
        return GlooChannel(link.peer_rank, gloo)
    if nccl is None:
        return PinnedChannel(link.peer_rank, gloo, device)
    return NcclChannel(link.peer_rank, gloo, device, nccl)


def _first_message(link: Link, channel: Channel) -> None:
    """Send a first message before training, because the first one on a communicator is slow."""
    word = torch.zeros(1, device=channel.device)
    if link.sending:
        channel.prepare_send(word, channel.mark(), FIRST_TENSOR_TAG)()
    else:
        channel.post_receive(word, channel.mark(), FIRST_TENSOR_TAG)(1)
