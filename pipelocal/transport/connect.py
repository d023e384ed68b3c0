"""Opens the edges between ranks: the contract first, then one communicator a directed edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipelocal.errors import UserError
from pipelocal.transport.contract import Contract
from pipelocal.transport.wires import GlooWire, NcclWire, PinnedWire, Wire

EDGES = ("auto", "device", "host")

GLOO_TIMEOUT = timedelta(days=1)
"""Never reached: the ends of an edge have a patience of their own, which names stage and batch."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One edge that crosses from this rank to another, or from another to this."""

    contract: Contract
    own_rank: int
    peer_rank: int

    @property
    def sending(self) -> bool:
        """Whether this rank holds the sending end."""
        return self.own_rank < self.peer_rank

    @property
    def ranks(self) -> list[int]:
        """Sender and receiver."""
        return sorted((self.own_rank, self.peer_rank))

    @property
    def peer_name(self) -> str:
        """The other end as a user knows it."""
        stage = self.contract.target if self.sending else self.contract.source
        return f"stage {stage} (rank {self.peer_rank})"


def connect(
    links: list[Link],
    *,
    device: torch.device,
    device_name: str,
    edge: str,
    put: Callable[[str, Any], None],
    wait_for: Callable[[str], Any],
) -> list[Wire]:
    """Agree on each link's contract and open its wire, in the order of ``links``.

    Args:
        links: the links of this rank.
        device: where this rank's tensors live.
        device_name: equal on two ranks only if they share the physical device.
        edge: ``auto``, ``device`` (NCCL) or ``host`` (gloo).
        put: publishes a fact to all ranks.
        wait_for: waits for a fact.

    Raises:
        UserError: the ends disagree, or NCCL was asked for where it cannot work.
    """
    for link in links:
        end = {"contract": link.contract.to_json(), "device": device_name, "edge": edge}
        put(_key(link, link.own_rank), end)
    devices = []
    for link in links:
        theirs = wait_for(_key(link, link.peer_rank))
        link.contract.check_equal(
            theirs["contract"], own_end=f"rank {link.own_rank}", other_end=f"rank {link.peer_rank}"
        )
        devices.append(theirs["device"])
    # Every second edge first: then no rank waits for a neighbour that is busy with the next one.
    wires: dict[int, Wire] = {}
    for i in sorted(range(len(links)), key=lambda i: (links[i].ranks[0] % 2, links[i].ranks[0])):
        wires[i] = _open(links[i], device, device_name, devices[i], edge)
        _first_message(links[i], wires[i])
    return [wires[i] for i in range(len(links))]


def use_nccl(link: Link, own_device: str, peer_device: str, edge: str) -> bool:
    """Whether a link goes by NCCL; both ends come to the same answer.

    Raises:
        UserError: NCCL was asked for, but it is not there or both ranks share a GPU.
    """
    both_cuda = "/cuda/" in own_device and "/cuda/" in peer_device
    shared = own_device == peer_device
    if edge == "device" and both_cuda and shared:
        raise UserError(
            f"--edge device: ranks {link.ranks[0]} and {link.ranks[1]} share one GPU, which NCCL "
            f"refuses: give each rank its own GPU, or choose --edge host"
        )
    if edge == "device" and not (both_cuda and dist.is_nccl_available()):
        raise UserError("--edge device wants NCCL and CUDA on both ranks: choose --edge host")
    return edge != "host" and both_cuda and not shared and dist.is_nccl_available()


def _key(link: Link, rank: int) -> str:
    return f"edge/{link.contract.source}/{rank}"


def _open(link: Link, device: torch.device, device_name: str, peer_device: str, edge: str) -> Wire:
    nccl = use_nccl(link, device_name, peer_device, edge)
    gloo = dist.new_group(
        link.ranks, timeout=GLOO_TIMEOUT, backend="gloo", use_local_synchronization=True
    )
    if device.type != "cuda":
        return GlooWire(link.peer_rank, gloo)
    if not nccl:
        return PinnedWire(link.peer_rank, gloo, device)
    group = dist.new_group(
        link.ranks, timeout=GLOO_TIMEOUT, backend="nccl", use_local_synchronization=True
    )
    return NcclWire(link.peer_rank, gloo, device, group)


def _first_message(link: Link, wire: Wire) -> None:
    """Connect before training: the first message on a communicator is slow."""
    word = torch.zeros(1, device=wire.device)
    if link.sending:
        wire.post_send(word, wire.mark(), 1)()
    else:
        wire.join(wire.post_receive(word, wire.mark(), 1)())
