"""Process groups of a stage's replicas, with interruptible waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pipelocal.errors import STALLED, PipelocalError, StageError, UserError
from pipelocal.ranks.breakable import Begun, InTurn
from pipelocal.system.patience import Patience
from pipelocal.transport.connect import GLOO_TIMEOUT, use_nccl
from pipelocal.transport.edge import Check
from pipelocal.transport.endpoint import Waits, first_sentence

T = TypeVar("T")

WHO_S = 0.5
"""Seconds to wait, after a lost connection, for news of which rank is lost."""


@dataclass(kw_only=True)
class ReplicaGroup:
    """The replicas of one block of stages, seen from one of them."""

    host: dist.ProcessGroup
    """Process group for tensors on the CPU."""
    device: dist.ProcessGroup
    """Process group for tensors on the stages' device; on CPUs the same as :attr:`host`."""
    mesh: DeviceMesh
    """Mesh with one axis, ``replica``; with equal replication and ranks in order, a slice of the mesh of
    all ranks, whose axes are ``stage`` and ``replica``."""
    index: int
    """Index of this rank's replica, from 0."""
    count: int
    stage: int
    """Number of a stage of these ranks, for errors."""
    computes_on: torch.device
    check: Check
    waits: Waits
    timeout_s: float
    waited_s: float = 0.0
    """Seconds spent waiting for joint calls of the replicas so far."""
    calls: InTurn = field(default_factory=InTurn)
    """Runs the joint calls: those of one replica are in the order of those of every other."""

    def begin(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin a call that all replicas make in the same order, and in which they wait for each other.

        Returns:
            A function that waits for the call, to be called once; its errors are those of :meth:`together`.
        """

        def on_own_thread() -> T:
            if self.computes_on.type == "cuda":
                torch.cuda.set_device(self.computes_on)
            return call()

        begun = self.calls.begin(on_own_thread)
        return lambda: self._wait(begun)

    def together(self, call: Callable[[], T]) -> T:
        """Run a call that all replicas make in the same order, and in which they wait for each other.

        Raises:
            StageError: another replica is gone, or hangs.
            Interrupted: another rank failed.
        """
        return self.begin(call)()

    def _wait(self, begun: Begun[T]) -> T:
        self.waits(True)
        started = time.perf_counter()
        try:
            result = begun.wait(check=self.check, timeout_s=self.timeout_s)
        except TimeoutError as error:
            raise StageError(
                f"waited for another replica for {self.timeout_s:g} s: {STALLED}",
                stage=self.stage,
                symptom=True,
            ) from error
        except PipelocalError:
            raise
        except RuntimeError as error:
            if not _is_of_a_link(error):
                raise
            self._say_who_is_gone()
            reason = first_sentence(error)
            raise StageError(
                f"lost the connection to another replica ({reason})", stage=self.stage, symptom=True
            ) from error
        self.waits(False)
        self.waited_s += time.perf_counter() - started
        return result

    def _say_who_is_gone(self) -> None:
        """Raise an error that names the lost rank, once its own connection shows which it is."""
        patience = Patience(WHO_S)
        while not patience.over():
            self.check()
            time.sleep(0.02)

    def each(self, values: Tensor) -> Tensor:
        """Gather a CPU tensor from each replica, ``[count, ...]`` in order."""
        rows = values.new_zeros(self.count, *values.shape)
        rows[self.index] = values

        def gather() -> Tensor:
            dist.all_reduce(rows, group=self.host)
            return rows

        return self.together(gather)

    def greatest(self, value: int) -> int:
        """Return the maximum over all replicas."""
        return int(self.each(torch.tensor(value)).max())


def open_group(
    blocks: Sequence[Sequence[int]],
    *,
    rank: int,
    wait_for: Callable[[str], Any],
    sharded: bool = False,
    **rest: Any,
) -> ReplicaGroup | None:
    """Open the group of this rank's replicas; return None without replicas.

    All ranks call this, with the default process group open, after :func:`~pipelocal.transport.connect`,
    whose facts about devices it uses.

    Args:
        blocks: the ranks of every block, in order of their replicas.
        rank: this rank.
        wait_for: waits for a fact.
        sharded: whether replicas scatter and gather tensors of their device, and do not only sum them.
        rest: further fields of :class:`ReplicaGroup`.

    Raises:
        UserError: they cannot, see :func:`check_sharding`.
    """
    own: dict[str, Any] = {}
    groups: list[tuple[dist.ProcessGroup, dist.ProcessGroup]] = []
    for ranks in blocks:
        if len(ranks) == 1:
            continue
        ends = [wait_for(f"device/{other}") for other in ranks]
        pairs = [(a, b) for i, a in enumerate(ranks) for b in ranks[i + 1 :]]
        by_rank = dict(zip(ranks, ends, strict=True))
        nccl = all(use_nccl(pair, by_rank[pair[0]], by_rank[pair[1]]) for pair in pairs)
        if sharded and not nccl:
            check_sharding(by_rank)
        host = dist.new_group(list(ranks), timeout=GLOO_TIMEOUT, backend="gloo")
        device = host
        if nccl:
            device = dist.new_group(list(ranks), timeout=GLOO_TIMEOUT, backend="nccl")
        groups.append((host, device))
        if rank in ranks:
            own = {"host": host, "device": device, "index": ranks.index(rank), "count": len(ranks)}
    if not groups:
        return None
    mesh = _mesh(blocks, rank, own.get("device"), rest["computes_on"].type)
    if mesh is None:
        return None
    return ReplicaGroup(**own, mesh=mesh, **rest)


def check_sharding(devices: Mapping[int, list[str]]) -> None:
    """Refuse sharded replicas on CUDA without NCCL: gloo crashes where it scatters CUDA tensors.

    Args:
        devices: of each replica's rank, its device's name and ``--edge``.

    Raises:
        UserError: one of them is on CUDA.
    """
    if any("/cuda/" in name for name, _ in devices.values()):
        ranks = ", ".join(map(str, devices))
        raise UserError(
            f"--replicate fsdp: ranks {ranks} are replicas on CUDA without NCCL between them, as they share "
            f"a GPU or have --edge host: give each rank its own GPU, or choose --replicate ddp"
        )


def _mesh(
    blocks: Sequence[Sequence[int]], rank: int, own: dist.ProcessGroup | None, device_type: str
) -> DeviceMesh | None:
    """Return the ranks as a mesh with named axes; None if this rank has no replicas."""
    # A group orders its members by rank, and a mesh of two axes must have the same order.
    lines = [*blocks, *zip(*blocks)]  # noqa: B905  used only if all have equal length
    ordered = len({len(ranks) for ranks in blocks}) == 1 and all(
        list(line) == sorted(line) for line in lines
    )
    if not ordered:
        if own is None:
            return None
        return DeviceMesh.from_group(own, device_type, mesh_dim_names=("replica",))
    across = None
    for pipeline in zip(*blocks, strict=True):
        group = dist.new_group(list(pipeline), timeout=GLOO_TIMEOUT, backend="gloo")
        across = group if rank in pipeline else across
    assert across is not None, "every rank is in a pipeline"
    assert own is not None, "and has replicas"
    ranks = torch.tensor([list(ranks) for ranks in blocks])
    whole = DeviceMesh.from_group(
        [across, own], device_type, mesh=ranks, mesh_dim_names=("stage", "replica")
    )
    return whole["replica"]


def _is_of_a_link(error: RuntimeError) -> bool:
    """Return whether an error is a lost connection, and not a bug here or in user code."""
    text = str(error).lower()
    words = ("connection", "gloo", "nccl", "socket", "peer", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in text for word in words)
