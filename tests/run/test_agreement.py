"""Ranks that were started differently do not train together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import own_names, text_of
from pipelocal.errors import UserError
from pipelocal.options import option_name
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.agreement import check_same_options
from tests.launching import PATIENCE_S, free_port, launch

MAY_DIFFER = {
    *("threads", "device", "interface", "workers"),  # a rank's own place to compute
    *("data_root", "config"),  # where files lie there; what is in them is compared
    *("plain", "debug_transfers", "log"),  # what a rank shows
}
BASE = ["--model", "mlp", "--stages", "2", "--max-steps", "4"]
OPTIONS = [field.name for field in fields(TrainConfig) if field.name not in MAY_DIFFER]
TEXTS = {
    "cut": "2",
    "freeze_stage": "1:3",
    "compress": "bf16",
    "autocast": "bf16",
    "resume": "never",  # a run that is not there cannot be read on that rank alone
}
"""For options that are text and not set by default, something that may be given."""


def other(name: str) -> Any:
    """Another value than the option's default, of the same kind."""
    value = getattr(TrainConfig(), name)
    kind = next(str(f.type) for f in fields(TrainConfig) if f.name == name)
    if kind.startswith("bool"):
        return not value
    if kind.startswith("int"):
        return (value if isinstance(value, int) else 3) + 1
    if kind.startswith("float"):
        return (value or 0.5) * 0.5
    return TEXTS.get(name, f"{value}-other")


def check(config: TrainConfig, control: ControlPlane) -> None:
    check_same_options(text_of(config), control, own=own_names(config))


def test_what_may_differ_are_options() -> None:
    assert set(MAY_DIFFER) <= {field.name for field in fields(TrainConfig)}
    assert own_names(TrainConfig()) == MAY_DIFFER


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_that_counts_is_compared(name: str) -> None:
    """Two ranks in one process, over the store that they would share."""
    config = TrainConfig()
    changed = replace(config, **{name: other(name)})
    assert asdict(changed) != asdict(config)
    alone = World.alone()
    ranks = [
        ControlPlane(replace(alone, size=2, rank=rank, start_timeout_s=30.0)) for rank in (0, 1)
    ]
    try:
        check(config, ranks[0])
        check(config, ranks[1])
        with pytest.raises(UserError) as caught:
            check(changed, ranks[1])
    finally:
        for control in ranks:
            control.stop_watching()
    assert option_name(name) in str(caught.value)
    assert "on rank 0" in str(caught.value)


@pytest.mark.parametrize("name", sorted(MAY_DIFFER))
def test_what_may_differ_is_not(name: str) -> None:
    alone = World.alone()
    zero, one = (ControlPlane(replace(alone, size=2, rank=rank)) for rank in (0, 1))
    try:
        check(TrainConfig(), zero)
        check(replace(TrainConfig(), **{name: other(name)}), one)
    finally:
        zero.stop_watching()
        one.stop_watching()


@pytest.mark.parametrize(
    "differing",
    [
        ["--seed", "7", "--momentum", "0.5"],
        ["--optimizer", "adam"],  # of which there is none: it would be refused on that rank alone
        ["--model", "resnet8"],
        ["--stages", "3"],
    ],
    ids=lambda options: options[0],
)
def test_all_ranks_are_refused(tmp_path: Path, differing: list[str]) -> None:
    out = tmp_path / "run"
    command = ["train", *BASE, "--out", str(out)]
    ranks = launch(tmp_path / "log", [command, [*command, *differing]], 2)
    assert all(code != 0 for code in ranks.wait())
    for rank in (0, 1):
        for option in differing[::2]:
            assert option in ranks.output(rank)
        assert "Traceback" not in ranks.output(rank)
    assert not out.exists()


def test_another_copy_of_the_model_is_refused(tmp_path: Path) -> None:
    """Two nodes, each with a file of the same name, one of which somebody edited."""
    text = "from torch import nn\ndef net(shape, classes):\n    return nn.Sequential(nn.Sequential("
    text += (
        "nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), nn.Linear(32, 32), nn.Linear(32, classes))\n"
    )
    commands = []
    for rank, content in enumerate((text, text.replace("ReLU", "Tanh"))):
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "net.py").write_text(content)
        model = ["--model", f"{folder}/net.py:net", "--out", str(tmp_path / "run")]
        commands.append(["train", "--stages", "2", "--max-steps", "4", *model])
    ranks = launch(tmp_path / "log", commands, 2)
    assert all(code != 0 for code in ranks.wait())
    for rank in (0, 1):
        assert "another model than on rank 0: its code" in ranks.output(rank)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OPTIONS)
def test_two_agents_with_another_option(tmp_path: Path, name: str) -> None:
    """Two torchrun agents, as on two machines that were started by hand."""
    value = other(name)
    text = [] if isinstance(value, bool) else [str(value)]
    flag = option_name(name) if value is not False else option_name(name).replace("--", "--no-", 1)
    port = str(free_port())
    agents = []
    for node in (0, 1):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--node-rank", str(node), "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        command += ["--master-port", port, "-m", "pipelocal", "train", "--data", "digits"]
        command += ["--out", str(tmp_path / "run"), *([flag, *text] if node else [])]
        agents.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        )
    for agent in agents:
        _, said = agent.communicate(timeout=PATIENCE_S)
        assert agent.returncode != 0
        assert option_name(name) in said
