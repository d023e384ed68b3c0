"""What torchvision's models start from when they are made unit by unit: what torchvision starts from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelocal.models import torchvision_start
from pipelocal.models.torchvision_start import Rule, drawn
from pipelocal.system.torchvision import import_torchvision
from tests.models.test_torchvision_chains import chain_of, plain

QUICK = ["resnet18", "vit_small", "convnext_tiny", "swin_t"]
SEEDS = (0, 1)
SIGMAS = 6.0
"""How far a mean or a standard deviation may be off, in its own standard deviations."""


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("resnet18", torchvision_start.resnet),
        ("vgg11_bn", torchvision_start.vgg),
        ("convnext_tiny", torchvision_start.convnext),
        ("swin_t", torchvision_start.swin),
        pytest.param("resnet50", torchvision_start.resnet, marks=pytest.mark.slow),
        pytest.param("resnet152", torchvision_start.resnet, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", torchvision_start.vgg, marks=pytest.mark.slow),
    ],
)
def test_the_whole_model_is_torchvisions_bit_for_bit(name: str, rule: Rule) -> None:
    """All at once and from one seed: so the rules are the same, and their order.

    Not the vision transformers, whose encoder draws before its layers what our first unit holds.
    """
    with torch.device("meta"):
        model = plain(name)
    torch.manual_seed(3)
    ours = drawn(model, rule).state_dict()
    torch.manual_seed(3)
    theirs = plain(name).state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
        assert ours[key].dtype == value.dtype
        assert ours[key].stride() == value.stride()


def test_on_the_default_device_meta_nothing_is_made_or_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    chain = chain_of("vit_small")
    with torch.device("meta"):
        module = chain.units[0].build()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_part_is_a_copy_of_its_own() -> None:
    unit = chain_of("resnet18").units[1]
    one, two = (unit.build().state_dict() for _ in range(2))
    assert one["conv1.weight"].data_ptr() != two["conv1.weight"].data_ptr()
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_no_rule_sets_is_refused(dtype: torch.dtype, kind: str) -> None:
    """Such as a parameter that another version of torchvision has beside these."""
    with torch.device("meta"):
        part = nn.Sequential(nn.Linear(3, 2), nn.Module())
        tensor = torch.ones(2, 3, dtype=dtype)
        if kind == "buffer":
            part[1].register_buffer("more", tensor)
        else:
            part[1].more = nn.Parameter(tensor, requires_grad=dtype.is_floating_point)
    with pytest.raises(RuntimeError, match=r"sets '1\.more' is not known"):
        drawn(part, torchvision_start.resnet)


def _is_drawn(values: list[Tensor]) -> bool:
    return any(not torch.equal(value, values[0]) for value in values[1:])


def _moments(values: list[Tensor]) -> tuple[float, float]:
    every = torch.cat([value.double().flatten() for value in values])
    return float(every.mean()), float(every.std())


@pytest.mark.parametrize("name", [*QUICK, *slow("resnet50", "vgg11_bn", "vit_b_16")])
def test_units_start_from_torchvisions_distribution(name: str) -> None:
    """Unit by unit, each from its own seed: mean and spread of each tensor, or its exact values."""
    chain = chain_of(name)
    ours: list[dict[str, Tensor]] = []
    theirs: list[dict[str, Tensor]] = []
    for seed in SEEDS:
        pieces = [*chain.build(0, len(chain.units), seed=seed), chain.build_classifier(seed=seed)]
        ours.append(chain.whole_state(nn.Sequential(*pieces), 0, len(pieces)))
        torch.manual_seed(seed)
        theirs.append(plain(name).state_dict())
    drawn = 0
    for key in theirs[0]:
        a, b = [state[key] for state in ours], [state[key] for state in theirs]
        if not _is_drawn(b):
            assert all(torch.equal(value, b[0]) for value in a), key
            continue
        drawn += 1
        (mean, std), (their_mean, their_std) = _moments(a), _moments(b)
        # Two samples of this size, so sqrt(2); of all distributions here the normal's std varies most.
        error = math.sqrt(2 / (len(SEEDS) * a[0].numel()))
        assert abs(mean - their_mean) < SIGMAS * their_std * error, key
        assert abs(std - their_std) < SIGMAS * their_std * error / math.sqrt(2), key
    assert drawn >= len(chain.units)


def test_computed_buffers_of_swin() -> None:
    """The index of relative positions: a 7x7 window's 49 x 49 pairs in a table of 13 x 13."""
    chain = chain_of("swin_t")
    (block,) = chain.build(1, 2, seed=0)
    index = block.state_dict()["0.attn.relative_position_index"]
    assert index.shape == (49 * 49,)
    assert index.dtype == torch.int64
    rows, columns = (torch.arange(49) // 7, torch.arange(49) % 7)
    expected = (rows[:, None] - rows + 6) * 13 + (columns[:, None] - columns + 6)
    assert torch.equal(index.view(49, 49), expected)


@pytest.mark.parametrize(
    ("name", "key", "std", "zero_bias"),
    [
        ("resnet18", "conv1", math.sqrt(2 / (64 * 7 * 7)), None),
        ("vgg11_bn", "features.0", math.sqrt(2 / (64 * 3 * 3)), True),
        ("vit_small", "conv_proj", math.sqrt(1 / (4 * 4)), True),
        ("convnext_tiny", "features.0.0", 0.02, True),
        ("swin_t", "features.0.0", math.sqrt(1 / (3 * 4 * 4)), False),
    ],
)
def test_first_convolution_for_grey_images(
    name: str, key: str, std: float, zero_bias: bool | None
) -> None:
    """By the family's rule for the number of channels that there are."""
    chain = chain_of(name, (1, 32, 32))
    states = [chain.whole_state(chain.build(0, 1, seed=seed), 0, 1) for seed in range(4)]
    weight = torch.stack([state[f"{key}.weight"] for state in states])
    assert weight.shape[2] == 1
    assert float(weight.mean()) == pytest.approx(0, abs=6 * std / math.sqrt(weight.numel()))
    assert float(weight.std()) == pytest.approx(std, rel=6 / math.sqrt(2 * weight.numel()))
    if zero_bias is None:
        assert f"{key}.bias" not in states[0]
    else:
        assert bool((states[0][f"{key}.bias"] == 0).all()) == zero_bias


def test_operators_of_torchvision_are_as_before() -> None:
    """A model on meta must leave nothing behind that changes an ordinary one."""
    chain_of("swin_t").shapes()
    torch.manual_seed(0)
    model = import_torchvision().models.swin_t(num_classes=2)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert 0.019 < float(model.head.weight.detach().std()) < 0.021
