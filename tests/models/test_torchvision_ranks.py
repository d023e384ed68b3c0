"""Stages of torchvision's models over ranks equal one process, bit for bit."""

from pathlib import Path

import pytest
import torch

from pipelocal.data import DATASETS, ArrayDataset, DataInfo, DatasetEntry
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

INFO = DataInfo(name="few-images", sample_shape=(3, 32, 32), classes=4)


def _load(_root: Path | None, seed: int) -> ArrayDataset:
    """Noise: 24 images to train on and 8 to test on."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (32, 3, 32, 32), generator=generator).to(torch.uint8)
    y = torch.arange(32) % 4
    return ArrayDataset(
        info=INFO,
        train_x=x[:24],
        train_y=y[:24],
        test_x=x[24:],
        test_y=y[24:],
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
    )


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("resnet18", "sgr"),
        ("vit_small", "greedy"),
        pytest.param("convnext_tiny", "greedy", marks=pytest.mark.slow),
        pytest.param("swin_t", "greedy", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", "greedy", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", "sgr", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "sgr", marks=pytest.mark.slow),
        pytest.param("swin_t", "sgr", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, objective: str
) -> None:
    """Dropout and stochastic depth included; the forked ranks know the data set from here."""
    monkeypatch.setitem(DATASETS._entries, INFO.name, DatasetEntry(INFO, _load))
    arguments = ["--model", model, "--data", INFO.name, "--objective", objective, "--stages", "2"]
    arguments += ["--max-steps", "2", "--batch-size", "8", "--lr", "0.01"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
