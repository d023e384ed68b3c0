"""Options of replicas: what is refused in one line, and which rank becomes what."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.errors import UserError
from pipelocal.pipeline.placement import place
from pipelocal.pipeline.timetable import Timetable
from pipelocal.ranks.host import use_interface
from tests.launching import FOR_EVER, launch


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"replicas": "two"}, "--replicas two: give auto, one whole number"),
        ({"replicas": "0"}, "--replicas 0: give auto, one whole number from 1 to 4096"),
        ({"replicas": "1,2"}, "or 4 with commas between them, one for each stage"),
        ({"replicas": "two", "cut": "2,2"}, "--replicas two: give auto"),
        ({"replicas": "2", "objective": "bp"}, "--replicas is for stages"),
        ({"replicas": "2", "step_early": True}, "--step-early is for updates after every batch"),
        ({"replicas": "2", "measure_bp_gap": 4}, "--measure-bp-gap is for updates"),
        (
            {"replicas": "2", "objective": "sgr", "reconcile_fraction": 1.0},
            "--reconcile-fraction 1 forms",
        ),
        ({"replicate": "zero"}, "--replicate zero: choose one of ddp, fsdp"),
        ({"compress": "zip"}, "unknown gradient compression 'zip'|gradient compression"),
        ({"compress": "sign", "replicate": "fsdp"}, "--compress sign is for --replicate ddp"),
        ({"compress": "zip=3"}, "unknown gradient compression 'zip'"),
        ({"compress": "sparse-sign=0"}, "--compress sparse-sign=0: give a number above 0, to 1"),
        (
            {"compress": "sparse-sign=nan"},
            "--compress sparse-sign=nan: give a number above 0, to 1",
        ),
        (
            {"compress": "sparse-sign=1.5"},
            "--compress sparse-sign=1.5: give a number above 0, to 1",
        ),
        (
            {"compress": "sparse-sign="},
            "give a number behind sparse-sign=, such as sparse-sign=0.1",
        ),
        ({"compress": "powersgd=0"}, "--compress powersgd=0: must be at least 1"),
        ({"compress": "powersgd=9999999"}, "--compress powersgd=9999999: must be at most 1000000"),
        ({"compress": "powersgd=2.5"}, "give a whole number behind powersgd=, such as powersgd=2"),
        ({"compress": f"powersgd={'9' * 5000}"}, "give a whole number behind powersgd="),
        (
            {"compress": "bf16=3"},
            "bf16=3: a number is for sparse-sign and powersgd alone: give bf16",
        ),
        ({"compress": "a.py:b=3"}, "a number is for sparse-sign and powersgd alone: give a.py:b"),
        ({"replicate": "fsdp", "ema": 0.9}, "--ema averages whole weights"),
        ({"sync_batchnorm": True, "compile": "eager"}, "and --compile changes them"),
        ({"sync_batchnorm": True, "checkpoint_activations": 1}, "--checkpoint-activations"),
        (
            {"sync_batchnorm": True, "replicas": "2", "objective": "pgl"},
            "PGL guides one batch in 8, which one replica has: leave it out, or choose --guide-every 1",
        ),
        ({"start_timeout": 0.0}, "--start-timeout 0.0: give a number above 0"),
    ],
    ids=str,
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        validate(TrainConfig(**options))


@pytest.mark.parametrize(
    ("stages", "ranks", "replicas", "match"),
    [
        (3, 3, [1, 2, 1], "--replicas 1,2,1 on 3 ranks: start 4 .*, or one process alone"),
        (4, 3, [2] * 4, "--replicas 2 on 3 ranks: start a multiple of 2"),
        (2, 6, [2] * 2, "6 ranks for 2 stages: .* so start at most 4"),
    ],
)
def test_numbers_of_ranks(stages: int, ranks: int, replicas: list[int], match: str) -> None:
    with pytest.raises(UserError, match=match):
        place(stages, ranks, replicas)


def test_whole_rounds() -> None:
    """Of 7 batches an epoch 6 are three rounds; 9 wanted in all are 6, and one round of the next epoch."""
    plan = Timetable(epochs=3, steps_per_epoch=7, max_steps=9, evaluate_every=1, together=2)
    whole = plan.in_whole_rounds()
    assert (whole.steps_per_epoch, whole.total_steps) == (6, 8)
    with pytest.raises(UserError, match="less than the 8 that all replicas take in step"):
        Timetable(
            epochs=1, steps_per_epoch=7, max_steps=None, evaluate_every=1, together=8
        ).in_whole_rounds()


def test_updates_end_with_the_epoch_and_rounds_begin_with_it() -> None:
    plan = Timetable(
        epochs=2,
        steps_per_epoch=5,
        max_steps=9,
        evaluate_every=1,
        together=2,
        update_every=4,
        reconcile_every=3,
    )
    assert [plan.update_at(done) for done in range(9)] == [4, 4, 4, 4, 5, 9, 9, 9, 9]
    reconciled = [done for done in range(9) if plan.reconciles(done)]
    assert reconciled == [0, 1, 5, 6], "rounds 0 and 3, of three an epoch"


def test_an_interface_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--interface eth99: .* has no such network interface"):
        use_interface("eth99")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "before")
    use_interface("lo")
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"


def test_ranks_that_come_late_have_a_patience_of_their_own(tmp_path: Path) -> None:
    """--start-timeout, whatever --timeout says."""

    def late(rank: int) -> None:
        if rank == 1:
            time.sleep(FOR_EVER)

    options = ["train", "--stages", "2", "--start-timeout", "1", "--timeout", str(FOR_EVER)]
    ranks = launch(tmp_path / "log", [*options, "--out", str(tmp_path / "run")], 2, late)
    assert ranks.wait([0]) == [2], ranks.output()
    assert "the other ranks were not met" in ranks.output(0)
    ranks.kill(1)
