"""Chains of which several tensors cross a cut: skips, masks, further inputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models import Chain, Unit
from pipelocal.models.inputs import call, logits_of
from pipelocal.models.payload import Payload, tensors_of
from pipelocal.system.tensor_kind import TensorKind
from tests.models.several_tensors import Decoder, Encoder, UNet
from tests.models.test_traced import Parts
from tests.test_docs import python_blocks

DTYPES = (torch.float32, torch.float64)


def a_unet(dtype: torch.dtype = torch.float32) -> UNet:
    torch.manual_seed(0)
    return UNet().to(dtype)


def of_unet(model: UNet, *units: str, dtype: torch.dtype = torch.float32) -> Chain:
    return Chain.from_module(
        model, units=units or UNet.UNITS, input_shape=(3, 13, 10), input_dtype=dtype
    )


def an_encoder() -> tuple[Encoder, dict[str, Tensor]]:
    torch.manual_seed(0)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    return Encoder(), {"ids": torch.randint(20, (3, 9)), "attention_mask": mask}


def of_encoder(model: Encoder, batch: dict[str, Tensor]) -> Chain:
    return Chain.from_module(model, units=Encoder.UNITS, inputs=batch)


def in_a_row(chain: Chain, x: Payload, *, train: bool) -> tuple[Tensor, nn.Sequential]:
    """What the units make of an input, and the units."""
    parts = nn.Sequential(chain.build(0, len(chain.units), seed=0), chain.build_classifier(seed=0))
    torch.manual_seed(3)
    return parts.train(train)(x), parts


def assert_is_the_model(model: nn.Module, chain: Chain, x: Payload) -> None:
    """The same bits in training and in evaluation, and the same gradients."""
    for train in (True, False):
        author_s = copy.deepcopy(model).train(train)
        torch.manual_seed(3)
        expected = logits_of(call(author_s, [kind.name for kind in chain.inputs], tensors_of(x)))
        assert isinstance(expected, Tensor)
        made, parts = in_a_row(chain.tried()[0], x, train=train)
        assert torch.equal(made, expected)
        torch.autograd.backward(made.square().sum())
        torch.autograd.backward(expected.square().sum())
        units = (*chain.units, chain.classifier)
        modules = (*parts[0], parts[1])  # type: ignore[misc]
        gradients = {
            unit.whole_name(name): parameter.grad
            for unit, module in zip(units, modules, strict=True)
            for name, parameter in module.named_parameters()
        }
        for name, parameter in author_s.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_u_net_s_skips_go_over_several_cuts(dtype: torch.dtype) -> None:
    model = a_unet(dtype)
    chain = of_unet(model, dtype=dtype)
    assert_is_the_model(model, chain, torch.randn(4, 3, 13, 10, dtype=dtype))
    names = [[kind.name for kind in kinds] for kinds in chain.tried()[0].crossing]
    assert names == [
        ["down1"],
        ["down2", "down1"],
        ["middle", "down1", "down2"],
        ["up2", "down1", "down2"],
        ["merge2", "down1"],
        ["up1", "down1"],
        ["merge1"],
    ]


def test_a_u_net_cut_into_two_parts_equals_itself() -> None:
    model = a_unet()
    chain = of_unet(model, "middle", "merge1", "out")
    assert_is_the_model(model, chain, torch.randn(4, 3, 13, 10))
    assert chain.tried()[0].crossing[0][2].shape == (8, 6, 5)


def test_what_crosses_is_said_in_a_line_with_its_bytes() -> None:
    chain, _ = of_unet(a_unet()).tried()
    assert chain.describe()[0] == (
        "cut after down2: down2 [8, 6, 5], down1 [4, 13, 10] (skip): 3.0 KiB a row"
    )
    assert chain.describe([1, 4]) == [
        "cut after up2: up2 [8, 6, 4], down1 [4, 13, 10] (skip), down2 [8, 6, 5] (skip): 3.7 KiB a row"
    ]
    model, batch = an_encoder()
    chain, _ = of_encoder(model, batch).tried()
    assert chain.describe([1]) == [
        "cut after embed: embed [9, 8], attention_mask [9] int64 (input): 360 B a row"
    ]


def test_an_encoder_of_two_inputs_builds_its_mask_where_it_is_used() -> None:
    """Passed on is the mask of tokens, which is smaller than that of pairs; positions are not passed on."""
    model, batch = an_encoder()
    chain = of_encoder(model, batch)
    assert_is_the_model(model, chain, tuple(batch.values()))
    tried, shapes = chain.tried()
    assert {tuple(kind.name for kind in kinds[1:]) for kinds in tried.crossing} == {
        ("attention_mask",)
    }
    assert shapes == [(9, 8)] * 4
    assert tried.inputs[1] == TensorKind(name="attention_mask", shape=(9,), dtype=torch.int64)


def test_the_uncut_model_is_called_as_its_author_does() -> None:
    model, batch = an_encoder()
    chain = of_encoder(model, batch)
    whole = chain.build_whole(seed=0).eval()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    assert torch.equal(whole(**batch)["logits"], model.eval()(**batch)["logits"])
    assert torch.equal(
        chain.whole_with(state)(*batch.values())["logits"],
        _loaded(model, state)(*batch.values())["logits"],
    )


def _loaded(model: nn.Module, state: dict[str, Tensor]) -> Any:
    model = copy.deepcopy(model).train()
    model.load_state_dict(state)
    torch.manual_seed(0)
    return lambda *batch: _seeded(model, *batch)


def _seeded(model: nn.Module, *batch: Tensor) -> Any:
    return model.eval()(*batch)


def test_inputs_are_taken_by_name_and_their_order_is_free() -> None:
    """As where the mask is no second argument of forward."""

    class Swapped(Encoder):
        def forward(  # type: ignore[override]
            self, attention_mask: Tensor, _cache: None = None, *, ids: Tensor
        ) -> Any:
            return super().forward(ids, attention_mask)

    model, batch = an_encoder()
    model = Swapped()
    assert_is_the_model(model, of_encoder(model, batch), tuple(batch.values()))


def test_a_relayed_tensor_is_handed_on_as_it_is() -> None:
    """The same object, without a copy or a gradient through the units that it passes."""
    chain, _ = of_unet(a_unet()).tried()
    body = chain.build(0, 4, seed=0)
    first = body[:2](torch.randn(2, 3, 13, 10))
    assert body[2:](first)[1] is first[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_of_half_precision(dtype: torch.dtype) -> None:
    chain, _ = of_unet(a_unet(dtype), dtype=dtype).tried()
    assert {kind.dtype for kinds in chain.crossing for kind in kinds} == {dtype}
    out, parts = in_a_row(chain, torch.randn(2, 3, 13, 10, dtype=dtype), train=True)
    assert out.dtype == dtype
    assert {parameter.dtype for parameter in parts.parameters()} == {dtype}


# Shared weights.


def test_tied_weights_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        UserError, match=r"'embed' and 'out' share .* \(Chain.from_module\(untie=True\)"
    ):
        Chain.from_module(Decoder(), units=Decoder.UNITS, input_shape=(7,), input_dtype=torch.int64)


def test_tied_weights_are_untied_where_asked_for() -> None:
    torch.manual_seed(0)
    model = Decoder()
    ids = torch.randint(12, (3, 7))
    chain = Chain.from_module(
        model, units=Decoder.UNITS, input_shape=(7,), input_dtype=torch.int64, untie=True
    )
    assert chain.tried()[0].describe() == [
        "'out.weight' of unit 'out' starts as a copy of 'embed.weight' and is trained apart"
    ]
    assert torch.equal(in_a_row(chain, ids, train=True)[0], model(ids))
    assert model.out.weight is model.embed.weight
    state = copy.deepcopy(model.state_dict())
    state["out.weight"] = state["out.weight"] + 1
    whole = chain.whole_with(state)
    assert torch.equal(whole.get_parameter("embed.weight"), model.embed.weight)
    assert torch.equal(whole(ids), F.linear(_before_out(model, ids), state["out.weight"]))


def _before_out(model: Decoder, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    model.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids)
    return seen[0]


# Chains that were not traced.


class Fork(nn.Module):
    """Keeps its input for later, by its own convention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x


class Relay(nn.Module):
    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.linear, self._in_place = nn.Linear(4, 4), in_place

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, kept = both
        return self.linear(x.mul_(2) if self._in_place else x), kept


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return self.linear(both[0] + both[1])  # type: ignore[no-any-return]


def test_a_sequential_s_children_pass_tuples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Fork(), Relay(), Join())
    chain, shapes = Chain.from_sequential(model, input_shape=(4,)).tried()
    assert shapes == [(4,), (4,)]
    assert [[kind.name for kind in kinds] for kinds in chain.crossing] == [["0", "x"], ["1", "x"]]
    x = torch.randn(5, 4)
    assert torch.equal(in_a_row(chain, x, train=True)[0], model(x))


def test_a_classifier_says_whether_it_takes_several_tensors() -> None:
    """In a copy as well."""
    unet = of_unet(a_unet(), "merge1", "out").tried()[0].build_classifier(seed=0)
    assert not getattr(unet, "takes_beside", False)
    model, batch = an_encoder()
    encoder = of_encoder(model, batch).tried()[0].build_classifier(seed=0)
    assert copy.deepcopy(encoder).takes_beside
    chain, _ = Chain.from_sequential(nn.Sequential(Fork(), Join()), input_shape=(4,)).tried()
    assert copy.deepcopy(chain.build_classifier(seed=0)).takes_beside


def test_a_sequential_takes_several_inputs() -> None:
    kinds = [TensorKind(name=name, shape=(4,)) for name in ("x", "kept")]
    model = nn.Sequential(Relay(in_place=True), Join())
    chain, _ = Chain.from_sequential(model, inputs=kinds).tried()
    assert chain.units[0].in_place == (0,)
    given = (torch.ones(2, 4), torch.ones(2, 4))
    out = chain.build(0, 1, seed=0)(given)
    assert torch.equal(given[0], torch.ones(2, 4))
    assert out[1] is given[1]


def test_units_that_pass_on_no_tensors_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x, None

    chain = Chain(
        [Unit(name="odd", build=Odd)],
        classifier=Unit(name="out", build=Join),
        input_shape=(4,),
    )
    with pytest.raises(UserError, match=r"unit 'odd' must return .* not in place 1 .* NoneType"):
        chain.tried()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say what the model takes, once"),
        (
            {"inputs": {"x": torch.zeros(2, 4)}, "input_shape": (4,)},
            "say what the model takes, once",
        ),
        ({"inputs": {"x": [1]}}, r"inputs\['x'\] is list: give a batch of rows"),
        ({"inputs": [torch.zeros(2, 4)]}, "give a batch of tensors by the names"),
        (
            {"inputs": {"x": torch.zeros(2, 4), "y": torch.zeros(2, 4)}},
            "cannot be called with x, y",
        ),
    ],
)
def test_inputs_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Chain.from_module(Parts(lambda m, x: m.out(m.a(x))), units=["a", "out"], **given)


def test_the_documentation_s_encoder() -> None:
    example = next(block for block in python_blocks("models.md") if "class Encoder" in block)
    made: dict[str, Any] = {}
    exec(example, made)
    chain = made["chain"]
    ids = torch.randint(1000, (3, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [7], [1]])).long()
    assert_is_the_model(chain.given, chain, (ids, mask))
