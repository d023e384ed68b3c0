"""The guide to fine-tuning: its commands and its script do what it says, on tiny data made on the spot."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl
from pipelocal import cli
from pipelocal.errors import UserError
from pipelocal.models import build_chain
from pipelocal.results.evaluate import plain_state_dict

GUIDE = (Path(__file__).parents[1] / "docs" / "fine-tuning.md").read_text()
TINY = {"--image-size": "32", "--batch-size": "2", "--epochs": "1", "--workers": "0"}


def commands() -> list[list[str]]:
    """The words behind ``pipelocal`` of the guide's commands, with tiny numbers."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL):
        words = shlex.split(block.replace("\\\n", " "))
        words = words[words.index("pipelocal") + 1 :]
        for option in TINY.keys() & set(words):
            words[words.index(option) + 1] = TINY[option]
        found.append(words)
    return found


def photos(folder: Path) -> None:
    """A few small images of noise, of two classes."""
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for kind in ("cat", "dog"):
            (folder / part / kind).mkdir(parents=True)
            for number in range(2):
                pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator)
                image.fromarray(pixels.numpy()).save(folder / part / kind / f"{number}.png")


def test_the_commands_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An image folder, a pretrained network for 1000 classes, a frozen first stage; then all stages."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    chain = build_chain("resnet18", input_shape=(3, 32, 32), classes=1000, seed=5)
    before = chain.build_whole(seed=5).state_dict()
    torch.save(before, "resnet18.pth")
    for words in commands():
        more = ["--plain"] if words[0] == "train" else []
        assert cli.run([*words, *more]) == 0, words
    said = capfd.readouterr().err.splitlines()
    (line,) = re.findall(r"^pipelocal: starting from resnet18.*", GUIDE, re.MULTILINE)
    assert line in said
    assert any(
        "starting from runs/photos (its weights after batch 2): 122 tensors" in s for s in said
    )
    tuned = plain_state_dict("runs/photos")
    for name, value in before.items():
        frozen = name.startswith(("conv1.", "bn1.", "layer1."))
        assert not frozen or torch.equal(value, tuned[name]), name
    assert not torch.equal(before["layer4.1.conv2.weight"], tuned["layer4.1.conv2.weight"])
    assert tuned["fc.weight"].shape == (2, 512)


def test_the_script_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = (b for b in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "Pipeline" in b)
    exec(script, {})


def a_pipe(freeze_stage: str | None = "1:0", **more: Any) -> pl.Pipeline:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(3)]
    net = nn.Sequential(*layers, nn.Linear(6, 3))
    options: dict[str, Any] = {"stages": 3, "input_shape": (6,)} | more
    return pl.Pipeline(net, freeze_stage=freeze_stage, **options)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    return [(x[at : at + 10], (x[at : at + 10, 0] > 0).long()) for at in (0, 10, 20)]


def test_a_pipeline_freezes_as_the_command_line_does() -> None:
    """From the first batch or later, in fit() and step by step; and other stages train."""
    for freeze_stage, same in (("1:0", True), ("1:2", False)):
        fitted, stepped = a_pipe(freeze_stage), a_pipe(freeze_stage)
        rows = TensorDataset(*(torch.cat(part) for part in zip(*batches(), strict=True)))
        fitted.fit(DataLoader(rows, batch_size=10), epochs=1, progress=False)
        for x, y in batches():
            stepped.step(x, y)
        first, one, other = (p.module().state_dict() for p in (a_pipe(), fitted, stepped))
        assert all(torch.equal(one[name], other[name]) for name in one)
        untouched = {name for name in one if torch.equal(one[name], first[name])}
        assert {name for name in one if name.startswith("0.")} <= untouched or not same
        assert not any(name.startswith("1.") and "weight" in name for name in untouched)
        stages = fitted.evaluate(DataLoader(rows, batch_size=10))["stages"]
        assert (stages[0]["accuracy"] is None) == same
        assert stages[1]["accuracy"] is not None


def test_a_stage_that_there_is_not() -> None:
    with pytest.raises(UserError, match="there is no stage 4, stages are 1 to 3"):
        a_pipe("4:0")
