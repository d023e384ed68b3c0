"""Makes one of the replicas of a stage: what averages their gradients, and their BatchNorm."""

from __future__ import annotations

from functools import partial

from torch.nn.parallel import DistributedDataParallel

from pipelocal.config import TrainConfig
from pipelocal.replicas.averaging import DataParallel
from pipelocal.replicas.compression import Compression, compress
from pipelocal.replicas.sync_norm import synchronise_norms
from pipelocal.replicas.together import Together
from pipelocal.seeding import derive_seed
from pipelocal.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


def join_replicas(stage: Stage, group: ReplicaGroup, config: TrainConfig) -> None:
    """Have a stage train together with its replicas from now on.

    Args:
        stage: as it begins, the same on all replicas.
        group: the replicas.
        config: the options.

    Raises:
        StageError: a replica is gone, or hangs.
    """
    if config.sync_batchnorm:
        for part in (stage.body, stage.head):
            synchronise_norms(part, group.device, run=group.together)
    if stage.frozen:  # which DDP would refuse
        stage.join(Together(stage, group))
        return
    same_batches = config.sync_batchnorm
    if config.replicate == "fsdp":
        # Here, for it takes most of a second to import.
        from pipelocal.replicas.sharding import FullyShard

        stage.join(FullyShard(stage, group, same_batches=same_batches))
        return
    compression = None
    if config.compress is not None:
        compression = partial(_register, config, group, stage.number)
    stage.join(DataParallel(stage, group, compression, same_batches=same_batches))


def _register(
    config: TrainConfig, group: ReplicaGroup, stage: int, ddp: DistributedDataParallel
) -> Compression:
    assert config.compress is not None
    return compress(
        ddp,
        config.compress,
        group.device,
        seed=derive_seed(config.seed, "compress", stage),
        share=config.compress_share,
        rank=config.compress_rank,
    )
