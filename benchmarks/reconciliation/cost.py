"""Time and memory of a training step of a middle stage, reconciled and greedy in turns."""

from __future__ import annotations

import resource
import statistics
import time
from multiprocessing import get_context
from typing import Any

import psutil
import torch

from benchmarks.live_bytes import LiveBytes
from benchmarks.reconciliation.forms import FORMS
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.ranks.host import set_up_host
from pipelocal.stage.memory import resident_bytes


def cost(form: str, *, model: str, rounds: int) -> dict[str, Any]:
    """Time and memory of a step of a middle stage, over greedy's.

    Args:
        form: how it reconciles.
        model: which model is cut into four.
        rounds: of both in turns; the first does not count.
    """
    greedy, ours = Trial("greedy", model), Trial(form, model)
    set_up_host(1)
    ratios = []
    for round_ in range(rounds):
        plain, reconciled = greedy.seconds(ours.every), ours.seconds(ours.every)
        if round_ > 0:  # the first pays for what is done once
            ratios.append(reconciled / plain)
    memory = {}
    for name, trial in (("greedy", greedy), (form, ours)):
        with LiveBytes() as counter:
            trial.seconds(4)
        memory[name] = counter.peak + resident_bytes(trial.stage)
    return {
        "kind": "cost",
        "form": form,
        "model": model,
        "step_time_over_greedy": statistics.median(ratios),
        "of_each_round": ratios,
        "memory_over_greedy": memory[form] / memory["greedy"],
        "process_memory_over_greedy": peak_bytes(form, model) / peak_bytes("greedy", model),
    }


class Trial:
    """The second of four stages, with a batch for it.

    Args:
        form: how it reconciles, or greedy.
        model: which model is cut.
        rows: samples in the batch.
    """

    def __init__(self, form: str, model: str, rows: int = 64) -> None:
        info = DataInfo(name="cost", sample_shape=(3, 32, 32), classes=10)
        own = TrainConfig(**{"model": model, "stages": 4, "head": "linear", **FORMS[form]})
        blueprint = blueprint_of(own, info=info)
        self.every = own.reconcile_every
        self.stage = blueprint.build_stage(2, device=torch.device("cpu"), total_steps=1000)
        self.x = torch.randn(rows, *blueprint.output_shape(1))
        self.target = torch.randint(10, (rows,))
        self.delta = torch.randn(self.x.shape) / rows

    def seconds(self, steps: int) -> float:
        """Of so many steps, every so many of them reconciled."""
        started = time.perf_counter()
        for step in range(steps):
            reconciled = self.stage.wants_delta and step % self.every == 0
            self.stage.step(self.x, self.target, self.delta if reconciled else None)
        return time.perf_counter() - started


def peak_bytes(form: str, model: str) -> int:
    """What a process of its own needs for the training of the stage, at most."""
    with get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_peak_bytes, (form, model)))


def _peak_bytes(form: str, model: str) -> int:
    set_up_host(1)
    Trial(form, model, rows=2).seconds(4)  # loads what is needed once
    before = psutil.Process().memory_info().rss
    Trial(form, model, rows=256).seconds(4)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
