"""Guided heads, tried: copies in auxiliary heads that are drawn to the real units' weights now and then.

A head that copies what follows drifts from it. Here its weights move a share of the way to those of the real
units (``lerp``) every so many batches: weights would flow back instead of activations. All stages train in
this process, so that nothing has to travel to see whether it would pay. ``--head guided`` is what came of
it: of twins, the classifier alone, each stage a period later than the next::

    python benchmarks/methods/guided.py --data-root DIR --json guided.json
    python benchmarks/methods/guided.py --quick --json guided.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from benchmarks import common
from benchmarks.accuracy.setups import SETUPS
from pipelocal.api.one_batch import train_on_batch
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream, everything
from pipelocal.ranks.host import set_up_host
from pipelocal.stage.stage import Stage

Row = dict[str, Any]
CLASSIFIER = "the classifier"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How copies are drawn."""

    head: str
    which: str = "all copies"
    """Or ``the classifier``."""
    every: int = 0
    """Batches from one time to the next; 0 for never."""
    share: float = 0.0
    """Of the way to the real weights."""


FORMS = (
    Form(head="downstream"),
    Form(head="downstream", every=20, share=0.5),
    Form(head="downstream", every=1, share=0.02),
    Form(head="twin=1"),
    Form(head="twin=1", every=20, share=0.5),
    Form(head="twin=1", every=1, share=0.02),
    Form(head="twin=1", which=CLASSIFIER, every=20, share=0.5),
    Form(head="twin=1", which=CLASSIFIER, every=8, share=0.15),
    Form(head="twin=1", which=CLASSIFIER, every=1, share=0.02),
)
"""None, half of the way every 20 batches, and a slow average."""


def main() -> None:
    """Train, print, write."""
    options = parse()
    common.check_writable(options.json)
    set_up_host(1)
    rows = kept(options.json)
    forms = (FORMS[0], FORMS[1]) if options.quick else FORMS
    for form in forms:
        for seed in options.seeds:
            if any(row["form"] == asdict(form) and row["seed"] == seed for row in rows):
                continue
            rows.append(train(form, seed, options))
            print(json.dumps(rows[-1]), flush=True)
            write(options.json, rows)
    show(rows)
    write(options.json, rows)


def parse() -> argparse.Namespace:
    """The options."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, required=True, help="result file; what it has is not trained again")
    add("--quick", action="store_true", help="two forms on digits, below 3 minutes")
    add("--data-root", metavar="DIR", help="folder with the data set's files")
    add("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    options.epochs = None
    return options


def kept(path: Path) -> list[Row]:
    """The rows of a result file, if there is one."""
    return list(json.loads(path.read_text())["results"]) if path.exists() else []


def train(form: Form, seed: int, options: argparse.Namespace) -> Row:
    """Train all stages side by side; test accuracy of every head."""
    setup = SETUPS["quick" if options.quick else "fashion-1"]
    arm = "downstream" if options.quick else "twin"
    config = setup.config(arm, options, seed=seed, head=form.head)
    blueprint = blueprint_of(config)
    dataset = load_dataset(config.data, root=config.data_root, seed=seed)
    stream = BatchStream(dataset, batch_size=config.batch_size, seed=seed)
    steps = config.epochs * stream.steps_per_epoch
    stages = [
        blueprint.build_stage(number, device=torch.device("cpu"), total_steps=steps)
        for number in range(1, blueprint.stages + 1)
    ]
    copies = drawn(stages, form)
    done = 0
    for epoch in range(config.epochs):
        for batch in stream.training(epoch, 0, everything):
            assert batch is not None
            train_on_batch(blueprint, stages, batch.x, batch.target)
            done += 1
            if form.every and done % form.every == 0:
                move(copies, form.share)
    return {
        "form": asdict(form),
        "seed": seed,
        "steps": steps,
        "accuracy_of_heads": accuracies(stages, stream),
        "bytes_back_of_a_batch": weight_bytes(copies) / form.every if form.every else 0.0,
    }


def drawn(stages: Sequence[Stage], form: Form) -> list[tuple[nn.Module, nn.Module]]:
    """Each copy in an auxiliary head that is drawn, and the real unit that it is drawn to."""
    real = {name: unit for stage in stages for name, unit in stage.body.named_children()}
    *_, last = stages
    return [
        (copy, real.get(name, last.head))
        for stage in stages[:-1]
        for name, copy in stage.head.named_children()
        if form.which != CLASSIFIER or name not in real
    ]


@torch.no_grad()
def move(copies: Sequence[tuple[nn.Module, nn.Module]], share: float) -> None:
    """Move copies a share of the way; statistics of BatchNorm stay, as copies see other inputs."""
    for copy, real in copies:
        for own, wanted in zip(copy.parameters(), real.parameters(), strict=True):
            own.lerp_(wanted, share)


def weight_bytes(copies: Sequence[tuple[nn.Module, nn.Module]]) -> int:
    """Bytes of the weights that would flow back each time."""
    return sum(weight.nbytes for copy, _ in copies for weight in copy.parameters())


def accuracies(stages: Sequence[Stage], stream: BatchStream) -> list[float]:
    """Of every head on the test data."""
    right, rows = [0] * len(stages), 0
    for batch in stream.testing(everything):
        assert batch is not None
        x, rows = batch.x, rows + len(batch.x)
        for place, stage in enumerate(stages):
            x, logits = stage.evaluate(x)
            right[place] += int((logits.argmax(-1) == batch.target).sum())
    return [count / rows for count in right]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write what there is so far; what a form brings has no goal."""
    common.write_result(
        path,
        environment=common.describe_environment(threads=1),
        results=rows,
        targets=[
            common.reported(f"{describe(row['form'])}, seed {row['seed']}: test accuracy", value)
            for row in rows
            for value in row["accuracy_of_heads"][-1:]
        ],
    )


def describe(form: Row) -> str:
    """Such as ``twin=1, all copies, 0.5 every 20 batches``."""
    if not form["every"]:
        return f"{form['head']}, not guided"
    return f"{form['head']}, {form['which']}, {form['share']:g} every {form['every']} batch(es)"


def show(rows: Sequence[Row]) -> None:
    """A line for each form and seed."""
    common.print_table(
        "guided heads: test accuracy of each stage's head, in percent",
        ("form", "seed", "heads", "KiB back of a batch"),
        [
            (
                describe(row["form"]),
                str(row["seed"]),
                " ".join(f"{100 * value:.1f}" for value in row["accuracy_of_heads"]),
                f"{row['bytes_back_of_a_batch'] / 1024:.1f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    common.run_main(main)
