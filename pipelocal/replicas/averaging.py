"""``--replicate ddp``: synchronises the replicas of a stage at updates, by DistributedDataParallel.

After each update all replicas are bit-identical: their parameters, and the averaged BatchNorm statistics.
In between, each has only the gradients of its own batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch.nn.parallel import DistributedDataParallel

from pipelocal.replicas.carrier import Carrier
from pipelocal.replicas.hook import Compression
from pipelocal.replicas.together import Alikeness, Together
from pipelocal.stage.replicas import Wait, Weight
from pipelocal.stage.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


class DataParallel(Together):
    """A replica that holds the whole stage.

    Args:
        stage: the stage, already identical on all replicas.
        group: the replicas.
        compress: registers a communication hook; None for no hook.
        same_batches: see :class:`~pipelocal.replicas.together.Alikeness`.
    """

    def __init__(
        self,
        stage: Stage,
        group: ReplicaGroup,
        compress: Callable[[DistributedDataParallel], Compression] | None = None,
        *,
        same_batches: bool = False,
    ) -> None:
        super().__init__(stage, group)
        carrier = Carrier(stage.body, stage.head, stage.own_objective)
        trained = [p for p in carrier.parameters() if p.requires_grad]
        self._alikeness = Alikeness(stage, group, lambda: trained, same_batches=same_batches)
        with warnings.catch_warnings():
            # Since torch 2.13: the replacement of this argument still broadcasts buffers at the start.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
            self._ddp = group.together(
                lambda: DistributedDataParallel(
                    carrier, process_group=group.device, broadcast_buffers=False
                )
            )
        self._compression: Compression | None = None
        if compress is not None:
            self._compression = group.together(lambda: compress(self._ddp))
        else:
            group.together(self._settle_buckets)

    def _settle_buckets(self) -> None:
        """Run one averaging, after which DDP rearranges its buckets, so that resumed runs have equal buckets.

        The buckets decide how sums over three or more replicas are rounded.
        """
        self._ddp().backward()
        self._ddp.zero_grad(set_to_none=True)

    def begin_average(self, weight: Weight) -> Wait[Weight]:
        if self._compression is not None:
            self._compression.begin(self._stage.updated_at)
        wait = self._group.begin(lambda: self._average(weight))

        def finish() -> Weight:
            total = wait()
            self.sent_bytes += self._all_reduced_bytes()
            if self._compression is not None:
                self.sent_bytes = self._compression.sent_bytes
            return total

        return finish

    def _average(self, weight: Weight) -> Weight:
        finish = self._alikeness.begin(weight)
        self._ddp().backward()
        return finish()
