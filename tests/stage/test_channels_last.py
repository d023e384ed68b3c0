"""``--channels-last``: images keep their layout in every stage and across edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.stage.layout import laid_out, own_memory
from pipelocal.stage.stage import Stage
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import InProcessEdge
from pipelocal.transport.packing import PACKINGS, packing_of
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone
from tests.transport.contracts import plain_contract

LAST = torch.channels_last
STEPS = ["--stages", "4", "--max-steps", "25", "--channels-last", "--objective", "sgr"]


def is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=LAST) and not x.is_contiguous()


def a_stage(number: int = 2, *, channels_last: bool = True) -> tuple[Stage, Tensor]:
    config = TrainConfig(objective="greedy", channels_last=channels_last)
    blueprint = blueprint_of(config)
    stage = blueprint.build_stage(number, device=torch.device("cpu"), total_steps=10)
    generator = torch.Generator().manual_seed(0)
    return stage, torch.randn(8, *blueprint.output_shape(number - 1), generator=generator)


def test_every_layer_meets_images_channels_last() -> None:
    stage, x = a_stage()
    seen: list[bool] = []
    for layer in (m for m in stage.body.modules() if type(m) is torch.nn.Conv2d):
        assert layer.weight.is_contiguous(memory_format=LAST)
        layer.register_forward_hook(lambda _layer, x, out: seen.extend(map(is_last, (*x, out))))
    result = stage.step(x, torch.arange(8))
    assert is_last(result.output)
    assert is_last(stage.evaluate(x)[0])
    assert len(seen) == 8
    assert all(seen)


def test_it_is_the_same_training_up_to_rounding() -> None:
    results = []
    for channels_last in (False, True):
        stage, x = a_stage(channels_last=channels_last)
        results.append([stage.step(x, torch.arange(8)) for _ in range(3)][-1])
    torch.testing.assert_close(results[0].output, results[1].output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0].metrics.loss, results[1].metrics.loss)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["--wire", "int8"],
        pytest.param(["--autocast", "bf16"], marks=pytest.mark.slow),
    ],
)
def test_ranks_equal_one_process(tmp_path: Path, options: list[str]) -> None:
    arguments = [*STEPS, "--reconcile-every", "3", *options]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (3, 1, 1)])
@pytest.mark.parametrize("form", list(PACKINGS))
def test_packed_images_arrive_channels_last(form: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(6, *shape).contiguous(memory_format=LAST)
    packing = packing_of(form, shape, channels_last=True)
    message = packing.encode(x)
    assert message.is_contiguous()
    assert message.shape[1:] == packing.shape
    back = packing.decode(message)
    assert back.shape == x.shape
    assert back.is_contiguous(memory_format=LAST)
    plain = packing_of(form, shape)
    assert torch.equal(back, plain.decode(plain.encode(x.contiguous())))
    assert back.stride() == packing.decode(message.clone()).stride()


def test_unrounded_images_are_not_copied_for_it() -> None:
    """The message is the image's own memory, and so is what is made of it."""
    x = torch.randn(6, 3, 4, 5).contiguous(memory_format=LAST)
    packing = packing_of("float32", (3, 4, 5), channels_last=True)
    message = packing.encode(x)
    assert message.shape == (6, 4, 5, 3)
    assert message.data_ptr() == x.data_ptr() == packing.decode(message).data_ptr()


def test_what_is_no_image_travels_as_ever() -> None:
    for shape in [(7,), (5, 6), (2, 3, 4, 5)]:
        assert packing_of("float32", shape, channels_last=True).shape == shape


def test_an_edge_within_a_process_hands_images_over_channels_last() -> None:
    edge = InProcessEdge(
        plain_contract(
            source=1,
            feature=(3, 4, 5),
            label=(),
            classes=2,
            max_rows=6,
            channels_last=True,
        )
    )
    x = torch.randn(6, 3, 4, 5).contiguous(memory_format=LAST)
    edge.begin(Header(kind=Kind.TRAIN, number=0, rows=6, epoch=0, step=0))
    edge.send("x", x)
    got = edge.receive().get("x")
    assert torch.equal(got, x)
    assert is_last(got)
    assert edge.sent_bytes == x.nbytes


def test_layouts() -> None:
    image, tokens = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 3).transpose(1, 2)
    assert is_last(laid_out(image, channels_last=True))
    assert laid_out(image, channels_last=False) is image
    assert laid_out(tokens, channels_last=True).is_contiguous()
    last = laid_out(image, channels_last=True)
    assert laid_out(last, channels_last=True) is last
    out = own_memory(last, last, channels_last=True)
    assert is_last(out)
    assert out.data_ptr() != last.data_ptr()


def test_models_without_images_train_as_before(tmp_path: Path) -> None:
    arguments = ["--model", "mlp", "--stages", "2", "--max-steps", "4"]
    plain = train_alone(arguments, tmp_path / "plain")
    last = train_alone([*arguments, "--channels-last"], tmp_path / "last")
    assert_same_bits(plain, last)


def test_with_bp_free_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert cli.run(["train", "--model", "allconv", "--bp-free", "--channels-last", *out]) == 2
    assert "--channels-last: the formulas of --bp-free do not know it" in capsys.readouterr().err


def test_an_exported_model_loads_into_a_plain_one(tmp_path: Path) -> None:
    run, file = train_alone(STEPS, tmp_path / "run"), tmp_path / "model.pt"
    assert cli.run(["export", str(run), "--to", str(file)]) == 0
    model = blueprint_of(TrainConfig()).chain.build_whole(seed=1)
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(v.is_contiguous() for v in model.state_dict().values())
