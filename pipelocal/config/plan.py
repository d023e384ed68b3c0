"""The options of ``pipelocal plan``."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipelocal.config.limits import MOST_TASKS, check_limits
from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError
from pipelocal.partition.replicas import parse_replicas


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Measure a model's units on this machine and show what a cut into stages would cost."""

    model: str = "resnet8"
    """Model, as for train."""
    data: str | None = None
    """Data set whose samples the model would be fed; by default what the model is made for: 224x224
    images of 1000 classes for torchvision's models, byte sequences for language models, digits."""
    input_shape: str | None = None
    """Shape of one sample in place of the data set's, such as 3,32,32."""
    classes: int | None = None
    """Number of classes in place of the data set's."""
    objective: str = "sgr"
    """greedy or sgr."""
    stages: int = 4
    """Number of stages."""
    cut: str | None = None
    """Where to cut, as for train; by default the planner chooses."""
    balance: str = "time"
    """What the planner's cut is for: time, memory, or count (equal numbers of units); or a registered
    partitioner of your own."""
    memory_limit: str | None = None
    """Most that a stage may need, such as 16GiB."""
    device_speeds: str | None = None
    """Relative speed of each stage's device, such as 1,1,0.5."""
    batch_size: int = 4
    """Samples in a batch."""
    head: str = TrainConfig.head
    """Auxiliary head, as for train."""
    reconcile: str = TrainConfig.reconcile
    """first-order or exact, as for train."""
    reconcile_every: int = TrainConfig.reconcile_every
    """As for train; times and bytes are means over the batches."""
    reconcile_fraction: float = TrainConfig.reconcile_fraction
    """As for train."""
    delta: str = TrainConfig.delta
    """As for train."""
    delta_size: int = TrainConfig.delta_size
    """As for train."""
    optimizer: str = TrainConfig.optimizer
    """sgd or adamw."""
    wire: str = TrainConfig.wire
    """As for train: float32, bf16 or int8."""
    window: int = TrainConfig.window
    """Batches under way on an edge, which the memory counts."""
    micro_batches: int = 8
    """Micro-batches of the back-propagation pipelines that are shown beside the plan."""
    replicas: str = "1"
    """Ranks that share the batches of a stage: one number for every stage, one for each such as 1,2,1, or
    auto: those with which --ranks ranks are fastest."""
    nodes: int = 1
    """Machines with equally many ranks each; shows which rank holds what, so that little crosses."""
    ranks: int | None = None
    """Also simulate pipelocal and other pipelines over so many ranks, one stage each. With --replicas
    auto, the ranks that there are."""
    bandwidth: str = "12.5GB/s"
    """With --ranks: what a link between neighbours carries in each direction."""
    latency: str = "20us"
    """With --ranks: what a message takes beyond that."""
    plot: str | None = None
    """Also simulate other numbers of ranks, links and batches, and draw the utilisation into this PNG
    file (needs matplotlib)."""
    device: str = "auto"
    """Where the units are measured: auto (CUDA where there is any), cpu or cuda; or meta: nothing is
    run, and times are estimated for a device of --device-flops and --device-bandwidth."""
    device_flops: str = "10TFLOPS"
    """Floating-point operations a second of the device that --device meta stands for."""
    device_bandwidth: str = "1TB/s"
    """What the memory of that device delivers."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 3
    """Each unit is run so many times, after one run that does not count; the median counts."""
    json: bool = False
    """Print JSON instead of a table."""

    def train_config(self) -> TrainConfig:
        """The training that is planned.

        Raises:
            UserError: an option of the plan alone is out of range.
        """
        check_limits(self)
        if self.ranks is not None and self.ranks * self.micro_batches > MOST_TASKS:
            raise UserError(
                f"--ranks {self.ranks} --micro-batches {self.micro_batches}: more than {MOST_TASKS} of both "
                f"multiplied take minutes to simulate: give smaller numbers"
            )
        if parse_replicas("--replicas", self.replicas, None) is None and self.ranks is None:
            raise UserError(
                f"--replicas {self.replicas}: say how many ranks there are, with --ranks"
            )
        if self.objective == "bp":
            raise UserError("--objective bp has no stages to plan: choose greedy or sgr")
        shared = {field.name for field in fields(self)} & {f.name for f in fields(TrainConfig)}
        # One replica's share of the training is planned; replicas are counted on top of it.
        values = {name: getattr(self, name) for name in shared - {"replicas"}}
        return TrainConfig(**values | {"data": self.data or TrainConfig.data})
