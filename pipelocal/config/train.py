"""The options of ``pipelocal train``: names, which :mod:`~pipelocal.config.resolve` turns into objects.

What a run's machinery takes as it is has its options beside it: :class:`~pipelocal.run.options.RunOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.data.options import DataOptions
from pipelocal.heads.auto import DEFAULT_BUDGET
from pipelocal.options import (
    BATCHES,
    BELOW_ONE,
    DECAY,
    MOST_BATCHES,
    NORM,
    PENALTY,
    SCALE,
    SHARE,
    Limits,
    Number,
    option,
    positive,
)
from pipelocal.run.options import RunOptions

DELTA_NUMBERS = {"sketch": Number(256, Limits(1, 10**9))}
"""What ``--delta`` takes behind a name."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network, and the seed of all that is drawn."""

    model: str = "resnet8"
    """Model: mlp; allconv; local-mixer, local-mixer-m-1-16 or local-mixer-s-1-1; resnet8, 20, 32 or 110;
    torchvision's resnet18, 50, 101 or 152, vgg11_bn, vgg16_bn, vit_b_16, convnext_tiny, swin_t; vit_small;
    gpt, gpt-math, lstm, gru; rnn, rnn-last (plain recurrent layers); or your own, called with the sample
    shape and the number of classes."""
    init: str | None = None
    """Weights to start from: a .safetensors or .pt file with a state dict of the model (a classifier for
    another number of classes is left new), or the folder of an earlier run."""
    seed: int = option(0, limits=Limits(-(2**63), 2**63 - 1, why="64 bits"))
    """Seed of parameters, data order, augmentation and dropout."""


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """Where the network is cut into stages."""

    stages: int = option(4, limits=Limits(1, 10_000), of_the_bits=False)
    """Number of stages to cut the model into."""
    cut: str | None = option(None, of_the_bits=False)
    """Where to cut: the names of the units with which the second stage and those after it begin, such
    as block2,block5, or the number of units of every stage, such as 2,3,4. Overrides --stages."""
    balance: str = option("count", of_the_bits=False)
    """Where to cut without --cut: count (equal numbers of units), time (measured at the start, so that
    the slowest stage is as fast as it can be), memory (so that the largest stage is as small), or the
    folder of a finished run (as time, corrected by what its stages took)."""
    memory_limit: str | None = option(None, of_the_bits=False)
    """With --balance time or memory: most that a stage may need, such as 16GiB."""
    device_speeds: str | None = option(None, of_the_bits=False)
    """With --balance time: relative speed of each stage's device, such as 1,1,0.5."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """What every stage trains for, and by which head."""

    task: str | None = None
    """What is learnt: classification, next-token, multi-label, regression or segmentation; by default
    next-token for text, and else classification."""
    loss: str | None = None
    """Loss in place of the task's own: with --task regression mse (as it is), l1 or huber; or your own
    function of outputs and targets."""
    objective: str = "greedy"
    """greedy (each stage its own loss), sgr (the same and gradient reconciliation), infopro (early stages
    also reconstruct the image or their input), bwbpf (the last stage's body too learns by a local head),
    contsup (stages are given the image or earlier inputs again), lg-fg (forward gradients, without a
    backward pass; for local-mixer and the like), anp (the same of recurrent stages, from noise on their
    units); two that send something back: loco (each stage its loss's gradient to the one before) and pgl
    (the last loss's gradient through all stages, in one batch of --guide-every); or, in one process on
    the uncut model, bp (ordinary back-propagation; --stages does not apply) and deep-supervision (the sum
    of all stages' losses)."""
    objective_options: tuple[str, ...] = ()
    """Options of the objective itself, such as weight=2 target=input."""
    head: str = "auto"
    """Auxiliary head of every stage but the last: auto (by the model's structure, within
    --head-budget); linear or mlp (pooled, or of each token or pixel); for
    images conv (a convolution first) or dgl (cheaper: pooled first); downstream (copies of units that
    follow, and of the classifier, as few as fit; downstream=2: 2 of them, evenly spaced; =2:next: the
    next 2; =0: the classifier alone; =all); or twin (the same, starting with the real weights;
    twin=2:next); or guided (twins whose classifier is drawn to the real one, whose weights flow back,
    every --guide-every batches; guided=2:next). With @2 behind one of the last three, such as twin=3@2,
    it takes maps averaged over squares of 2x2 pixels, which makes it four times cheaper."""
    head_budget: float = option(DEFAULT_BUDGET, limits=positive(1e6))
    """With --head auto: most compute of a head, over that of the rest of the network (multiply-adds of the
    forward pass outside an average stage)."""
    head_loss: Literal["task", "supcon"] = "task"
    """Loss of auxiliary heads: task (that of --task), or supcon (supervised contrast of projections by the
    head, with a linear probe that gives the head's answers but trains nothing before it)."""
    head_smoothing: float = option(0.0, limits=Limits(0, BELOW_ONE, "a number from 0 to below 1"))
    """Label smoothing in the loss by which auxiliary heads train, such as 0.1; the classifier's has none."""
    transport_penalty: float = option(0.0, limits=PENALTY)
    """Weight, such as 1, of a further term of every stage's loss: how far units that keep the shape of
    their input move it (mean square); half as much in the second half of the stages."""
    reconcile: Literal["first-order", "exact"] = "first-order"
    """How sgr differentiates the distance: first-order (one more ordinary pass) or exact (double
    backward: slower, more memory, not for fused attention)."""
    distance: str = "cosine"
    """Distance that sgr reconciles by: cosine, relative, or squared."""
    reconcile_weight: str = "0.01"
    """Weight of the reconciliation distance against the local loss (lambda); or one for each stage but
    the first, such as 0.05,0.1,0.1."""
    reconcile_schedule: str = option("constant", seldom=True)
    """Factor of that weight: constant, warmup (rises over the first tenth of the training), decay
    (falls to zero at its end) or late (only in the second half)."""
    reconcile_every: int = option(8, limits=BATCHES)
    """Reconcile in every so many batches, with so many times the weight; delta travels with these only."""
    reconcile_fraction: float = option(0.5, limits=SHARE, seldom=True)
    """First-order: reconcile on so large a part of the batch, drawn anew each time (two passes on the
    part; with 1 one pass on all, which needs more memory)."""
    delta: str = "full"
    """What travels of the output gradient that a reconciled batch brings along: full, bf16, int8, pooled
    (over space or tokens), or sketch (a random projection to 256 numbers a sample; sketch=512 for
    another size)."""
    guide_every: int = option(8, limits=BATCHES)
    """With --objective pgl: one batch in so many is guided by the last stage's loss, whose gradient goes
    back through all stages (1: in every batch, which is back-propagation). With --head guided: batches
    between two times that the classifier's weights flow back."""
    freeze_stage: str | None = None
    """Stages that stop training and then only feed the next one, each after so many batches or on a
    plateau of its training loss, such as 1:500,2:plateau (1:0: never trained); a plateau is 3 epochs in a
    row whose mean is not 1 percent below the best one, or as many as plateau=5 says."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """What changes the weights."""

    optimizer: str = "sgd"
    """sgd or adamw."""
    lr: float | str = option(0.1, limits=positive(SCALE))
    """Learning rate at its peak; or one for each stage, such as 0.001,0.01,0.1."""
    momentum: float = option(0.9, limits=Limits(0, BELOW_ONE, "a number from 0 to below 1"))
    """Momentum of sgd, or the first beta of adamw."""
    weight_decay: float = option(5e-4, limits=Limits(0, SCALE, "a number of at least 0"))
    """Weight decay."""
    fused: bool = option(False, seldom=True)
    """Let one kernel do all of an optimizer's step: faster, and rounded a little differently."""
    schedule: str = "cosine"
    """Learning-rate schedule after the warm-up: cosine (to zero) or constant."""
    warmup_steps: int = option(0, limits=Limits(0, MOST_BATCHES))
    """Batches over which the learning rate rises linearly at the start."""
    clip_norm: float | None = option(None, limits=NORM)
    """Greatest L2 norm of a stage's gradient in an update, beyond which it is scaled down; by default any."""
    ema: float | None = option(None, limits=DECAY)
    """Keep an average of the weights too, in which after each update the average so far has this weight,
    such as 0.99; evaluate, export and load take it with averaged."""


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Where a run is written, and where its options are read."""

    out: str | None = option(None, of_the_bits=False)
    """Run folder to make; by default runs/MODEL-DATA-OBJECTIVE with a number if that is taken."""
    config: str | None = option(None, of_the_bits=False, alike=False)
    """TOML file with options of these names (dashes or underscores); the command line overrides it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    FolderOptions,
    RunOptions,
    OptimizerOptions,
    ObjectiveOptions,
    CutOptions,
    DataOptions,
    ModelOptions,
):
    """Train a model in gradient-isolated stages, on one process or, under torchrun, on many ranks.

    Wherever a name is taken, file.py:thing and package.module:thing of your own are taken too.
    """
