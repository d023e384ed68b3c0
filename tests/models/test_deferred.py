"""Parts made one at a time from a constructor that ran without memory."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipelocal.models.deferred import Deferred


class Awkward(nn.Module):
    """Starts from views, operations in place, temporary tensors and initialisers in a row."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(5, 4)
        nn.init.trunc_normal_(first.weight, std=0.5, a=-0.6, b=0.6)
        self.first = nn.Sequential(first, nn.BatchNorm1d(4))
        self.second = nn.Linear(4, 4)
        nn.init.orthogonal_(tensor=self.second.weight)
        self.third = nn.MultiheadAttention(4, 2)
        scale = torch.linspace(0.0, 1.0, 6).view(2, 3)
        scale[:, 1] *= 2.0
        self.scale = nn.Parameter(scale.t() * torch.ones(3, 1), requires_grad=False)
        index = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"))
        index[0] += 7
        self.register_buffer("index", index.sum(0))
        self.register_buffer("hidden", torch.randn(3), persistent=False)
        self.register_buffer("flags", torch.ones(2, dtype=torch.bool))


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def test_whole_module_is_what_the_constructor_makes_bit_for_bit() -> None:
    deferred = Deferred(Awkward)
    ours = _tensors(_seeded(3, lambda: deferred.build(deferred.module)))
    theirs = _tensors(_seeded(3, Awkward))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        assert ours[name].dtype == value.dtype
        assert ours[name].stride() == value.stride()
        assert type(ours[name]) is type(value)
        assert ours[name].requires_grad == value.requires_grad


def test_part_is_a_copy_of_its_own() -> None:
    deferred = Deferred(Awkward)
    second = deferred.module.get_submodule("second")
    part = nn.Sequential(OrderedDict(second=second, act=nn.ReLU()))
    one, two = (_seeded(s, lambda: deferred.build(part)) for s in (1, 2))
    assert list(one.state_dict()) == ["second.weight", "second.bias"]
    assert not torch.equal(one.state_dict()["second.weight"], two.state_dict()["second.weight"])
    assert (
        one.state_dict()["second.weight"].data_ptr() != two.state_dict()["second.weight"].data_ptr()
    )
    assert all(parameter.is_meta for parameter in deferred.module.parameters())


def test_part_draws_no_more_than_its_own() -> None:
    """So that its values depend on its seed alone and not on what stands before it."""
    deferred = Deferred(lambda: nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 2)))
    assert isinstance(deferred.module, nn.Sequential)
    last = deferred.module[1]
    built = _seeded(5, lambda: deferred.build(last)).state_dict()
    plain = _seeded(5, lambda: nn.Linear(9, 2)).state_dict()
    assert all(torch.equal(built[name], plain[name]) for name in plain)


def test_tied_parameters_stay_tied() -> None:
    def tied() -> nn.Module:
        one, two = nn.Linear(3, 3), nn.Linear(3, 3)
        two.weight = one.weight
        return nn.Sequential(one, two)

    deferred = Deferred(tied)
    built = deferred.build(deferred.module)
    assert isinstance(built, nn.Sequential)
    assert built[0].weight is built[1].weight


def test_on_the_default_device_meta_nothing_is_made_or_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    deferred = Deferred(Awkward)
    with torch.device("meta"):
        built = deferred.build(deferred.module)
    assert all(tensor.is_meta for tensor in _tensors(built).values())
    assert deferred.unset().first[0].weight.shape == (4, 5)  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [3, 0.5])
def test_value_from_python_is_refused_and_not_guessed(value: float) -> None:
    """Meta tensors do not keep it."""

    def construct() -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("given", torch.tensor(value))
        return module

    deferred = Deferred(construct)
    with pytest.raises(RuntimeError, match=r"'given' is not known"):
        deferred.build(deferred.module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_what_the_constructor_leaves_unset_is_refused(dtype: torch.dtype) -> None:
    def construct() -> nn.Module:
        module = nn.Module()
        tensor = torch.empty(3, 2, dtype=dtype)
        tensor[:, 0] = 1
        module.register_buffer("partly", tensor)
        return module

    deferred = Deferred(construct)
    with pytest.raises(RuntimeError, match=r"'partly' is not known"):
        deferred.build(deferred.module)


def test_initialisers_are_put_back_also_after_a_failure() -> None:
    before = vars(nn.init).copy()

    def fails() -> nn.Module:
        assert nn.init.trunc_normal_ is not before["trunc_normal_"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Deferred(fails)
    assert vars(nn.init) == before
