"""Zero-shot learning: pairs of digits in mosaics, told apart by a head that picks the regions it looks at.

Training has 30 of the 45 pairs; the other 15 are known by their attributes alone, the two digits of each.
More in docs/methods/zero-shot.md.

    python docs/gallery/zero_shot/run.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/zero_shot/run.py
    python docs/gallery/zero_shot/run.py --full --json zero_shot.json

The first two print {"unseen": 0.243, "on_digits": 0.866}; the third compares all arms, at length.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pipelocal as pl
import torch
from digit_pairs import (
    ATTRIBUTES,
    CLASSES,
    HELD_OUT,
    LEARNT,
    PLACES,
    SEEN,
    TEST,
    TRAIN,
    mosaics,
)
from policy_gradient import PolicyGradient
from torch import nn
from zero_shot_head import ZeroShotHead
from zero_shot_task import ZeroShot, best_gamma

STAGES = 2
ENOUGH = 0.8
"""Share of picks on digits that counts as found."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is compared."""

    steps: int
    learned: bool = False
    certainty: float = 0.0
    """Weight of the entropy's part in the reward."""


ARMS = {
    "global feature": Arm(steps=0),
    "random regions": Arm(steps=2),
    "policy": Arm(steps=2, learned=True),
    "policy, entropy": Arm(steps=2, learned=True, certainty=1.0),
    "all regions": Arm(steps=PLACES),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained and evaluated."""

    mosaics: int
    epochs: int
    test: int


SHORT = Budget(mosaics=1280, epochs=3, test=900)
FULL = Budget(mosaics=4800, epochs=10, test=4500)
BATCH = 64


def pipeline(arm: Arm, *, classes: int, seen: int, gamma: float, seed: int) -> pl.Pipeline:
    """Return a network of two stages, both with a head that picks regions."""
    head = partial(
        ZeroShotHead,
        attributes=ATTRIBUTES[:classes],
        seen=seen,
        steps=arm.steps,
        learned=arm.learned,
        gamma=gamma,
    )
    torch.manual_seed(seed)  # the same weights on every rank
    return pl.Pipeline(
        nn.Sequential(
            block(1, 16), block(16, 24, stride=2), block(24, 32), head((32, 8, 8), classes)
        ),
        cut=["2"],
        head=head,
        task=ZeroShot(classes=classes, seen=seen, regions=PLACES),
        objective=PolicyGradient(arm.steps, certainty=arm.certainty),
        optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=3e-3),
        schedule="cosine",
        seed=seed,
        log_every=10,
    )


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def chosen_gamma(arm: Arm, budget: Budget, seed: int) -> float:
    """Return the gamma that is best where a third of the seen classes is held out, on digits that are too."""
    pipe = pipeline(arm, classes=SEEN, seen=LEARNT, gamma=0.0, seed=seed)
    train = mosaics(TRAIN, range(LEARNT), budget.mosaics, seed)
    pipe.fit(train, epochs=budget.epochs, batch_size=BATCH, progress=False)
    x, target = mosaics(HELD_OUT, range(SEEN), budget.test, seed + 1).tensors
    with torch.no_grad():
        logits = pipe.module().eval()(x)
    return best_gamma(ZeroShot(classes=SEEN, seen=LEARNT, regions=PLACES), logits, target)


def trial(
    arm: Arm, budget: Budget, seed: int, gamma: float = 0.0, out: str | None = None
) -> dict[str, float]:
    """Train on all seen classes, and return the figures on test digits."""
    pipe = pipeline(arm, classes=CLASSES, seen=SEEN, gamma=gamma, seed=seed)
    train = mosaics(TRAIN, range(SEEN), budget.mosaics, seed + 2)
    test = mosaics(TEST, range(CLASSES), budget.test, seed + 3)
    pipe.fit(train, epochs=budget.epochs, batch_size=BATCH, out=out, progress=False)
    figures = pipe.evaluate(test)
    *body, head = pipe.module().eval()
    x, target = test.tensors
    with torch.no_grad():
        picks = head.picks(nn.Sequential(*body)(x))
    found = {name: figures[name] for name in ("unseen", "s", "u", "H")}
    if arm.steps:
        found["on_digits"] = float(target[:, 1:].gather(1, picks).float().mean())
    return found


def batches_until(folder: str, share: float) -> int | None:
    """Return the batches until the last stage's picks in training were on digits so often; None if never."""
    for line in (Path(folder) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        of_last = record["event"] == "train" and record["stage"] == STAGES
        if of_last and record["on digits"] >= share:
            return int(record["step"])
    return None


def compare(seeds: int, to: str | None) -> None:
    """Run all arms, and print a line for each and what it is made of."""
    rows = []
    for name, arm in ARMS.items():
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                gamma = chosen_gamma(arm, FULL, seed)
                figures = trial(arm, FULL, seed, gamma, f"{folder}/run")
                until = batches_until(f"{folder}/run", ENOUGH) if arm.learned else None
            row = {"arm": name, "seed": seed, **figures, "gamma": gamma, "batches_until": until}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if to is not None:
                Path(to).write_text(json.dumps({"budget": asdict(FULL), "rows": rows}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="compare all arms, in one process")
    parser.add_argument("--seeds", type=int, default=3, help="of each arm, with --full")
    parser.add_argument("--json", help="also write the rows to this file, with --full")
    given = parser.parse_args()
    if given.full:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            parser.error("--full runs in one process: start it without torchrun")
        compare(given.seeds, given.json)
        return
    figures = trial(ARMS["policy, entropy"], SHORT, seed=0)
    print(json.dumps({name: round(figures[name], 3) for name in ("unseen", "on_digits")}))


if __name__ == "__main__":
    main()
