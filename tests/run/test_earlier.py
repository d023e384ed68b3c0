"""Runs of earlier versions, whose options had other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from pipelocal.run.earlier import as_of_now
from pipelocal.system.toml import read_toml, to_toml
from tests.interrupted import BASE, EVERY, train_until
from tests.test_transparency import assert_same_bits, train_alone

OLD = {"compress_share": 0.1, "compress_rank": 2, "delta_size": 256, "freeze_patience": 3}
"""As a version that had them wrote them, where nothing else was asked for."""


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"compress": "powersgd", "compress_rank": 4}, {"compress": "powersgd=4"}),
        ({"compress": "sparse-sign", "compress_share": 0.05}, {"compress": "sparse-sign=0.05"}),
        ({"compress": "powersgd", **OLD}, {"compress": "powersgd"}),
        ({"compress": "powersgd", "compress_share": 0.05}, {"compress": "powersgd"}),
        ({"compress": "sign", "compress_rank": 4}, {"compress": "sign"}),
        ({"compress": "a.py:b", "compress_rank": 4}, {"compress": "a.py:b=4"}),
        ({"compress": None, "compress_rank": 4}, {"compress": None}),
        ({"compress_rank": 4}, {}),
        ({"delta": "sketch", "delta_size": 64}, {"delta": "sketch=64"}),
        ({"delta": "sketch", "delta_size": 256}, {"delta": "sketch"}),
        ({"delta": "full", "delta_size": 64}, {"delta": "full"}),
        ({"freeze_stage": "2:plateau", "freeze_patience": 5}, {"freeze_stage": "2:plateau=5"}),
        (
            {"freeze_stage": "1:9, 2:plateau ,3:plateau", "freeze_patience": 5},
            {"freeze_stage": "1:9, 2:plateau=5 ,3:plateau=5"},
        ),
        (
            {"freeze_stage": "1:plateau, 2:9", "freeze_patience": 3},
            {"freeze_stage": "1:plateau, 2:9"},
        ),
        ({"freeze_stage": None, "freeze_patience": 5}, {"freeze_stage": None}),
        ({"rank_order": "auto", "lr": 0.1}, {"lr": 0.1}),
        ({"head": "token-mean"}, {"head": "linear"}),
        ({"head": "heads.py:token"}, {"head": "heads.py:token"}),
    ],
    ids=str,
)
def test_options_of_then_and_now(then: dict[str, Any], now: dict[str, Any]) -> None:
    assert as_of_now(then) == now
    assert as_of_now(now) == now


MERGED = [
    (["--compress", "powersgd=4"], {"compress": "powersgd", "compress_rank": 4}),
    (["--delta", "sketch=16"], {"delta": "sketch", "delta_size": 16}),
    (["--freeze-stage", "2:plateau=1"], {"freeze_stage": "2:plateau", "freeze_patience": 1}),
]


@pytest.mark.parametrize(("given", "then"), MERGED, ids=lambda each: " ".join(map(str, each)))
def test_a_run_of_an_earlier_version_goes_on(
    tmp_path: Path,
    given: list[str],
    then: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the names of now; and with another number it is refused by the option's name."""
    arguments, out = [*BASE, *given, *EVERY], tmp_path / "run"
    whole = train_alone(arguments, tmp_path / "whole")
    train_until(22, arguments, out, monkeypatch)
    written = read_toml(out / "config.toml")
    (out / "config.toml").write_text(to_toml({**written, **OLD, **then}))
    for path in out.glob("snapshots/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["identity"] |= {**OLD, **then}
        path.write_text(json.dumps(manifest))
    option, value = given
    other = [option, value + "1"]
    assert cli.run(["train", *arguments, *other, "--out", str(out), "--plain"]) == 2
    assert f"{option} ({value} there, {value}1 here)" in capsys.readouterr().err
    assert_same_bits(whole, train_alone(arguments, out))
    assert "going on after batch 20" in capsys.readouterr().err
