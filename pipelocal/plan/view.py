"""Shows a plan as a table."""

from __future__ import annotations

import shlex
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.table import Table

from pipelocal.plan.plan import Plan, Simulation
from pipelocal.plan.replicas import Replication
from pipelocal.telemetry.formats import format_bytes

NARROWEST = 120
"""Least width in columns."""


def print_plan(plan: Plan, stream: TextIO) -> None:
    """Write the stages, the bottleneck and the alternatives."""
    console = Console(file=stream, highlight=False, soft_wrap=True, markup=False, emoji=False)
    # Not directly to the stream: rich ends the program if the reader has closed it.
    with console.capture() as captured:
        _print(plan, console)
    stream.write(captured.get())


def _print(plan: Plan, console: Console) -> None:
    replicated = plan.replication.ranks > len(plan.stages)
    console.width = max(console.width, NARROWEST)  # better wide than with broken unit names
    console.print(
        f"{plan.model}, batches of {plan.batch_size} on {plan.device}, "
        f"{'each replica of a stage on a device' if replicated else 'one stage a device'}; "
        f"predicted for one training batch"
    )
    if plan.note is not None:
        console.print(plan.note)
    table = Table("stage", "units", box=None, header_style="bold")
    times = ("time", "replicas", "a batch every") if replicated else ("time",)
    for name in ("parameters", *times, "of it head", "peak memory", "sent on"):
        table.add_column(name, justify="right")
    table.add_column("head")
    for stage in plan.stages:
        mark = " *" if stage.stage == plan.bottleneck else "  "
        cells = [format_milliseconds(stage.every_seconds) + mark]
        if replicated:
            cells = [format_milliseconds(stage.seconds), str(stage.replicas), *cells]
        table.add_row(
            str(stage.stage),
            stage.units,
            f"{stage.parameters:,}",
            *cells,
            f"{stage.head_fraction:.0%}" if stage.head_fraction else "-",
            format_bytes(stage.memory_bytes),
            format_bytes(stage.sent_bytes) if stage.sent_bytes else "-",
            stage.head or "the model's own",
        )
    console.print(table)
    for line in plan.crossing:
        console.print(line)
    console.print(
        f"* the bottleneck: {plan.samples_per_second:,.1f} samples/s at most, over links that keep up"
    )
    _print_budgets(plan, console)
    _print_replication(plan.replication, replicated, console)
    console.print(
        f"to train with this cut: --cut {shlex.quote(plan.cut)}"
        if plan.cut
        else "one stage: no cut"
    )
    beside = Table("beside it", box=None, header_style="bold")
    for name in ("time", "peak memory of a device"):
        beside.add_column(name, justify="right")
    for other in plan.alternatives:
        beside.add_row(
            other.name, format_milliseconds(other.seconds), format_bytes(other.memory_bytes)
        )
    console.print(beside)
    if plan.simulation is not None:
        if replicated:
            console.print("the simulation has one rank a stage, without replicas:")
        _print_simulation(plan.simulation, plan.batch_size, console)


def _print_budgets(plan: Plan, console: Console) -> None:
    now = plan.stages[plan.bottleneck - 1].every_seconds
    for budget in plan.budgets:
        heads = ((head, len(list(same))) for head, same in groupby(budget.heads))
        listed = ", ".join(head if times == 1 else f"{head} ({times})" for head, times in heads)
        console.print(
            f"with a {'larger' if budget.larger else 'smaller'} --head-budget {budget.budget:g}: heads "
            f"{listed}; slowest stage {format_milliseconds(budget.seconds)} "
            f"({budget.seconds / now - 1:+.0%})"
        )


def _print_replication(replication: Replication, replicated: bool, console: Console) -> None:
    if replicated or replication.left_over:
        left = f"; {replication.left_over} left over" if replication.left_over else ""
        console.print(
            f"{replication.ranks} ranks{left}; {replication.batches_an_update} batch(es) an update, of "
            f"which the replicas of a stage average their gradients"
        )
    if len(replication.nodes) == 1:
        return
    several = {seat.stage for node in replication.nodes for seat in node.ranks if seat.replica}
    table = Table("node", "rank: stage.replica", box=None, header_style="bold")
    for node in replication.nodes:
        held = [
            f"{seat.rank}: {seat.stage}" + (f".{seat.replica}" if seat.stage in several else "")
            for seat in node.ranks
        ]
        table.add_row(str(node.node), "  ".join(held) or "-")
    console.print(table)
    console.print(f"between nodes: {format_bytes(replication.crossing_bytes)} a batch")


def _print_simulation(simulation: Simulation, batch_size: int, console: Console) -> None:
    console.print(
        f"simulated over {simulation.ranks} ranks, {simulation.bandwidth} and {simulation.latency} "
        f"between neighbours, {simulation.micro_batches} micro-batches where back-propagated"
    )
    if simulation.equal_parts:
        console.print("the model has fewer units than that: taken to be cut into equal parts")
    table = Table("schedule", box=None, header_style="bold")
    for name in ("time of a batch", "samples/s", "utilisation", "to fill", "batches kept"):
        table.add_column(name, justify="right")
    for outcome in simulation.outcomes:
        table.add_row(
            outcome.schedule,
            format_milliseconds(outcome.seconds_per_batch),
            f"{batch_size / outcome.seconds_per_batch:,.1f}",
            f"{outcome.utilisation:.1%}",
            format_milliseconds(outcome.fill_s),
            f"{outcome.activations:.2f}",
        )
    console.print(table)
    console.print(
        "in the long run; pipelocal fills once, the others in every batch, of which the time holds it"
    )
    if simulation.plot is not None:
        console.print(f"other ranks, links and batches: {simulation.plot}")


def format_milliseconds(seconds: float) -> str:
    """Format seconds such as ``12.3 ms``."""
    return f"{seconds * 1000:,.1f} ms"
