"""Chains: how they are made, built, measured and refused."""

import copy
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models import Chain, Unit


def _chain(*units: Unit, input_shape: tuple[int, ...] = (4,), classes: int = 3) -> Chain:
    return Chain(units[:-1], classifier=units[-1], input_shape=input_shape, classes=classes)


def _linear(name: str, inputs: int = 4, outputs: int = 4) -> Unit:
    return Unit(name=name, build=partial(nn.Linear, inputs, outputs))


def _model() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        OrderedDict(
            one=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            two=nn.Linear(4, 4),
            three=nn.Tanh(),
            out=nn.Linear(4, 3),
        )
    )


def _from(model: nn.Sequential) -> Chain:
    return Chain.from_sequential(model, input_shape=(4,), classes=3)


# From an nn.Sequential.


def test_sequential_becomes_units_and_a_classifier() -> None:
    chain = _from(_model())
    assert [unit.name for unit in chain.units] == ["one", "two", "three"]
    assert chain.classifier.name == "out"
    assert chain.shapes() == [(4,), (4,), (4,)]


def test_sequential_keeps_its_values_and_names() -> None:
    model = _model()
    whole = _from(model).build_whole(seed=9)
    assert list(whole.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    x = torch.randn(5, 4)
    assert torch.equal(whole(x), model(x))


def test_sequential_is_copied_and_not_shared() -> None:
    """What is trained in one build shows neither in the model nor in the next build."""
    model = _model()
    before = copy.deepcopy(model.state_dict())
    chain = _from(model)
    first = chain.build(0, 3, seed=0)
    classifier = chain.build_classifier(seed=0)
    with torch.no_grad():
        for tensor in (*first.parameters(), *first.buffers(), *classifier.parameters()):
            tensor.add_(1)
    for state in (model.state_dict(), chain.build_whole(seed=0).state_dict()):
        assert all(torch.equal(before[name], state[name]) for name in before)


def test_sequential_keeps_a_module_that_occurs_twice() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3))
    chain = _from(model)
    assert [unit.name for unit in chain.units] == ["0", "1", "2", "3"]
    x = torch.randn(5, 4)
    assert torch.equal(chain.build_whole(seed=0)(x), model(x))


def test_sequential_with_shared_parameters_is_refused() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(UserError, match="units '0' and '2' share a parameter"):
        _from(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 3)))
    tied = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    tied[2].bias = tied[0].weight
    with pytest.raises(UserError, match="units '0' and '2' share a parameter"):
        _from(tied)
    within = nn.Sequential(nn.Sequential(shared, nn.Tanh(), shared), nn.Linear(4, 3))
    unit = _from(within).build(0, 1, seed=0)[0]
    assert isinstance(unit, nn.Sequential)
    assert unit[0] is unit[2]


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for child in self:
            x = x + child(x)
        return x


def test_sequential_with_a_forward_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="_Residual has a forward of its own"):
        _from(_Residual(nn.Linear(4, 4), nn.Linear(4, 4)))
    chain = _from(nn.Sequential(_Residual(nn.Linear(4, 4)), nn.Linear(4, 3)))
    assert isinstance(chain.build(0, 1, seed=0)[0], _Residual)


@pytest.mark.parametrize("children", [0, 1])
def test_sequential_with_too_few_children_is_refused(children: int) -> None:
    model = nn.Sequential(*[nn.Linear(4, 3)] * children)
    with pytest.raises(UserError, match=f"at least two children .* has {children}"):
        _from(model)


# Building.


def test_units_are_the_same_wherever_they_are_cut() -> None:
    chain = _chain(*[_linear(f"u{i}") for i in range(4)], _linear("out", 4, 3))
    whole = chain.build_whole(seed=5).state_dict()
    for start in range(4):
        for stop in range(start + 1, 5):
            torch.rand(1)  # the generator's state is no matter
            part = chain.build(start, stop, seed=5)
            names = [name for name, _ in part.named_children()]
            assert names == [f"u{i}" for i in range(start, stop)]
            for name, value in part.state_dict().items():
                assert torch.equal(value, whole[name])
    classifier = chain.build_classifier(seed=5).state_dict()
    assert torch.equal(classifier["weight"], whole["out.weight"])


def test_units_of_one_shape_start_apart() -> None:
    chain = _chain(*[_linear(f"u{i}") for i in range(4)], _linear("out", 4, 3))
    drawn = [unit.weight for unit in chain.build(0, 4, seed=5)]
    drawn += [unit.weight for unit in chain.build(0, 4, seed=6)]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert isinstance(first, Tensor)
            assert isinstance(second, Tensor)
            assert not torch.equal(first, second)


def test_building_and_measuring_leave_the_generator_alone() -> None:
    chain = _chain(_linear("u"), _linear("out", 4, 3))
    torch.manual_seed(8)
    before = torch.get_rng_state()
    chain.build_whole(seed=1)
    chain.build_classifier(seed=1)
    chain.shapes()
    assert torch.equal(torch.get_rng_state(), before)


# What is refused.


def test_doubled_names() -> None:
    with pytest.raises(UserError, match=r"\['a'\] occur more than once"):
        _chain(_linear("a"), _linear("b"), _linear("a"), _linear("out", 4, 3))
    with pytest.raises(UserError, match=r"\['out'\] occur more than once"):
        _chain(_linear("a"), _linear("out"), _linear("out", 4, 3))


def test_no_units() -> None:
    with pytest.raises(UserError, match="no units before its classifier"):
        _chain(_linear("out", 4, 3))


def test_unit_that_does_not_fit_is_named() -> None:
    chain = _chain(_linear("a", 4, 5), _linear("b", 6, 5), _linear("out", 5, 3))
    with pytest.raises(UserError, match=r"^unit 'b' does not take an input of shape \(5,\): "):
        chain.shapes()
    chain = _chain(_linear("a", 4, 5), _linear("out", 6, 3))
    with pytest.raises(UserError, match=r"^unit 'out' does not take an input of shape \(5,\): "):
        chain.shapes()


def test_wrong_class_count() -> None:
    chain = _chain(_linear("a"), _linear("out", 4, 7))
    with pytest.raises(UserError, match=r"'out' makes outputs of shape \(7,\), .* has 3 classes"):
        chain.shapes()


class _Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        return (x, x) if self.kind == "tuple" else x[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("tuple", r"unit 'out' does not take a tuple \(odd \(4,\), x \(4,\)\)"),
        ("first row", "unit 'odd' must return one tensor with the batch"),
    ],
)
def test_unit_that_returns_no_batch(kind: str, said: str) -> None:
    unit = Unit(name="odd", build=partial(_Returns, kind))
    with pytest.raises(UserError, match=said):
        _chain(unit, _linear("out", 4, 3)).shapes()


def test_shapes_hold_no_memory() -> None:
    """A unit too large for any machine is measured on the meta device."""
    huge = Unit(name="huge", build=partial(nn.Linear, 4, 10**12))
    small = Unit(name="small", build=partial(nn.Linear, 10**12, 4))
    chain = _chain(huge, small, _linear("out", 4, 3))
    assert chain.shapes() == [(10**12,), (4,)]
