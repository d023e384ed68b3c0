"""ContSup: stages that are supplied with context, in float64 and to the last bit; and their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipelocal
from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.models.context import (
    HIDDEN,
    Supplied,
    Supply,
    control_width,
    image_encoder,
    input_encoder,
)
from pipelocal.models.payload import pack, unpack
from pipelocal.objectives import ContSup
from pipelocal.results.saved_run import FinishedRun
from pipelocal.stage.result import StepResult
from pipelocal.stage.stage import Stage
from pipelocal.transport.contract import sent_row_bytes
from tests.interrupted import train_until
from tests.launching import run_ranks
from tests.objective.stages import gradients
from tests.test_transparency import assert_same_bits, train_alone

MODEL = ["--model", "resnet8", "--stages", "4", "--head", "linear"]
ROWS = 12
CPU = torch.device("cpu")
UNET = f"{Path(__file__).parents[1] / 'skipping_models.py'}:unet"


def config(objective: str, *options: str) -> TrainConfig:
    return TrainConfig(
        model="resnet8", stages=4, head="linear", objective=objective, objective_options=options
    )


def stages_of(objective: str, *options: str) -> list[Stage]:
    """The stages of a ResNet-8, in float64."""
    blueprint = blueprint_of(config(objective, *options))
    stages = [blueprint.build_stage(number, device=CPU, total_steps=1) for number in (1, 2, 3, 4)]
    for stage in stages:
        stage.body.double()
        stage.head.double()
    return stages


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 1, 8, 8, generator=generator).double(), torch.arange(ROWS) % 10


def to_gradients(stage: Stage, x: Tensor, beside: tuple[Tensor, ...]) -> StepResult:
    """One batch up to the gradients, which stay."""
    output = stage.forward(x, beside)
    beside = stage.beside
    delta = stage.output_gradient(batch()[1])
    stage.reconcile(None)
    metrics = stage.metrics(batch()[1])
    return StepResult(output=output, beside=beside, output_gradient=delta, metrics=metrics)


def first_unit(stage: Stage) -> Supplied:
    unit = stage.body[0]
    assert isinstance(unit, Supplied)
    return unit


def test_which_contexts_a_stage_has_and_which_travel() -> None:
    """The input of stage 1 is the image: with an encoder of its own, it is not among the inputs."""
    image, one, both = (ContSup(context=text).supply for text in ("E", "R1", "R2E"))
    assert [image.contexts(k) for k in (1, 2, 3, 4)] == [[], [1], [1], [1]]
    assert [one.contexts(k) for k in (1, 2, 3, 4)] == [[], [1], [2], [3]]
    assert [both.contexts(k) for k in (1, 2, 3, 4)] == [[], [1], [2, 1], [3, 2, 1]]
    assert [image.passed_on(k, 4) for k in (0, 1, 2, 3, 4)] == [[], [1], [1], [1], []]
    assert [one.passed_on(k, 4) for k in (1, 2, 3, 4)] == [[1], [2], [3], []]
    assert [both.passed_on(k, 4) for k in (1, 2, 3, 4)] == [[1], [1, 2], [1, 2, 3], []]
    control = Supply(image=True, inputs=2, control=True)
    assert not any(control.passed_on(k, 4) for k in (1, 2, 3, 4))


def test_parameters_of_encoders() -> None:
    """Those of the paper's code, with biases; the control's are never fewer, and about as many."""

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(image_encoder(3, (16, 8, 8))) == 2136
    assert count(image_encoder(3, (64, 2, 2))) == 7464
    assert count(input_encoder(16, (32, 4, 4))) == 16 * 32 + 32 + 2 * 32
    for colours in (1, 3):
        for channels in (16, 32, 64):
            own = count(image_encoder(colours, (channels, 4, 4)))
            width = control_width(colours, channels)
            assert width <= HIDDEN
            control = count(image_encoder(channels, (channels, 4, 4), hidden=width))
            fewer = count(image_encoder(channels, (channels, 4, 4), hidden=width - 1))
            assert fewer < own <= control <= own * 7 / 6


@pytest.mark.parametrize("options", [("context=E",), ("context=R2E",), ("control=true",)])
def test_encoders_of_nothing_are_greedy(options: tuple[str, ...]) -> None:
    """With the last BatchNorm at zero: outputs, losses and gradients, to the last bit."""
    plain, supplied = stages_of("greedy"), stages_of("contsup", *options)
    x, beside = batch()[0], tuple[Tensor, ...]()
    other = x
    for greedy, stage in zip(plain, supplied, strict=True):
        for encoder in first_unit(stage).context.values() if stage.number > 1 else ():
            *_, last = (part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        wanted, found = to_gradients(greedy, other, ()), to_gradients(stage, x, beside)
        assert torch.equal(found.output, wanted.output)
        assert torch.equal(found.output_gradient, wanted.output_gradient)
        assert torch.equal(found.metrics.loss, wanted.metrics.loss)
        own = {name.replace(".unit.", "."): value for name, value in gradients(stage).items()}
        assert all(torch.equal(own[name], value) for name, value in gradients(greedy).items())
        x, beside, other = found.output, found.beside, wanted.output


def test_the_supplied_input_is_the_formula() -> None:
    """Stage 3 with R1E: h + M(input of stage 2) + M(image), which it also passes on as context of stage 4."""
    stages = stages_of("contsup")
    x, beside = batch()[0], tuple[Tensor, ...]()
    for stage in stages[:2]:
        result = stage.step(x, batch()[1], beside=beside)
        x, beside = result.output, result.beside
    image, input2 = beside
    third = first_unit(stages[2])
    third.eval()
    given = x.clone()
    wanted = x + third.context["input2"](input2) + third.context["image"](image)
    out, (relayed, input3) = unpack(third(pack(x, beside)))
    assert torch.allclose(input3, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(out, third.unit(input3))
    assert torch.equal(x, given), "what is on its way to this stage is not written to"
    assert relayed is image


def test_no_gradient_reaches_a_stage_before() -> None:
    """Though context comes from there; and the image at the last stage has the first one's bits."""
    stages = stages_of("contsup", "context=R2E")
    x, beside = batch()[0], tuple[Tensor, ...]()
    image = x.clone()
    for stage in stages:
        assert not x.requires_grad
        assert not any(context.requires_grad for context in beside)
        for before in stages[: stage.number - 1]:
            for module in before.modules:
                module.zero_grad(set_to_none=True)
        if stage.number > 1:
            assert torch.equal(beside[0], image)
        result = to_gradients(stage, x, beside)
        assert all(
            parameter.grad is None
            for before in stages[: stage.number - 1]
            for module in before.modules
            for parameter in module.parameters()
        )
        if stage.number > 1:
            encoders = list(first_unit(stage).context.parameters())
            assert len(encoders) > 0
            assert all(parameter.grad is not None for parameter in encoders)
        sent = {tensor.data_ptr() for tensor in (result.output, *result.beside)}
        assert len(sent) == 1 + len(result.beside)
        assert not sent & {tensor.data_ptr() for tensor in (x, *beside)}, "memory of what came in"
        x, beside = result.output, result.beside


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = [*MODEL, "--objective", "contsup", "--max-steps", "4", "--ema", "0.5"]
    return train_alone(arguments, tmp_path_factory.mktemp("contsup") / "run")


@torch.no_grad()
def test_the_exported_network_is_the_evaluated_one(run: Path, tmp_path: Path) -> None:
    """To the last bit, as a module or a state dict; and up to a stage."""
    x = torch.randn(5, 1, 8, 8)
    given, beside, logits = x, tuple[Tensor, ...](), list[Tensor]()
    for stage in FinishedRun(str(run)).stages(CPU):
        given, answer = stage.evaluate(given, beside)
        beside = stage.beside
        logits.append(answer)
    model, network = pipelocal.load(str(run)), pipelocal.load_with_heads(str(run))
    assert torch.equal(model(x), logits[-1])
    assert all(map(torch.equal, network.all_logits(x), logits))
    assert network.predict(x, until=2.0).label.equal(logits[-1].argmax(-1))
    assert torch.equal(pipelocal.load(str(run), stage=3)(x), logits[2])

    to = tmp_path / "model.pt"
    assert cli.run(["export", str(run), "--to", str(to), "--averaged"]) == 0
    state = torch.load(to, weights_only=True)
    assert {"block1.conv1.weight", "block1.context.image.0.weight"} <= state.keys()
    averaged = pipelocal.load(str(run), averaged=True)
    assert (
        state.keys() == averaged.state_dict().keys() == pipelocal.plain_state_dict(str(run)).keys()
    )
    assert not torch.equal(averaged(x), logits[-1])
    model.load_state_dict(state)
    assert torch.equal(model(x), averaged(x))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 4])
def test_an_exported_program_is_the_network(run: Path, tmp_path: Path, stage: int) -> None:
    x, to = torch.randn(5, 1, 8, 8), tmp_path / "model.pt2"
    assert cli.run(["export", str(run), "--to", str(to), "--stage", str(stage)]) == 0
    with torch.no_grad():
        wanted = pipelocal.load_with_heads(str(run)).all_logits(x)[stage - 1]
        assert torch.equal(torch.export.load(to).module()(x), wanted)


def test_the_run_and_its_evaluation_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())
    assert found["eval_accuracy"] == summary["eval_accuracy"]
    assert found["ensemble_accuracy"] == summary["ensemble_accuracy"]


def test_over_ranks_it_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a packed output, an uneven last batch, and from a snapshot on; its bytes are the formula's."""
    arguments = [*MODEL, "--objective", "contsup", "--objective-options", "context=R2E"]
    arguments += ["--wire", "int8", "--train-samples", "150", "--epochs", "2"]
    arguments += ["--snapshot-every", "2"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    train_until(3, arguments, out, monkeypatch)
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 4)
    assert_same_bits(alone, out)
    summary = json.loads((alone / "summary.json").read_text())
    trained, evaluated = 2 * 150, 2 * 355  # an epoch's last batch has 22 rows
    plain, image, full = blueprint_of(config("greedy")), 64, 16 * 64
    contexts = [image, image + full, image + full + full]
    for number, numbers in enumerate(contexts, start=1):
        every = sent_row_bytes(plain.passed_on(number), "int8") + 4 * numbers + 8  # and a label
        sent = trained * (every + 8) + evaluated * (every + 4 * 10)  # ids, or votes
        assert summary["stages"][number - 1]["sent_bytes"] == sent


def test_the_plan_counts_encoders_and_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for objective in ("greedy", "contsup"):
        wanted = [*MODEL, "--data", "digits", "--batch-size", "8", "--device", "meta", "--json"]
        assert cli.run(["plan", *wanted, "--objective", objective]) == 0
        plans.append(json.loads(capsys.readouterr().out)["stages"])
    for before, stage, built in zip(*plans, stages_of("contsup"), strict=True):
        own = [p for module in built.modules for p in module.parameters()]
        assert stage["parameters"] == sum(p.numel() for p in own)
        relayed = {1: 64, 2: 64 + 16 * 64, 3: 64 + 16 * 64, 4: 0}[stage["stage"]]
        assert stage["sent_bytes"] - before["sent_bytes"] == 8 * 4 * relayed
        assert (stage["seconds"] > before["seconds"]) == (stage["stage"] > 1)
        assert stage["memory_bytes"] > before["memory_bytes"], "contexts lie in rings and windows"


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["train", *arguments, "--plain"]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    return last


def test_another_network_is_not_gone_on_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another cut, other contexts, or none, at any cut: one line each, and no folder is made."""
    onward = [
        "--max-steps",
        "8",
        "--ema",
        "0.5",
        "--resume",
        str(run),
        "--out",
        str(tmp_path / "b"),
    ]
    same = [*MODEL, "--objective", "contsup", *onward]
    assert "--cut block1,block2,block3: give the same" in said(
        [*same, "--cut", "block2,block3"], capsys
    )
    other = said([*same, "--objective-options", "context=E"], capsys)
    assert "--objective-options ([] there, ['context=E'] here)" in other
    greedy = [*MODEL, "--objective", "greedy", *onward]
    for cut in ("block1,block2,block3", "block2"):
        answer = said([*greedy, "--cut", cut], capsys)
        assert "stage 2 has block1.context.image.0.bias there, and no unit has it here" in answer
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("context", ["", "R0", "E1", "R", "RE", "e"])
def test_contexts_that_cannot_be(context: str) -> None:
    with pytest.raises(UserError, match="ContSup: context="):
        ContSup(context=context)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("mlp", "digits", "input of stage 2 is [256] float32"),
        ("gpt", "text", "input of stage 1 is [128] int64"),
        (UNET, "digits", "unit 'second' passes on 2"),
    ],
)
def test_what_cannot_be_supplied_is_refused(model: str, data: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        blueprint_of(TrainConfig(model=model, data=data, stages=3, objective="contsup"))
    assert words in str(caught.value)
