"""What is trained over the link, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import torchrun
from benchmarks.communication import over_link
from benchmarks.communication.over_link import Hosts
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of

PEER = str(Path(__file__).parents[1] / "throughput" / "peer.py")
LOG_EVERY = 8
"""Batches in a record of metrics.jsonl: whole cycles of ``--reconcile-every``."""
RANKS = 2


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all methods do."""

    model: str
    data: str
    batch_size: int
    cut: str
    """About where ``--balance time`` cuts in two for local losses."""

    @property
    def x_bytes(self) -> int:
        """Of the first stage's output, for one batch in float32."""
        blueprint = blueprint_of(
            TrainConfig(model=self.model, data=self.data, cut=self.cut, objective="greedy")
        )
        return 4 * self.batch_size * math.prod(blueprint.output_shape(1))


WORKS = (
    Work(model="gpt", data="text64", batch_size=16, cut="block4"),
    Work(model="resnet20", data="synthetic", batch_size=32, cut="block4"),
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """pipelocal with some options, or 1F1B."""

    name: str
    objective: str = "greedy"
    wire: str = "float32"
    delta: str = "full"
    micro_batches: int | None = None
    """Of 1F1B; None for pipelocal."""


def own(objective: str, *, wire: str = "float32", delta: str = "full") -> Method:
    """Pipelocal."""
    words = [f"pipelocal {objective}"]
    words += [f"{wire} wire"] * (wire != "float32") + [f"{delta} delta"] * (delta != "full")
    return Method(name=", ".join(words), objective=objective, wire=wire, delta=delta)


def one_f_one_b(micro_batches: int) -> Method:
    """1F1B of ``torch.distributed.pipelining``."""
    return Method(name=f"1F1B, m = {micro_batches}", micro_batches=micro_batches)


def train_own(
    hosts: Hosts | None, work: Work, method: Method, *, steps: int, text: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Pipelocal's summary and metrics after some training steps and one evaluation.

    Args:
        hosts: the two ends of a link; None for two ranks of this host.
        work: what is trained.
        method: with which options.
        steps: training batches.
        text: file for the data set ``text``.
    """
    config = TrainConfig(
        model=work.model,
        data=work.data,
        data_root=text if work.data.startswith("text") else None,
        cut=work.cut,
        batch_size=work.batch_size,
        objective=method.objective,
        wire=method.wire,
        delta=method.delta,
        lr=0.01,
        max_steps=steps,
        epochs=1000,
        evaluate_every=1000,
        log_every=LOG_EVERY,
        drop_last=True,
    )
    return over_link.train(hosts, config)


def seconds_own(hosts: Hosts, work: Work, method: Method, *, steps: int, text: str) -> float:
    """Median seconds of a batch of pipelocal in the long run, at the last stage."""
    _, metrics = train_own(hosts, work, method, steps=steps, text=text)
    return torchrun.seconds_of_a_batch(metrics, RANKS, work.batch_size)


def seconds_peer(hosts: Hosts, work: Work, method: Method, *, steps: int) -> float:
    """Median seconds of a step of 1F1B."""
    arguments = [PEER, "--method", "1F1B", "--model", work.model, "--data", work.data]
    arguments += ["--cut", work.cut, "--batch-size", str(work.batch_size)]
    arguments += ["--micro-batches", str(method.micro_batches), "--steps", str(steps)]
    output = over_link.launch(hosts, arguments, what=f"{work.model}, {method.name}")
    return float(output.splitlines()[-1])
