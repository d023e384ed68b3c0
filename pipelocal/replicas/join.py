"""Makes one of the replicas of a stage: what averages their gradients, and their BatchNorm."""

from __future__ import annotations

from functools import partial

from torch.nn.parallel import DistributedDataParallel

from pipelocal.options import without_number
from pipelocal.replicas.averaging import DataParallel
from pipelocal.replicas.compression import compress
from pipelocal.replicas.hook import Compression
from pipelocal.replicas.options import ReplicaOptions
from pipelocal.replicas.sync_batchnorm import synchronise_norms
from pipelocal.replicas.together import Together
from pipelocal.seeding import derive_seed
from pipelocal.stage.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


def join_replicas(stage: Stage, group: ReplicaGroup, how: ReplicaOptions, *, seed: int) -> None:
    """Have a stage train together with its replicas from now on.

    Args:
        stage: as it begins, the same on all replicas.
        group: the replicas.
        how: what averages their gradients, and their norms' statistics.
        seed: the run's.

    Raises:
        StageError: a replica is gone, or hangs.
    """
    if how.sync_batchnorm:
        for part in stage.modules:
            synchronise_norms(part, group.device, run=group.together)
    if stage.frozen:  # which DDP would refuse
        stage.join(Together(stage, group))
        return
    same_batches = how.sync_batchnorm
    if how.replicate == "fsdp":
        # Here, for it takes most of a second to import.
        from pipelocal.replicas.sharding import FullyShard

        stage.join(FullyShard(stage, group, same_batches=same_batches))
        return
    compression = None
    if how.compress is not None:
        compression = partial(_register, how, group, derive_seed(seed, "compress", stage.number))
    stage.join(DataParallel(stage, group, compression, same_batches=same_batches))


def _register(
    how: ReplicaOptions, group: ReplicaGroup, seed: int, ddp: DistributedDataParallel
) -> Compression:
    assert how.compress is not None
    numbers = how.compress_numbers
    return compress(
        ddp,
        without_number(how.compress),
        group.device,
        seed=seed,
        share=numbers["sparse-sign"],
        rank=int(numbers["powersgd"]),
    )
