"""Stages under torch.compile: the same training, reconciliation of first order included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelocal import cli
from tests.test_transparency import train_alone

STEPS = ["--stages", "2", "--max-steps", "4", "--batch-size", "8", "--lr", "0.01"]
RECONCILED = ["--objective", "sgr", "--reconcile-every", "2", "--reconcile-weight", "2"]


def body(run: Path, stage: int) -> dict[str, torch.Tensor]:
    state = torch.load(run / "stages" / f"stage-{stage}.pt", weights_only=True)
    found: dict[str, torch.Tensor] = state["body"]
    return found


def trains_alike(tmp_path: Path, model: list[str], backend: str) -> None:
    """What is compiled trains to what the plain stages train to, up to rounding."""
    arguments = [*model, *STEPS, *RECONCILED]
    plain = train_alone(arguments, tmp_path / "plain")
    compiled = train_alone([*arguments, "--compile", backend], tmp_path / "compiled")
    for stage in (1, 2):
        torch.testing.assert_close(body(compiled, stage), body(plain, stage), rtol=1e-3, atol=2e-5)
    greedy = train_alone([*arguments, "--objective", "greedy"], tmp_path / "greedy")
    with pytest.raises(AssertionError):  # reconciliation changes more than rounding does
        torch.testing.assert_close(body(greedy, 2), body(plain, 2), rtol=1e-3, atol=2e-5)


def model_options(name: str, tmp_path: Path) -> list[str]:
    if name != "gpt":
        return ["--model", name]
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(32, 127)) * 20)
    return ["--model", "gpt", "--data", "text16", "--data-root", str(text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "vit_small"])
def test_ahead_of_time(tmp_path: Path, name: str) -> None:
    """With a back end that needs no compiler."""
    trains_alike(tmp_path, model_options(name, tmp_path), "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "vit_small"])
def test_with_inductor(tmp_path: Path, name: str) -> None:
    """Generated code; wants a C++ compiler."""
    trains_alike(tmp_path, model_options(name, tmp_path), "inductor")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--compile", "nothing"], "--compile nothing: choose one of "),
        (
            ["--compile", "cudagraphs"],
            "--compile cudagraphs: the next batch overwrites a graph's outputs",
        ),
        (
            ["--compile", "aot_eager", "--objective", "sgr", "--reconcile", "exact"],
            "cannot be differentiated twice, which --reconcile exact needs: choose --reconcile "
            "first-order",
        ),
    ],
)
def test_what_cannot_be_is_one_line_at_the_start(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["gpt", "vit_small"])
def test_exact_names_the_alternative_for_fused_attention(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    arguments = [
        *model_options(name, tmp_path),
        *STEPS,
        "--objective",
        "sgr",
        "--reconcile",
        "exact",
        *out,
    ]
    assert cli.run(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "choose --reconcile first-order" in error
    assert "scaled_dot_product" in error
    assert not (tmp_path / "run").exists()
