"""Chains from modules with a forward of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal import cli
from pipelocal._torchvision import import_torchvision
from pipelocal.errors import UserError
from pipelocal.models import Chain
from tests.models.traced_models import UNITS, Net
from tests.ranks import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

MODEL = f"{Path(__file__).with_name('traced_models.py')}:net"


def a_net() -> Net:
    torch.manual_seed(1)
    return Net(3, 5)


def a_chain(model: nn.Module, *units: str, shape: tuple[int, ...] = (3, 8, 8)) -> Chain:
    return Chain.from_module(model, units=units, input_shape=shape, classes=5)


def run(chain: Chain, x: Tensor, *, train: bool) -> Tensor:
    for module in (chain.build(0, len(chain.units), seed=0), chain.build_classifier(seed=0)):
        x = module.train(train)(x)
    return x


def outputs(model: nn.Module, chain: Chain, x: Tensor, *, train: bool) -> tuple[Tensor, Tensor]:
    model = copy.deepcopy(model).train(train)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    return run(chain, x, train=train), expected


@pytest.mark.parametrize("train", [False, True])
def test_the_units_in_a_row_are_the_model(train: bool) -> None:
    """Equal bits, with dropout and BatchNorm, and with what lies between the units."""
    ours, expected = outputs(
        a_net(), a_chain(a_net(), *UNITS), torch.randn(4, 3, 8, 8), train=train
    )
    assert torch.equal(ours, expected)


def test_names_values_and_whole_are_the_model_s() -> None:
    model = a_net()
    chain = a_chain(model, *UNITS)
    assert [unit.name for unit in chain.units] == ["first", "blocks.0", "blocks.1"]
    assert chain.shapes() == [(8, 8, 8), (8, 4, 4), (8, 4, 4)]
    pieces = (*chain.units, chain.classifier)
    names = [name for unit in pieces for name in unit.build().state_dict()]
    assert sorted(names) == sorted(model.state_dict())
    whole = chain.build_whole(seed=5)
    assert type(whole) is Net
    for name, value in model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value)


def test_the_model_is_left_as_it_is_and_builds_share_nothing() -> None:
    model = a_net().eval()
    before = list(model.__dict__), sorted(model.state_dict())
    chain = a_chain(model, *UNITS)
    assert not model.training
    assert (list(model.__dict__), sorted(model.state_dict())) == before
    one, two = (chain.build(0, 3, seed=0) for _ in range(2))
    pointers = {p.data_ptr() for p in (*model.parameters(), *one.parameters())}
    assert not pointers & {p.data_ptr() for p in two.parameters()}


def test_torchvision_s_resnet_by_the_names_of_its_blocks() -> None:
    """conv1, bn1 and relu go with maxpool; avgpool and flatten with fc."""
    model = import_torchvision().models.resnet18(num_classes=5)
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    chain = a_chain(model, "maxpool", *blocks, "fc", shape=(3, 32, 32))
    for train in (False, True):
        ours, expected = outputs(model, chain, torch.randn(2, 3, 32, 32), train=train)
        assert torch.equal(ours, expected)
    (first,) = chain.build(0, 1, seed=0)
    assert {name.partition(".")[0] for name in first.state_dict()} == {"conv1", "bn1"}
    whole = chain.build_whole(seed=0)
    assert list(whole.state_dict()) == list(model.state_dict())


def test_named_submodules_are_not_traced() -> None:
    """PyTorch's own encoder layer chooses its path by the values of its inputs' flags."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 16)
            self.position = nn.Parameter(torch.randn(8, 16))
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)
            )
            self.out = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x) + self.position
            for layer in self.layers:
                x = layer(x)
            return self.out(x.mean(1))  # type: ignore[no-any-return]

    model = Encoder()
    chain = a_chain(model, "embed", "layers.0", "layers.1", "out", shape=(8, 3))
    ours, expected = outputs(model, chain, torch.randn(2, 8, 3), train=True)
    assert torch.equal(ours, expected)
    assert "position" in chain.build(1, 2, seed=0)[0].state_dict()


def test_two_ranks_equal_one_process_and_export_loads_into_the_author_s_class(
    tmp_path: Path,
) -> None:
    arguments = ["--model", MODEL, "--stages", "3", "--max-steps", "10"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
    assert cli.run(["export", str(out), "--to", str(tmp_path / "model.pt")]) == 0
    model = Net(1, 10)
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


class Parts(nn.Module):
    """Four layers, called as ``forward`` says."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 5)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def skip(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.out(m.c(m.b(x) + x))  # type: ignore[no-any-return]


def skip_from_the_input(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x))) + x)  # type: ignore[no-any-return]


def skip_of_an_expression(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = torch.tanh(x)
    return m.out(m.c(m.b(y)) * y)  # type: ignore[no-any-return]


def plain(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x))))  # type: ignore[no-any-return]


def not_used(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    m.b(x)
    return m.out(m.c(x))  # type: ignore[no-any-return]


def without_b(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.a(x)))  # type: ignore[no-any-return]


def twice(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(m.a(x)))))  # type: ignore[no-any-return]


def other_order(m: Any, x: Tensor) -> Tensor:
    return m.out(m.b(m.c(m.a(x))))  # type: ignore[no-any-return]


def by_value(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.out(m.c(m.b(x if x.sum() > 0 else -x)))  # type: ignore[no-any-return]


def dropout(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(F.dropout(m.a(x), 0.5, m.training))))  # type: ignore[no-any-return]


def noise(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x) + torch.randn(4))))  # type: ignore[no-any-return]


def two_results(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = m.c(m.b(m.a(x)))
    return m.out(x), x


def shared_scale(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x) * m.c.bias)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            skip,
            "no chain between 'b' and 'c': the output of 'a' and the output of 'b' are used behind "
            "it, but one tensor can be passed on: leave 'b' out of the units, and it goes with 'c'",
        ),
        (
            skip_from_the_input,
            "no chain between 'a' and 'b': the input 'x' and the output of 'a' are used behind it",
        ),
        (skip_of_an_expression, "between 'b' and 'c': 'tanh' and the output of 'b' are used"),
        (not_used, "what unit 'b' makes is not used: leave it out"),
        (without_b, "'b' is not called by the model's forward: it must be once"),
        (twice, "'a' is called 2 times by the model's forward: it must be once"),
        (other_order, "the model calls them in the order a, c, b, out: name them in that order"),
        (by_value, "between its units cannot be traced (symbolically traced variables"),
        (dropout, "something else in training than in evaluation ('dropout'): use a module"),
        (noise, "makes a tensor that is not the same every time ('_tensor_constant0')"),
        (two_results, "the model returns more than one tensor: it must return logits only"),
        (shared_scale, "units 'b' and 'c' share a parameter or buffer, which stages cannot"),
    ],
)
def test_what_is_no_chain_is_refused_in_one_line(forward: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        a_chain(Parts(forward), "a", "b", "c", "out", shape=(4,))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (["a", "out"], "no 'x'"),
        (["out"], "name at least two submodules, the last of which is the classifier"),
        (["a", "bb", "out"], "Parts has no submodule 'bb'; did you mean 'b'?"),
        (["a", "a", "out"], "'a' is named twice"),
    ],
)
def test_units_that_cannot_be(units: list[str], said: str) -> None:
    if said == "no 'x'":  # fewer names: what is not named goes with the next one
        chain = a_chain(Parts(plain), *units, shape=(4,))
        assert sorted(chain.classifier.build().state_dict())[0] == "b.bias"
        return
    with pytest.raises(UserError, match=r"^units") as caught:
        a_chain(Parts(plain), *units, shape=(4,))
    assert said in str(caught.value)


def test_a_unit_within_a_unit_is_refused() -> None:
    with pytest.raises(UserError, match=r"'blocks.0.conv' lies within 'blocks.0'"):
        a_chain(a_net(), "first", "blocks.0", "blocks.0.conv", "fc")


def test_leaving_out_the_unit_that_is_skipped_mends_a_skip() -> None:
    """As the error says."""
    model = Parts(skip)
    chain = a_chain(model, "a", "c", "out", shape=(4,))
    ours, expected = outputs(model, chain, torch.randn(2, 4), train=True)
    assert torch.equal(ours, expected)


def test_parameters_that_forward_does_not_use_are_named() -> None:
    model = Parts(plain)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"^extra.weight, extra.bias: the model's forward does not"):
        a_chain(model, "a", "b", "out", shape=(4,))


def test_a_second_input_that_is_used_is_refused() -> None:
    class Two(Parts):
        def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
            return self.out(self.a(x) + y)

    with pytest.raises(UserError, match=r"takes 'x' and 'y': units pass on a single tensor"):
        a_chain(Two(plain), "a", "out", shape=(4,))


def test_a_bare_module_is_refused_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{Path(__file__).with_name('user_models.py')}:linear"
    assert cli.run(["train", "--model", name, "--plain"]) == cli.USER_ERROR
    assert "Chain.from_module makes one from any module" in capsys.readouterr().err
