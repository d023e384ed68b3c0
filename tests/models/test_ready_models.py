"""Every model of the registry."""

import itertools
import math

import pytest
import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import MODELS, Chain, build_chain
from pipelocal.partition import by_count
from tests.models.test_language_models import NAMES as LANGUAGE_MODELS
from tests.models.test_torchvision_chains import UNITS as TORCHVISION_MODELS

MIXERS = ["local-mixer", "local-mixer-m-1-16", "local-mixer-s-1-1"]
"""In tests/forward_gradient."""
RECURRENT = ["rnn", "rnn-last"]
"""In test_rnn.py."""
SMALL = ["mlp", "allconv", "resnet8", "resnet20", "resnet32"]


def _chain(name: str, input_shape: tuple[int, ...] = (3, 8, 8), classes: int = 7) -> Chain:
    return build_chain(name, input_shape=input_shape, classes=classes, seed=0)


def test_registry_is_covered() -> None:
    elsewhere = {*LANGUAGE_MODELS, *TORCHVISION_MODELS, *MIXERS, *RECURRENT}
    others = [name for name in MODELS if name not in elsewhere]
    assert others == [*SMALL, "resnet110"]


@pytest.mark.parametrize("name", SMALL)
def test_shapes_on_meta_are_those_of_a_real_forward(name: str) -> None:
    chain = _chain(name)
    x = torch.randn(2, *chain.input_shape)
    shapes = []
    for unit in chain.build(0, len(chain.units), seed=0):
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == chain.shapes()
    assert chain.build_classifier(seed=0)(x).shape == (2, 7)


@pytest.mark.parametrize(("depth", "blocks"), [(8, 1), (20, 3), (32, 5), (110, 18)])
def test_resnet_shapes(depth: int, blocks: int) -> None:
    chain = _chain(f"resnet{depth}", input_shape=(3, 32, 32))
    assert [u.name for u in chain.units] == ["stem", *[f"block{i + 1}" for i in range(3 * blocks)]]
    assert chain.shapes() == (
        [(16, 32, 32)] * (1 + blocks) + [(32, 16, 16)] * blocks + [(64, 8, 8)] * blocks
    )


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_resnet_depth_counts_its_weighted_layers(depth: int) -> None:
    """6n + 2 without the shortcuts' 1x1 convolutions, as the paper counts."""
    whole = _chain(f"resnet{depth}").build_whole(seed=0)
    layers = [
        m
        for m in whole.modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    ]
    assert len(layers) == depth


@pytest.mark.parametrize("name", SMALL)
def test_stages_union_is_the_whole_model_however_it_is_cut(name: str) -> None:
    chain = _chain(name)
    whole = chain.build_whole(seed=3).state_dict()
    classifier = chain.build_classifier(seed=3).state_dict()
    for stages in {1, 2, 3, len(chain.units)}:
        union = {}
        for cut in by_count(chain, stages):
            union.update(chain.build(cut.start, cut.stop, seed=3).state_dict())
        union.update({f"{chain.classifier.name}.{key}": v for key, v in classifier.items()})
        assert list(union) == list(whole)
        assert all(torch.equal(union[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", SMALL)
def test_every_unit_starts_apart_from_the_others(name: str) -> None:
    chain = _chain(name)
    state = chain.build_whole(seed=0).state_dict()
    drawn = {key: value for key, value in state.items() if value.dim() > 1}
    pairs = 0
    for (first, a), (second, b) in itertools.combinations(drawn.items(), 2):
        if a.shape == b.shape:
            assert not torch.equal(a, b), (first, second)
            pairs += 1
    assert pairs > 0
    other = chain.build_whole(seed=1).state_dict()
    assert not any(torch.equal(value, other[key]) for key, value in drawn.items())


@pytest.mark.parametrize("name", SMALL)
def test_whole_model_trains(name: str) -> None:
    """Gradients reach every parameter, and logits start at a size from which training can."""
    whole = _chain(name).build_whole(seed=0)
    logits = whole(torch.randn(4, 3, 8, 8))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    assert float(loss.detach()) < 3 * math.log(7)
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in whole.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


def test_unknown_name() -> None:
    for refuse in (MODELS.check, _chain):
        with pytest.raises(UserError, match=r"unknown model 'resnet-20'.*did you mean 'resnet20'"):
            refuse("resnet-20")
