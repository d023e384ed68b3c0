"""Every numeric option has bounds, and the wildest numbers end in one line that names it."""

from __future__ import annotations

import io
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from pipelocal.config import DoctorConfig, EvaluateConfig, PlanConfig, TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.train import DELTA_NUMBERS
from pipelocal.doctor.command import doctor
from pipelocal.errors import UserError
from pipelocal.options import check_values, limits_of
from pipelocal.plan.plan import plan, planned_input
from pipelocal.ranks.world import World
from pipelocal.results.evaluate import evaluate
from pipelocal.system.quantities import parse_bytes, parse_flops, parse_rate, parse_time
from tests.launching import launch, run_ranks

COMMANDS: list[Any] = [TrainConfig(), PlanConfig(), DoctorConfig(), EvaluateConfig(run="r")]

WHOLE = (0, -1, 10**9, 10**12 + 1, 10**18, 2**63, 2**64, 10**30, 10**400)
REAL = (0.0, -0.0, -1.0, 5e-324, 1e9, 1e30, 1e38, 1e308, math.nan, math.inf, -math.inf)
DIGITS = "9" * 5000
"""More than int() takes."""


def numeric(command: Any) -> list[str]:
    """The names of a command's options that hold a number."""
    kinds = {"int": int, "float": float}
    return [
        field.name for field in fields(command) if str(field.type).removesuffix(" | None") in kinds
    ]


def of_kind(command: Any, name: str) -> tuple[Any, ...]:
    (field,) = (field for field in fields(command) if field.name == name)
    return WHOLE if str(field.type).startswith("int") else REAL


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_every_numeric_option_has_bounds(command: Any) -> None:
    """A new one that has none would take anything."""
    names = numeric(command)
    assert names
    assert set(names) <= limits_of(command).keys()
    check_values(command)  # and its default lies between them


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_extremes_are_taken_or_refused_by_name(command: Any) -> None:
    refused = []
    for name in numeric(command):
        for value in of_kind(command, name):
            config = replace(command, **{name: value})
            try:
                validate(config) if isinstance(config, TrainConfig) else check_values(config)
            except UserError as error:
                refused.append((f"--{name.replace('_', '-')} {value}", str(error)))
    assert all(text.startswith(start) for start, text in refused)
    assert len(refused) > 5 * len(numeric(command)) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 10**9}, "--window 1000000000: must be at most 1024 (the next stage keeps room"),
        ({"threads": 100_000}, "--threads 100000: must be at most 1024"),
        ({"timeout": 1e18}, "--timeout 1e+18: give a number above 0, at most 1e+06 (seconds"),
        ({"seed": 10**30}, f"--seed {10**30}: must be at most {2**63 - 1} (64 bits)"),
        ({"lr": math.nan}, "--lr nan: give a number above 0"),
        ({"delta": "sketch=0"}, "--delta sketch=0: must be at least 1"),
        ({"delta": "sketch=1000000001"}, "sketch=1000000001: must be at most 1000000000"),
        ({"delta": "sketch=many"}, "give a whole number behind sketch=, such as sketch=256"),
        ({"delta": "int8=4"}, "--delta int8=4: a number is for sketch alone: give int8"),
        ({"delta": "a.py:b=4"}, "--delta a.py:b=4: a number is for sketch alone: give a.py:b"),
        ({"delta": "skech=4"}, "unknown form of delta 'skech'"),
        ({"accumulate": 10**12, "replicas": "2"}, "an update of 2000000000000 batches never comes"),
    ],
)
def test_the_line_names_option_value_and_bound(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(replace(TrainConfig(objective="sgr"), **options))
    assert message in str(caught.value)


TEXTS = ("1e400", "-1", "nan", "inf", "1" + "0" * 30, DIGITS, "0." + "0" * 400 + "1", "")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:8])
@pytest.mark.parametrize(
    "options",
    [
        {"replicas": "{}"},
        {"replicas": "1,{},1,1"},
        {"replicas": "4093,4091,4079,4073"},
        {"freeze_stage": "1:{}"},
        {"freeze_stage": "{}:1"},
        {"freeze_stage": "1:plateau={}"},
        {"reconcile_weight": "{}"},
        {"reconcile_weight": "0.1,{},0.1"},
        {"device_speeds": "1,1,1,{}", "balance": "time"},
        {"memory_limit": "{}GiB", "balance": "time"},
        {"data": "text1{}"},
    ],
    ids=str,
)
def test_extremes_within_text(options: dict[str, str], text: str) -> None:
    if "reconcile_weight" in options and text.startswith("0."):
        return  # no weight at all is a weight
    filled: dict[str, Any] = {name: value.replace("{}", text) for name, value in options.items()}
    with pytest.raises(UserError):
        validate(replace(TrainConfig(objective="sgr"), **filled))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:8])
def test_extremes_of_quantities(text: str) -> None:
    for parse, unit in (
        (parse_bytes, "GiB"),
        (parse_rate, "GB/s"),
        (parse_flops, "TFLOPS"),
    ):
        with pytest.raises(UserError):
            parse("--quantity", text + unit)
    if text.startswith("0."):
        assert parse_time("--quantity", text + "s") == 0.0
    else:
        with pytest.raises(UserError):
            parse_time("--quantity", text + "s")
    with pytest.raises(UserError, match="--input-shape"):
        planned_input(PlanConfig(input_shape=text or ","))


def test_a_plan_that_takes_minutes_is_refused() -> None:
    with pytest.raises(UserError, match="take minutes to simulate"):
        plan(PlanConfig(ranks=4096, micro_batches=64))


def test_doctor_and_evaluate_look_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--threads 100000"):
        doctor(DoctorConfig(threads=100_000), io.StringIO(), World.alone())
    with pytest.raises(UserError, match="--link-size"):
        doctor(DoctorConfig(link_size="1TB"), io.StringIO(), World.alone())
    with pytest.raises(UserError, match="--batch-size -1"):
        evaluate(EvaluateConfig(run=str(tmp_path), batch_size=-1))


def test_threads_beyond_the_system_s_crashed_the_process(tmp_path: Path) -> None:
    """``--threads 100000`` was a segmentation fault of the OpenMP library."""
    ranks = launch(tmp_path, ["train", "--out", str(tmp_path / "r"), "--threads", "100000"], 1)
    assert ranks.wait() == [2], ranks.output()
    assert "--threads 100000: must be at most 1024" in ranks.output()


def test_what_is_at_its_bound_trains(tmp_path: Path) -> None:
    """The bounds are no promises: all at once, where they do not contradict each other, on two ranks."""
    at_most = (
        *("epochs", "warmup_steps", "evaluate_every", "seed"),
        *("reconcile_every", "window", "timeout", "start_timeout", "log_every"),
        *("checkpoint_activations", "snapshot_minutes", "keep_snapshots"),
    )
    options = [
        "--model",
        "mlp",
        "--stages",
        "2",
        "--max-steps",
        "2",
        "--objective",
        "sgr",
        "--delta",
        f"sketch={DELTA_NUMBERS['sketch'].limits.most}",
        "--plain",
    ]
    for name in at_most:
        options += [f"--{name.replace('_', '-')}", str(limits_of(TrainConfig())[name].most)]
    run_ranks(tmp_path / "ranks", ["train", *options, "--out", str(tmp_path / "run")], 2)
