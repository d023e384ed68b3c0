"""Fine-tuning: pretrained weights, a first stage that stays as it is, smaller rates for early stages.

A small network learns the digits 0 to 4 in plain PyTorch; its weights are the pretrained ones. Then it
learns 5 to 9 from 25 images alone: stage 1 is frozen, stage 2 learns more slowly than the new classifier in
stage 3. Beside it stands the same network from random weights. For the command line: docs/fine-tuning.md.

    python docs/gallery/fine_tuning.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/fine_tuning.py

Both print {"accuracy": 0.884, "from_scratch": 0.852}.
"""

import json

import pipelocal as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
images, old = images.float().view(-1, 1, 8, 8) / 16, labels < 5
old_data = TensorDataset(images[old], labels[old])
train = TensorDataset(images[~old][:25], labels[~old][:25] - 5)
test = TensorDataset(images[~old][25:], labels[~old][25:] - 5)


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


def network(classes: int) -> nn.Sequential:
    return nn.Sequential(
        block(1, 32),
        block(32, 32),
        nn.Sequential(nn.MaxPool2d(2), block(32, 64)),
        block(64, 64),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)),
    )


def pretrain() -> dict[str, torch.Tensor]:
    """Train by back-propagation, as most pretrained models were; the weights."""
    net = network(classes=5)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(6):
        for x, target in DataLoader(old_data, batch_size=64, shuffle=True):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x), target).backward()
            adam.step()
    return net.state_dict()


def train_on_new(net: nn.Sequential, rates: list[float], freeze: str | None = None) -> float:
    """Train with a learning rate for each stage; the accuracy."""
    pipe = pl.Pipeline(
        net,
        cut=["2", "3"],
        freeze_stage=freeze,
        optimizer=lambda named, place: torch.optim.Adam(
            [parameter for _, parameter in named], lr=rates[place.number - 1]
        ),
    )
    summary = pipe.fit(train, test, epochs=60, batch_size=25, evaluate_every=60)
    return round(summary["eval_accuracy"], 3)


torch.manual_seed(0)  # the same weights on every rank
net = network(classes=5)
weights = {name: value for name, value in pretrain().items() if not name.startswith("4.")}
net.load_state_dict(weights, strict=False)  # all but the classifier, which stays new
tuned = train_on_new(net, rates=[0.0, 3e-3, 1e-2], freeze="1:0")
scratch = train_on_new(network(classes=5), rates=[1e-2, 1e-2, 1e-2])
print(json.dumps({"accuracy": tuned, "from_scratch": scratch}))
