"""``--replicate ddp``: the replicas of a stage become one at an update, by DistributedDataParallel.

Behind each update all replicas are alike to the last bit: parameters, and the means of what each one's
BatchNorm has gathered. In between, each has gradients of its own batches alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch.nn.parallel import DistributedDataParallel

from pipelocal.replicas.carrier import Carrier
from pipelocal.replicas.hook import Compression
from pipelocal.replicas.together import Alikeness, Together, drop_gradients, gradients_of
from pipelocal.stage.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


class DataParallel(Together):
    """Every replica holds all of the stage.

    Args:
        stage: its parameters, already the same on all replicas.
        group: the replicas.
        compress: registers a communication hook; None for none.
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
        self._alikeness = Alikeness(stage, group, same_batches=same_batches)
        carrier = Carrier(stage.body, stage.head, stage.own_objective)
        self._parameters = [p for p in carrier.parameters() if p.requires_grad]
        with warnings.catch_warnings():
            # Of torch 2.13 on: what replaces the argument still broadcasts buffers at the start.
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
        """DDP arranges its buckets anew behind the first averaging; a run that goes on begins with one too.

        What is in which bucket decides how sums over three replicas or more are rounded.
        """
        self._ddp().backward()
        self._ddp.zero_grad(set_to_none=True)

    def average(self) -> None:
        if self._compression is not None:
            self._compression.begin(self._stage.updated_at)
        self._group.together(self._average)
        self.sent_bytes += self._all_reduced_bytes()
        if self._compression is not None:
            self.sent_bytes = self._compression.sent_bytes

    def _average(self) -> None:
        finish = self._alikeness.begin(gradients_of(self._parameters))
        self._ddp().backward()
        drop_gradients(self._parameters, finish())
