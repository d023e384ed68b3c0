"""The options of ``pipelocal plan``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pipelocal.config.limits import MOST_RANKS, MOST_TASKS
from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError
from pipelocal.options import Limits, check_values, option
from pipelocal.partition.replicas import parse_replicas


def shared(name: str) -> Any:
    """A field with the default and the bounds that it has for train."""
    (known,) = (each for each in fields(TrainConfig) if each.name == name)
    return field(default=known.default, metadata=known.metadata)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Measure a model's units on this machine and show what a cut into stages would cost."""

    model: str = shared("model")
    """Model, as for train."""
    data: str | None = None
    """Data set whose samples the model would be fed; by default what the model is made for: 224x224
    images of 1000 classes for torchvision's models, byte sequences for language models, digits."""
    input_shape: str | None = None
    """Shape of one sample in place of the data set's, such as 3,32,32."""
    classes: int | None = option(None, limits=Limits(2, 10**7))
    """Number of classes in place of the data set's."""
    objective: str = shared("objective")
    """greedy, sgr or another, as for train."""
    objective_options: tuple[str, ...] = shared("objective_options")
    """As for train."""
    stages: int = shared("stages")
    """Number of stages."""
    cut: str | None = shared("cut")
    """Where to cut, as for train; by default the planner chooses."""
    balance: str = "time"
    """What the planner's cut is for: time, memory, or count (equal numbers of units); the folder of a
    finished run, by what its stages took; or a registered partitioner of your own."""
    memory_limit: str | None = shared("memory_limit")
    """Most that a stage may need, such as 16GiB."""
    device_speeds: str | None = shared("device_speeds")
    """Relative speed of each stage's device, such as 1,1,0.5."""
    batch_size: int = option(4, limits=Limits(1, 10**7))
    """Samples in a batch."""
    head: str = shared("head")
    """Auxiliary head, as for train."""
    head_budget: float = shared("head_budget")
    """As for train."""
    reconcile: Literal["first-order", "exact"] = shared("reconcile")
    """first-order or exact, as for train."""
    reconcile_every: int = shared("reconcile_every")
    """As for train; times and bytes are means over the batches."""
    reconcile_fraction: float = shared("reconcile_fraction")
    """As for train."""
    guide_every: int = shared("guide_every")
    """As for train; bytes are means over the batches."""
    delta: str = shared("delta")
    """As for train."""
    optimizer: str = shared("optimizer")
    """sgd or adamw."""
    wire: str = shared("wire")
    """As for train: float32, bf16 or int8."""
    window: int | Literal["auto"] = shared("window")
    """Batches under way on an edge, which the memory counts; of auto the 2 with which it begins: on a long
    link it takes up to 256 MiB more. With --ranks, as many as the link needs."""
    micro_batches: int = option(8, limits=Limits(1, MOST_TASKS))
    """Micro-batches of the back-propagation pipelines that are shown beside the plan."""
    replicas: str = "1"
    """Ranks that share the batches of a stage: one number for every stage, one for each such as 1,2,1, or
    auto: those with which --ranks ranks are fastest."""
    nodes: int = option(1, limits=Limits(1, MOST_RANKS))
    """Machines with equally many ranks each; shows which rank holds what, so that little crosses."""
    ranks: int | None = option(
        None, limits=Limits(1, MOST_RANKS, f"a number from 1 to {MOST_RANKS}")
    )
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
    threads: int = shared("threads")
    """CPU threads."""
    repeats: int = option(3, limits=Limits(1, 10**6))
    """Each unit is run so many times, after one run that does not count; the median counts."""
    json: bool = False
    """Print JSON instead of a table."""

    def train_config(self) -> TrainConfig:
        """The training that is planned.

        Raises:
            UserError: an option of the plan alone is out of range.
        """
        check_values(self)
        if self.ranks is not None and self.ranks * self.micro_batches > MOST_TASKS:
            raise UserError(
                f"--ranks {self.ranks} --micro-batches {self.micro_batches}: more than {MOST_TASKS} of both "
                f"multiplied take minutes to simulate: give smaller numbers"
            )
        if parse_replicas("--replicas", self.replicas, None) is None and self.ranks is None:
            raise UserError(
                f"--replicas {self.replicas}: say how many ranks there are, with --ranks"
            )
        shared = {field.name for field in fields(self)} & {f.name for f in fields(TrainConfig)}
        # One replica's share of the training is planned; replicas are counted on top of it. Where the plan
        # measures is its own affair.
        values = {name: getattr(self, name) for name in shared - {"replicas", "device"}}
        return TrainConfig(**values | {"data": self.data or TrainConfig.data})
