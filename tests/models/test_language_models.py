"""gpt, lstm and gru: shapes, causality, first parameters, gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models import Chain, build_chain
from pipelocal.objective.probe import check_double_backward
from pipelocal.partition import by_count

NAMES = ["gpt", "gpt-math", "lstm", "gru"]
VOCABULARY = 31


def _chain(name: str, length: int = 12) -> Chain:
    return build_chain(name, input_shape=(length,), classes=VOCABULARY, seed=0)


def _tokens(rows: int = 3, length: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (rows, length), generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_on_meta_are_those_of_a_real_forward(name: str) -> None:
    chain = _chain(name)
    assert chain.input_dtype == torch.int64
    x = _tokens(rows=2)
    shapes = []
    for unit in chain.build(0, len(chain.units), seed=0):
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == chain.shapes() == [(12, 128)] * len(chain.units)
    assert chain.build_classifier(seed=0)(x).shape == (2, 12, VOCABULARY)


@pytest.mark.parametrize("name", NAMES)
def test_no_token_changes_the_logits_before_it(name: str) -> None:
    whole = _chain(name).build_whole(seed=0)
    tokens = _tokens()
    logits = whole(tokens)
    for place in range(12):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCABULARY
        other = whole(changed)
        torch.testing.assert_close(other[:, :place], logits[:, :place])
        assert bool((other[:, place] != logits[:, place]).any(1).all())
        assert bool((other[:, -1] != logits[:, -1]).any(1).all()), "the past is seen"


@pytest.mark.parametrize("name", ["gpt", "lstm", "gru"])
def test_stages_union_is_the_whole_model(name: str) -> None:
    chain = _chain(name)
    whole = chain.build_whole(seed=3).state_dict()
    union = {}
    for cut in by_count(chain, 4):
        union.update(chain.build(cut.start, cut.stop, seed=3).state_dict())
    classifier = chain.build_classifier(seed=3).state_dict()
    union.update({f"classifier.{key}": value for key, value in classifier.items()})
    assert list(union) == list(whole)
    assert all(torch.equal(union[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", NAMES)
def test_whole_model_trains(name: str) -> None:
    """Gradients reach every parameter; the first loss is that of a guess."""
    whole = _chain(name).build_whole(seed=0)
    tokens = _tokens(rows=8)
    loss = nn.functional.cross_entropy(whole(tokens).flatten(0, 1), tokens.flatten())
    assert abs(float(loss.detach()) - math.log(VOCABULARY)) < 0.3
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in whole.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


def test_gpt_starts_as_gpt_2() -> None:
    """Normal weights of 0.02, projections into the residual stream less by sqrt(2 * blocks)."""
    state = _chain("gpt").build_whole(seed=0).state_dict()
    assert len([key for key in state if key.endswith("mlp_out.weight")]) == 6
    for key, value in state.items():
        if key.endswith("bias"):
            assert not value.any(), key
        elif "norm" in key:
            assert bool((value == 1).all()), key
        else:
            into_residual = key.endswith(("attention.out.weight", "mlp_out.weight"))
            std = 0.02 / math.sqrt(12) if into_residual else 0.02
            assert abs(float(value.std()) / std - 1) < 0.06, key


def test_both_attentions_are_one_model() -> None:
    ours, theirs = (_chain(name).build_whole(seed=0) for name in ("gpt", "gpt-math"))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(_tokens()), theirs(_tokens()))


@pytest.mark.parametrize("name", ["gpt-math", "lstm", "gru"])
def test_what_can_be_differentiated_twice(name: str) -> None:
    chain = _chain(name)
    body = chain.build(1, len(chain.units), seed=0)
    check_double_backward(body, chain.build_classifier(seed=0), (12, 128), stage=2)


def test_attention_cannot_be_by_default() -> None:
    chain = _chain("gpt")
    body = chain.build(1, len(chain.units), seed=0)
    with pytest.raises(UserError, match=r"unit 'block1' cannot be differentiated twice.*MATH"):
        check_double_backward(body, chain.build_classifier(seed=0), (12, 128), stage=2)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"model '{name[:3]}.*' takes sequences .*\[3, 8, 8\]"):
        build_chain(name, input_shape=(3, 8, 8), classes=10, seed=0)
