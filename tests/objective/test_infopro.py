"""InfoPro: its loss is the formula written out, in float64; and its runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal import Pipeline
from pipelocal.errors import UserError
from pipelocal.models.layers import PooledLinear
from pipelocal.objective import Greedy, InfoPro
from pipelocal.objective.infopro import Reconstructing
from pipelocal.seeding import seeded
from tests.interrupted import train_until
from tests.launching import run_ranks
from tests.objective.stages import gradients, make_stage, place
from tests.test_transparency import assert_same_bits, train_alone

IMAGE, FEATURE = (2, 6, 6), (4, 3, 3)
PLACE = replace(place(2), sample_shape=IMAGE, input_shape=(3, 6, 6), output_shape=FEATURE)


def test_weights_over_depth() -> None:
    paper = InfoPro(reconstruction=6, last_reconstruction=1, task=0, last_task=2)
    assert [paper.weights(k, 4) for k in (1, 2, 3, 4)] == [(6, 0), (3.5, 1), (1, 2), (0, 1)]
    assert [InfoPro().weights(k, 4) for k in (1, 3, 4)] == [(1, 0.3), (0, 1), (0, 1)]
    assert [paper.weights(k, 2) for k in (1, 2)] == [(6, 0), (0, 1)]


def test_the_last_stage_and_a_weight_of_zero_are_greedy() -> None:
    assert type(InfoPro().for_stage(replace(PLACE, number=4))) is Greedy
    assert type(InfoPro(reconstruction=0, task=1).for_stage(PLACE)) is Greedy


def test_the_image_is_relayed_as_far_as_it_is_wanted() -> None:
    assert [(relay.of, relay.until) for relay in InfoPro().relays(5)] == [(0, 3)]
    assert [relay.until for relay in InfoPro(last_reconstruction=1).relays(5)] == [4]
    assert not InfoPro(target="input").relays(5)
    assert not InfoPro().relays(3), "the second of three has weight 0"


def written_out(kind: str, decoder: nn.Module, out: Tensor, image: Tensor, error: str) -> Tensor:
    """The decoder and its error, from the weights alone; BatchNorm in training."""
    p = dict(decoder.named_parameters())
    if kind == "full":
        out = F.interpolate(out, image.shape[2:], mode="bilinear", align_corners=True)
    hidden = F.conv2d(out, p["hidden.weight"], p["hidden.bias"], padding=1)
    mean = hidden.mean((0, 2, 3), keepdim=True)
    variance = ((hidden - mean) ** 2).mean((0, 2, 3), keepdim=True)
    normed = (hidden - mean) / (variance + 1e-5) ** 0.5
    normed = normed * p["norm.weight"].view(-1, 1, 1) + p["norm.bias"].view(-1, 1, 1)
    made = F.conv2d(normed.clamp_min(0), p["colours.weight"], p["colours.bias"], padding=1)
    if error == "bce":
        flat = image.transpose(0, 1).flatten(1)
        low, high = flat.min(1).values, flat.max(1).values
        image = (image - low.view(-1, 1, 1)) / (high - low).view(-1, 1, 1)
    if kind == "pooled":  # 6x6 to 3x3
        image = image.reshape(len(image), -1, 3, 2, 3, 2).mean((3, 5))
    if error == "mse":
        error_of_each: Tensor = (made / 108**0.5 - image) ** 2
        return error_of_each.mean()
    share = 1 / (1 + (-made).exp())
    return -(image * share.log() + (1 - image) * (1 - share).log()).sum() / made.numel()


@pytest.mark.parametrize("kind", ["pooled", "full"])
@pytest.mark.parametrize(
    ("target", "error"), [("image", "mse"), ("image", "bce"), ("input", "mse")]
)
def test_gradients_are_those_of_the_formula(
    kind: Literal["pooled", "full"],
    error: Literal["mse", "bce"],
    target: Literal["image", "input"],
) -> None:
    with seeded(0, "infopro"):
        body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh()).double()
        head = PooledLinear(FEATURE, 3).double()
        recipe = InfoPro(
            decoder=kind, error=error, target=target, reconstruction=3, task=0.2, last_task=2
        )
        objective = recipe.for_stage(PLACE)
        assert isinstance(objective, Reconstructing)
        objective.double()
        x, image = torch.randn(5, 3, 6, 6).double(), torch.randn(5, *IMAGE).double()
    labels = torch.tensor([0, 1, 2, 1, 0])
    stage = make_stage(body, head, objective=objective)
    stage.forward(x, relayed={"image": image} if target == "image" else {})
    stage.output_gradient(labels)
    stage.reconcile(None)
    found, own = gradients(stage), [p.grad for p in objective.parameters()]

    out = body(x)
    decoder = objective.decoder
    assert decoder is not None
    wanted = image if target == "image" else x
    task = -torch.log_softmax(head(out), 1)[range(5), labels].mean()
    loss = 1.5 * written_out(kind, decoder, out, wanted, error) + 1.1 * task
    parameters = [*body.parameters(), *head.parameters(), *objective.parameters()]
    expected = torch.autograd.grad(loss, parameters)
    for value, wanted in zip([*found.values(), *own], expected, strict=True):
        assert value is not None
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-13)
    assert torch.allclose(stage.metrics(labels).loss, loss.detach(), rtol=1e-12)


def test_tokens_and_vectors_reconstruct_their_own_input() -> None:
    recipe = InfoPro(target="input")
    tokens = recipe.for_stage(replace(PLACE, input_shape=(7, 8), output_shape=(7, 8)))
    assert isinstance(tokens, Reconstructing)
    assert tokens.decoder is not None
    assert tokens.decoder(torch.zeros(2, 7, 8)).shape == (2, 7, 8)
    vectors = recipe.for_stage(replace(PLACE, input_shape=(3, 6, 6), output_shape=(5,)))
    assert isinstance(vectors, Reconstructing)
    assert vectors.decoder is not None
    assert vectors.decoder(torch.zeros(2, 5)).shape == (2, 3, 6, 6)
    embedding = replace(PLACE, number=1, input_shape=(7,), output_shape=(7, 8))
    assert type(recipe.for_stage(embedding)) is Greedy


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({}, {"output_shape": (7, 8)}, "choose target=input"),
        ({"target": "input"}, {"input_shape": (9, 8), "output_shape": (7, 8)}, "another cut"),
        (
            {"target": "input"},
            {"number": 1, "stages": 2, "input_shape": (7,), "output_shape": (7, 8)},
            "give last_reconstruction above 0",
        ),
    ],
)
def test_what_cannot_be_reconstructed_is_one_line(
    options: dict[str, Literal["input"]], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        InfoPro(**options).for_stage(replace(PLACE, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"task": -1.0}, {"error": "bce", "target": "input"}, {"decoder": "half"}]
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="InfoPro: "):
        InfoPro(**options)  # type: ignore[arg-type]


def test_an_image_that_is_not_relayed_is_not_taken_for_the_input() -> None:
    """An objective for each stage passes on no ``relays``; stage 2's input has the shape of an image."""
    units = [nn.Conv2d(1 if k == 0 else 4, 4, 3, padding=1) for k in range(4)]
    net = nn.Sequential(*units, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    x, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    recipe = InfoPro(last_reconstruction=1)
    alone = Pipeline(net, stages=4, head="linear", objective=recipe.for_stage)
    with pytest.raises(UserError, match="stage 2 reconstructs the image, which is not relayed"):
        alone.step(x, labels)
    Pipeline(net, stages=4, head="linear", objective=recipe).step(x, labels)


def test_over_ranks_it_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it goes on from a snapshot, which holds the decoders; the image's bytes are counted."""
    arguments = ["--objective", "infopro", "--max-steps", "8", "--head", "conv", "--step-early"]
    arguments += ["--snapshot-every", "3", "--objective-options", "last_reconstruction=1"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    train_until(5, arguments, out, monkeypatch)
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 4)
    assert_same_bits(alone, out)
    stages = json.loads((alone / "summary.json").read_text())["stages"]
    figures = [stage["figures"]["train"] for stage in stages]
    assert ["reconstruction" in each for each in figures] == [True, True, True, False]
    plain = train_alone([*arguments[:-2], "--objective", "greedy"], tmp_path / "greedy")
    others = json.loads((plain / "summary.json").read_text())["stages"]
    more = [one["sent_bytes"] - two["sent_bytes"] for one, two in zip(stages, others, strict=True)]
    image = (8 * 64 + 355) * 64 * 4
    assert more == [image, image, 0, 0], "stage 3 is the last that reconstructs"
