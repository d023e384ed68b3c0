"""What export writes is what the run trained, in every form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pipelocal
from pipelocal import cli
from pipelocal.results.saved_run import FinishedRun
from tests.test_transparency import train_alone

FAST = [
    pytest.param(["--model", "mlp"], id="mlp"),
    pytest.param(["--model", "resnet8", "--channels-last"], id="resnet8"),
    pytest.param(["--model", "vit_small"], id="vit_small", marks=pytest.mark.slow),
]
SLOW = [
    pytest.param(
        ["--model", model, "--data", "text16", "--batch-size", "8"],
        id=model,
        marks=pytest.mark.slow,
    )
    for model in ("gpt", "lstm")
]


@pytest.fixture(scope="module", params=[*FAST, *SLOW])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 20)
    options = [*request.param, "--stages", "3", "--max-steps", "2", "--ema", "0.5"]
    if "text16" in options:
        options += ["--data-root", str(folder / "text.txt")]
    return train_alone(options, folder / "run")


def _export(run: Path, to: Path, *options: str) -> Path:
    assert cli.run(["export", str(run), "--to", str(to), *options]) == 0
    return to


def _samples(run: Path, count: int) -> torch.Tensor:
    chain = FinishedRun(str(run)).blueprint.chain
    generator = torch.Generator().manual_seed(1)
    if chain.input_dtype == torch.int64:
        return torch.randint(0, 256, (count, *chain.input_shape), generator=generator)
    return torch.randn((count, *chain.input_shape), generator=generator)


@pytest.mark.parametrize("averaged", [False, True])
def test_safetensors_hold_the_plain_state_dict(run: Path, tmp_path: Path, averaged: bool) -> None:
    option = ["--averaged"] if averaged else []
    read = load_file(_export(run, tmp_path / "model.safetensors", *option))
    plain = pipelocal.plain_state_dict(str(run), averaged=averaged)
    assert read.keys() == plain.keys()
    assert all(torch.equal(read[name], plain[name]) for name in plain)


def test_heads_come_under_names_of_their_own(run: Path, tmp_path: Path) -> None:
    network = pipelocal.load_with_heads(str(run))
    plain = pipelocal.plain_state_dict(str(run))
    for suffix in (".pt", ".safetensors"):
        path = _export(run, tmp_path / f"model{suffix}", "--heads")
        read = torch.load(path, weights_only=True) if suffix == ".pt" else load_file(path)
        more = read.keys() - plain.keys()
        assert more == {
            f"heads.{number}.{name}"
            for number in (1, 2)
            for name in network.heads[number - 1].state_dict()
        }
        for number in (1, 2):
            for name, value in network.heads[number - 1].state_dict().items():
                assert torch.equal(read[f"heads.{number}.{name}"], value)


def test_a_program_computes_what_the_model_does(run: Path, tmp_path: Path) -> None:
    """In batches of any size, without a line of pipelocal."""
    model, network = pipelocal.load(str(run)), pipelocal.load_with_heads(str(run))
    program = torch.export.load(_export(run, tmp_path / "model.pt2")).module()
    heads = torch.export.load(_export(run, tmp_path / "heads.pt2", "--heads")).module()
    for rows in (1, 2, 7):
        x = _samples(run, rows)
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x))
            torch.testing.assert_close(list(heads(x)), network.all_logits(x))


def test_the_network_up_to_a_stage(run: Path, tmp_path: Path) -> None:
    """As a module and in every format: the same logits as that head's, and no tensor behind it."""
    network = pipelocal.load_with_heads(str(run))
    plain = pipelocal.plain_state_dict(str(run))
    early = pipelocal.load(str(run), stage=2)
    x = _samples(run, 3)
    with torch.no_grad():
        wanted = network.all_logits(x)[1]
        assert torch.equal(early(x), wanted)
        program = torch.export.load(_export(run, tmp_path / "early.pt2", "--stage", "2")).module()
        torch.testing.assert_close(program(x), wanted)
    state = torch.load(_export(run, tmp_path / "early.pt", "--stage", "2"), weights_only=True)
    other = load_file(_export(run, tmp_path / "early.safetensors", "--stage", "2"))
    assert state.keys() == other.keys()
    own = state.keys() & plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in own)
    head = network.heads[1].state_dict()
    assert state.keys() - own == {f"heads.2.{name}" for name in head}
    assert all(torch.equal(state[f"heads.2.{name}"], value) for name, value in head.items())
    assert len(state) == len(early.state_dict())
    last = torch.load(_export(run, tmp_path / "last.pt", "--stage", "3"), weights_only=True)
    assert last.keys() == plain.keys()
    assert type(pipelocal.load(str(run), stage=3)) is type(pipelocal.load(str(run)))


def test_a_stage_that_cannot_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "mlp", "--stages", "3", "--freeze-stage", "1:0", "--max-steps", "2"]
    run = train_alone(options, tmp_path / "run")
    capsys.readouterr()
    to = ["--to", str(tmp_path / "model.pt")]
    for more, said in (
        (["--stage", "4"], "has 3 stage(s): give 1 to 3"),
        (["--stage", "1"], "never learnt anything"),
        (["--stage", "2", "--heads"], "leave one of them out"),
    ):
        assert cli.run(["export", str(run), *to, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()
    with pytest.raises(pipelocal.UserError, match="give 1 to 3"):
        pipelocal.load(str(run), stage=0)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("model.onnx", "choose one of the endings .pt, .safetensors, .pt2"),
        ("model", "choose one of the endings"),
        ("nowhere/model.pt", "there is no folder"),
    ],
)
def test_where_it_cannot_go(
    tmp_path: Path, to: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_alone(["--model", "mlp", "--max-steps", "1"], tmp_path / "run")
    capsys.readouterr()
    assert cli.run(["export", str(run), "--to", str(tmp_path / to)]) == 2
    assert said in capsys.readouterr().err
    assert cli.run(["export", str(run), "--to", str(tmp_path / "m.pt"), "--averaged"]) == 2
    assert "was trained without --ema" in capsys.readouterr().err
