"""Planted faults, on real ranks: the doctor names each, and the ranks that have it."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from pipelocal.doctor import facts
from tests.launching import launch

RANKS = 3
Plant = Callable[[Path], None]


def examine(
    tmp_path: Path, options: list[str] | list[list[str]], plant: Plant | None, ill: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """The findings of three ranks, of which one has a fault; and all exit codes."""

    def before(rank: int) -> None:
        os.chdir(tmp_path)
        if rank == ill and plant is not None:
            plant(tmp_path)

    each = [options] * RANKS if isinstance(options[0], str) else options
    arguments = [["doctor", "--json", *own] for own in each]
    ranks = launch(tmp_path / "log", arguments, RANKS, before)
    codes = ranks.wait()
    said = ranks.output(0)
    findings: list[dict[str, Any]] = json.loads(said[: said.rindex("}") + 1])["findings"]
    return findings, codes


def elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")


def a_file_in_its_place(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    Path("runs").touch()


def other_torch(_: Path) -> None:
    torch.__version__ = "2.11.0"  # type: ignore[assignment]


def other_pipelocal(_: Path) -> None:
    facts.version = lambda distribution_name: "0.0.1"  # type: ignore  # noqa: ARG005


def other_python(_: Path) -> None:
    platform.python_version = lambda: "3.9.1"


def wrong_clock(_: Path) -> None:
    now = time.time
    time.time = lambda: now() - 100


def no_such_interface(_: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "nosuch0"


def few_files(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def one_core(_: Path) -> None:
    os.sched_setaffinity(0, {0})


def crowded(_: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "64"


@pytest.mark.parametrize(
    ("plant", "said", "stops"),
    [
        (other_torch, "torch 2.11.0, where most ranks have", True),
        (other_pipelocal, "pipelocal 0.0.1, where most ranks have", True),
        (other_python, "Python 3.9, where most ranks have", True),
        (elsewhere, "--out is not the folder that rank 0 sees", True),
        (a_file_in_its_place, "File exists", True),
        (wrong_clock, "its clock is -100.0 s off", False),
        (no_such_interface, "GLOO_SOCKET_IFNAME=nosuch0, but there are", True),
        (few_files, "may open 256 files", False),
        (crowded, "64 rank(s) of 1 thread(s) share", False),
    ],
)
def test_a_rank_that_is_ill(tmp_path: Path, plant: Plant, said: str, stops: bool) -> None:
    findings, codes = examine(tmp_path, ["--slow-link", "1"], plant, ill=1)
    assert codes == [1 if stops else 0, 0, 0]
    (finding,) = findings
    assert finding["ranks"] == [1]
    assert said in finding["what"]
    assert finding["stops"] is stops


def test_a_model_that_one_rank_does_not_find(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    options = ["--model", "mine.py:net", "--out", str(tmp_path / "runs"), "--slow-link", "1"]
    findings, _ = examine(tmp_path, options, elsewhere, ill=2)
    (finding,) = findings
    assert finding["ranks"] == [2]
    assert "'mine.py:net' cannot be imported" in finding["what"]


@pytest.mark.parametrize(
    ("options", "said", "ranks"),
    [
        (["--data", "fashion-mnist", "--data-root", "none"], "none", [[0]]),
        (["--device", "cuda"], "this process sees no CUDA device", [[0], [1], [2]]),
        (["--least-free", "1000000GiB"], "of room", [[0], [1], [2]]),
        (["--slow-link", "1000000000"], "Mbit/s", [[0, 1], [1, 2]]),
        (["--threads", "1000"], "share", [[0], [1], [2]]),
    ],
    ids=str,
)
def test_what_ails_several(
    tmp_path: Path, options: list[str], said: str, ranks: list[list[int]]
) -> None:
    if "--slow-link" not in options:
        options = [*options, "--slow-link", "1"]
    findings, _ = examine(tmp_path, options, None, ill=0)
    assert all(said in finding["what"] for finding in findings)
    assert [finding["ranks"] for finding in findings] == ranks


def test_ranks_that_were_started_differently(tmp_path: Path) -> None:
    options = [["--slow-link", "1"]] * 2 + [["--slow-link", "1", "--model", "resnet8"]]
    findings, codes = examine(tmp_path, options, None, ill=0)
    (finding,) = findings
    assert finding["ranks"] == [2]
    assert "other options than most ranks" in finding["what"]
    assert codes == [1, 0, 0]


def test_healthy_ranks(tmp_path: Path) -> None:
    findings, codes = examine(tmp_path, ["--slow-link", "1"], None, ill=0)
    assert findings == []
    assert codes == [0, 0, 0]
    assert list((tmp_path / "runs").iterdir()) == []


def test_alone_and_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "nothing wrong was found" in said
    assert torch.__version__ in said
    assert cli.run(["doctor", "--device", "cuda"]) == 1
    said = capsys.readouterr().out
    assert "this process sees no CUDA device" in said
