"""Tasks on several ranks: targets of any dtype and shape travel, and figures are those of one process."""

from __future__ import annotations

from pathlib import Path

from tests.launching import run_script

SCRIPT = """
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl

torch.manual_seed(0)
x, images = torch.randn(40, 6), torch.randn(24, 3, 8, 8)
void = (images.sum(1) > 0).long()
void[:, 0] = 255


def maps():
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ConvTranspose2d(8, 8, 2, stride=2)]
    return nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in layers), nn.Conv2d(8, 2, 1))


def fit(net, task, x, y, **options):
    train = DataLoader(TensorDataset(x, y), 8)
    test = DataLoader(TensorDataset(x[:8], y[:8]), 8)  # one batch: a replica has none
    pipe = pl.Pipeline(net, stages=2, task=task, votes="on", **options)
    summary = pipe.fit(train, test, epochs=2, progress=False)
    again = pipe.evaluate(test)
    assert {name: again[name] for name in summary["eval"]} == summary["eval"]
    print(summary["eval"], summary["ensemble"], summary["stages"][0]["figures"], flush=True)


def net(outputs):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


segmentation = pl.tasks.Segmentation(classes=2, ignore_index=255)
if "REPLICAS" == "1":
    fit(maps(), segmentation, images, void)
    fit(net(1), pl.tasks.Regression(loss="huber"), x, x[:, 0])
    fit(net(3), pl.tasks.MultiLabel(labels=3), x, (x[:, :3] > 0).long())
else:
    fit(maps(), segmentation, images, void, replicas="REPLICAS")
"""


def _shown(folder: Path, size: int, replicas: str = "1") -> list[str]:
    folder.mkdir()
    script = folder / "tasks_on_ranks.py"
    script.write_text(SCRIPT.replace("REPLICAS", replicas))
    return sorted(set(run_script(script, size).splitlines()))


def test_two_ranks_report_what_one_does(tmp_path: Path) -> None:
    alone, ranks = (_shown(tmp_path / str(size), size) for size in (1, 2))
    assert len(alone) == 3
    assert alone == ranks


def test_a_replica_that_has_no_test_batch_reports_what_the_others_saw(tmp_path: Path) -> None:
    assert len(_shown(tmp_path / "ranks", 3, "1,2")) == 1
