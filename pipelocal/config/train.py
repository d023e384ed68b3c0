"""The options of ``pipelocal train``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelocal.partition.replicas import parse_replicas
from pipelocal.stage.freezing import Freezing, parse_freezing
from pipelocal.system.quantities import parse_weights


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a model in gradient-isolated stages, on one process or, under torchrun, on many ranks.

    Wherever a name is taken, file.py:thing and package.module:thing of your own are taken too.
    """

    model: str = "resnet8"
    """Model: mlp; allconv; resnet8, 20, 32 or 110; torchvision's resnet18, 50, 101 or 152, vgg11_bn,
    vgg16_bn, vit_b_16, convnext_tiny, swin_t; vit_small; gpt, gpt-math, lstm, gru; or your own, called
    with the sample shape and the number of classes."""
    data: str = "digits"
    """Data set: digits (comes with scikit-learn); fashion-mnist, cifar10, cifar100 (read from
    --data-root); text (bytes in sequences of 128; text16 to text1024 for other lengths), or
    synthetic."""
    data_root: str | None = None
    """Folder that holds the files of the data set, or for text the file itself; nothing is
    downloaded."""
    train_samples: int | None = None
    """Train on the first so many samples only, to study small data; the test part stays whole."""
    objective: str = "sgr"
    """greedy (each stage its own loss), sgr (the same and gradient reconciliation), or bp (ordinary
    back-propagation through the uncut model, one process; --stages does not apply)."""
    stages: int = 4
    """Number of stages to cut the model into."""
    epochs: int = 20
    """Passes over the training data."""
    max_steps: int | None = None
    """Stop after this many batches, also within an epoch."""
    batch_size: int = 64
    """Samples in a batch."""
    lr: float = 0.1
    """Learning rate at its peak."""
    seed: int = 0
    """Seed of parameters, data order, augmentation and dropout."""
    out: str | None = None
    """Run folder to make; by default runs/MODEL-DATA-OBJECTIVE with a number if that is taken."""

    cut: str | None = None
    """Where to cut: the names of the units with which the second stage and those after it begin, such
    as block2,block5, or the number of units of every stage, such as 2,3,4. Overrides --stages."""
    balance: str = "count"
    """Where to cut without --cut: count (equal numbers of units), time (measured at the start, so that
    the slowest stage is as fast as it can be), or memory (so that the largest stage is as small)."""
    memory_limit: str | None = None
    """With --balance time or memory: most that a stage may need, such as 16GiB."""
    device_speeds: str | None = None
    """With --balance time: relative speed of each stage's device, such as 1,1,0.5."""
    head: str = "linear"
    """Auxiliary head of every stage but the last: linear or mlp (pooled; for labels per token, per
    token), linear-fixed (pooled; random weights that are not trained), conv (one convolution first;
    images), token, token-mlp, token-mean, or downstream (the shortest row of the units that follow, and
    the model's classifier)."""
    reconcile: str = "first-order"
    """How sgr differentiates the distance: first-order (one more ordinary pass) or exact (double
    backward: slower, more memory, not for fused attention)."""
    delta: str = "full"
    """What travels of the output gradient that a reconciled batch brings along: full, bf16, int8, pooled
    (over space or tokens), or sketch (a random projection to --delta-size numbers)."""
    delta_size: int = 256
    """Numbers of a sketch, per sample."""
    distance: str = "cosine"
    """Distance that sgr reconciles by: cosine, relative, or squared."""
    reconcile_weight: str = "0.01"
    """Weight of the reconciliation distance against the local loss (lambda); or one for each stage but
    the first, such as 0.05,0.1,0.1."""
    reconcile_schedule: str = "constant"
    """Factor of that weight: constant, warmup (rises over the first tenth of the training) or decay
    (falls to zero at its end)."""
    reconcile_every: int = 8
    """Reconcile in every so many batches, with so many times the weight; delta travels with these only."""
    reconcile_fraction: float = 0.5
    """First-order: reconcile on so large a part of the batch, drawn anew each time (two passes on the
    part; with 1 one pass on all, which needs more memory)."""
    freeze_stage: str | None = None
    """Stages that stop training and then only feed the next one, each after so many batches or on a
    plateau of its training loss, such as 1:500,2:plateau."""
    freeze_patience: int = 3
    """Epochs in a row whose mean training loss is not 1 percent below the best one, which are a plateau."""

    bp_free: bool = False
    """Form every gradient by its written-out formula, without autograd: one layer a stage (linear or
    convolution, with its norm and activation), heads linear or linear-fixed."""

    optimizer: str = "sgd"
    """sgd or adamw."""
    momentum: float = 0.9
    """Momentum of sgd, or the first beta of adamw."""
    weight_decay: float = 5e-4
    """Weight decay."""
    fused: bool = False
    """Let one kernel do all of an optimizer's step: faster, and rounded a little differently."""
    accumulate: int = 1
    """Batches whose mean gradient makes an update; what --batch-size says are then micro-batches, and no
    stage holds more than one. The last update of an epoch takes what is left."""
    schedule: str = "cosine"
    """Learning-rate schedule after the warm-up: cosine (to zero) or constant."""
    warmup_steps: int = 0
    """Batches over which the learning rate rises linearly at the start."""
    ema: float | None = None
    """Keep an average of the weights too, in which after each update the average so far has this weight,
    such as 0.99; evaluate, export and load take it with averaged."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is not full; by default it is trained on as it is."""
    evaluate_every: int = 1
    """Evaluate after every so many epochs; the end is always evaluated."""
    votes: str = "auto"
    """Whether the heads' votes for every class travel along in evaluations, by which the ensemble's accuracy
    is known: on, off, or auto (if they are on no edge more bytes than the activations)."""

    replicas: str = "1"
    """Ranks that share each stage's batches among them: one number for all stages, or one for each, such as
    1,2,1 (batches are dealt in turn, and an update is made of as many as all counts divide); or auto (by
    the measured time of each stage, for the ranks there are)."""
    replicate: str = "ddp"
    """How replicas average their gradients: ddp (DistributedDataParallel), or fsdp (fully_shard, which
    shares the optimizer's state out over them)."""
    compress: str | None = None
    """What replicas send each other of their gradients, with ddp: bf16 (over gloo gathered, which saves
    with 2 or 3 replicas only), powersgd, sign or sparse-sign; all but bf16 lose much and save much."""
    compress_share: float = 0.1
    """Of sparse-sign: share of the coordinates whose sign is sent; at a byte each below 0.24, else at two
    bits for every coordinate."""
    compress_rank: int = 2
    """Of powersgd: rank of what stands for each gradient."""
    sync_batchnorm: bool = False
    """Let BatchNorm take its statistics of all replicas' batches. They then keep step in every batch, and
    the rest of an epoch that they cannot share out evenly is left out."""

    device: str = "auto"
    """auto (CUDA where there is any), cpu or cuda."""
    threads: int = 1
    """CPU threads of each rank. With the same number, any number of ranks gives the same bits."""
    autocast: str | None = None
    """bf16: run body and head under torch.autocast in bfloat16. Parameters, optimizer, loss and
    reconciliation's difference stay float32, and so does what leaves a stage (see --wire)."""
    channels_last: bool = False
    """Keep images channels last in memory, in every stage and on the edges."""
    compile: str | None = None
    """Compile every stage's body and head with this back end of torch.compile, such as inductor (which on
    CPUs wants a C++ compiler) or aot_eager."""
    checkpoint_activations: int | None = None
    """Keep of so many units the input alone, and compute what they make again in the backward pass: less
    memory, more time, the same bits."""
    step_early: bool = False
    """Update each parameter as soon as its gradient is there, and let that go: less memory, the same bits.
    Batches that sgr reconciles are updated at their end, as without it."""
    edge: str = "auto"
    """What carries tensors between CUDA ranks: device (NCCL), host (gloo through pinned memory), or
    auto (NCCL unless ranks share a GPU). CPU ranks always use gloo."""
    wire: str = "float32"
    """How a stage's output travels to the next one, in training and evaluation: float32, bf16 (half the
    bytes), or int8 (a quarter; one scale a sample)."""
    window: int = 2
    """Most batches that a stage may have sent and the next one not yet taken. The next one keeps room for
    as many (at least 2): more of them hide a long link, and cost memory."""
    timeout: float = 300.0
    """Seconds within which a rank that waits for a neighbour in vain gives up and says which rank hangs."""
    interface: str | None = None
    """Network interface of every host, such as eth1, for gloo and NCCL; by default that which the host's
    name leads to."""
    start_timeout: float = 300.0
    """Seconds that ranks wait for each other before the first batch."""
    snapshot_every: int | None = None
    """Save a snapshot after every so many batches too, without stopping the stream."""
    snapshot_minutes: float = 5.0
    """Save a snapshot whenever so many minutes have passed. One is also saved behind an evaluation, where
    that costs less than a hundredth of the time, and when the run is told to end."""
    keep_snapshots: int = 1
    """How many of the newest snapshots stay, beside the best one by the last head's evaluation; 0 to take
    none at all: a run that is stopped then leaves nothing."""
    resume: str = "auto"
    """auto (go on with the unfinished run in --out, from its newest good snapshot), never, or a run or
    snapshot folder from which a new run begins, with other options if wanted."""
    accept_changes: bool = False
    """Go on with a run although its model's code or its data are not what they were when it began."""
    measure_bp_gap: int | None = None
    """Every so many batches, compare each stage's gradients with those of back-propagation (one process
    only; costs one more step and memory for the whole model)."""
    trace: bool = False
    """Write trace.json to the run folder: what every rank did when, for ui.perfetto.dev and for
    pipelocal timeline."""
    debug_transfers: bool = False
    """Print a line for every tensor that is sent to or received from another rank."""
    log_every: int = 20
    """Batches between two lines of metrics.jsonl, per stage."""
    plain: bool = False
    """Print lines instead of the live table; always so when the output is no terminal."""
    config: str | None = None
    """TOML file with options of these names (dashes or underscores); the command line overrides it."""

    def replica_counts(self, stages: int) -> list[int] | None:
        """The replicas of every stage; None if they are yet to be chosen.

        Raises:
            UserError: they are no numbers above 0, or not as many as stages.
        """
        return parse_replicas("--replicas", self.replicas, stages)

    @property
    def together(self) -> int:
        """Batches that all stages' replicas share out evenly, the least number of them."""
        return 1 if self.replicas == "auto" else math.lcm(*map(int, self.replicas.split(",")))

    @property
    def batches_an_update(self) -> int:
        """Whichever replicas meet them."""
        return self.accumulate * self.together

    @property
    def takes_snapshots(self) -> bool:
        """Whether markers may come on the stream."""
        return self.keep_snapshots > 0

    def reconcile_weights(self, stages: int) -> list[float]:
        """The weights of the stages from the second on.

        Raises:
            UserError: they are no numbers of at least 0, or not as many as stages but the first.
        """
        return parse_weights("--reconcile-weight", self.reconcile_weight, stages - 1)

    def freezing(self, stages: int) -> dict[int, Freezing]:
        """What says when a stage is frozen, by its number.

        Raises:
            UserError: the option is no list of stages and batches, or names a stage there is not.
        """
        if self.freeze_stage is None:
            return {}
        return parse_freezing(self.freeze_stage, stages=stages, patience=self.freeze_patience)
