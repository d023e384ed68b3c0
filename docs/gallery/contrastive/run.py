"""Contrastive learning without labels, in blocks that overlap (LoCo), and a linear probe of what was learnt.

Four stages learn to tell the two views of an image from those of other images. More in docs/methods/loco.md.

    python docs/gallery/contrastive/run.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/contrastive/run.py
    python docs/gallery/contrastive/run.py --fashion DIR --json contrastive.json

The first two print {"random": 0.935, "greedy": 0.966, "loco": 0.963, "end_to_end": 0.972}, of digits; the
third takes 10,000 images of Fashion-MNIST, and longer.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pipelocal as pl
import torch
from info_nce import InfoNCE
from torch import Tensor, nn
from torch.utils.data import DataLoader
from two_views import Pairwise, TwoViews

STAGES = 4
ARMS = {
    "random": pl.objectives.Greedy(),
    "greedy": pl.objectives.Greedy(),
    "loco": pl.objectives.LoCo(),
    "end_to_end": pl.objectives.PGL(every=1),
}
"""What is compared. The first does not learn, and the last is back-propagation over all stages."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained on, and for how long."""

    data: str
    root: str | None
    images: int
    mirror: bool
    epochs: int
    pairs: int
    """Of a batch."""


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def projection(features: tuple[int, ...], dimensions: int) -> nn.Module:
    """Return the head of a stage, and what ends the network: a block, the mean over space, two layers."""
    (channels, *_) = features
    layers = (nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dimensions))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(block(channels, channels), *pool, *layers)


def trained(arm: str, setting: Setting, images: Tensor, seed: int) -> nn.Module:
    """Train without labels; return the stages' bodies, which make the features."""
    task = InfoNCE()
    torch.manual_seed(seed)  # the same weights on every rank
    net = nn.Sequential(
        block(1, 16),
        block(16, 32, stride=2),
        block(32, 64, stride=2),
        block(64, 64),
        projection((64,), task.dimensions),
    )
    rate = 0.0 if arm == "random" else 2e-3  # the means and variances of its BatchNorms are learnt
    pipe = pl.Pipeline(
        net,
        cut=["1", "2", "3"],
        head=projection,
        task=task,
        objective=ARMS[arm],
        optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=rate),
        schedule="cosine",
        seed=seed,
    )
    views = TwoViews(images, mirror=setting.mirror)
    loader = DataLoader(
        views, batch_size=2 * setting.pairs, sampler=Pairwise(len(images)), drop_last=True
    )
    pipe.fit(loader, epochs=1 if arm == "random" else setting.epochs, progress=False)
    return pipe.module()[:-1].eval()


@torch.no_grad()
def features(body: nn.Module, images: Tensor) -> Tensor:
    """Return the mean over space of what the last stage's body makes ``[N, channels]``."""
    return torch.cat([body(part).mean((2, 3)) for part in images.split(500)])


def probed(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, decay: float = 1e-3
) -> float:
    """Fit logistic regression on features that stay as they are; return its accuracy on test features."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    probe = nn.Linear(train.shape[1], int(train_labels.max()) + 1)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    solver = torch.optim.LBFGS(probe.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(probe(train), train_labels)
        loss = loss + decay * probe.weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return float((probe(test).argmax(1) == test_labels).float().mean())


def compare(setting: Setting, arms: list[str], seed: int) -> dict[str, float]:
    """Return the probe's accuracy for each arm."""
    data = pl.data.load_dataset(setting.data, root=setting.root, seed=0)
    images, test = (_from_0_to_1(x) for x in (data.train_x[: setting.images], data.test_x))
    labels = data.train_y[: setting.images]
    found = {}
    for arm in arms:
        body = trained(arm, setting, images, seed)
        ends = features(body, images), labels, features(body, test), data.test_y
        found[arm] = probed(*ends)
    return found


def _from_0_to_1(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion", metavar="DIR", help="folder of FashionMNIST/raw")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.fashion is None:
        setting = Setting(data="digits", root=None, images=1400, mirror=False, epochs=6, pairs=100)
    else:
        root = options.fashion
        setting = Setting(
            data="fashion-mnist", root=root, images=10_000, mirror=True, epochs=15, pairs=125
        )
    by_seed = {seed: compare(setting, options.arms, seed) for seed in options.seeds}
    if options.json is not None and os.environ.get("RANK", "0") == "0":
        options.json.write_text(json.dumps({"setting": vars(setting), "accuracy": by_seed}) + "\n")
    means = {arm: fmean(found[arm] for found in by_seed.values()) for arm in options.arms}
    print(json.dumps({arm: round(value, 3) for arm, value in means.items()}))


if __name__ == "__main__":
    main()
