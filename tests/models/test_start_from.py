"""Which tensor of a pretrained state dict is which of the model's: names, prefixes, the classifier."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.models.start_from import fit, starting_from
from pipelocal.models.unit import Shape


def layer(width: int = 4) -> nn.Module:
    return nn.Sequential(
        OrderedDict(linear=nn.Linear(4, width), norm=nn.BatchNorm1d(width), act=nn.ReLU())
    )


def a_net(classes: int = 3, width: int = 4) -> nn.Sequential:
    head = nn.Sequential(OrderedDict(norm=nn.LayerNorm(width), out=nn.Linear(width, classes)))
    return nn.Sequential(OrderedDict(one=layer(), two=layer(width), head=head))


def a_chain(classes: int = 3) -> Chain:
    return Chain.from_sequential(a_net(classes), input_shape=(4,)).tried()[0]


def given(net: nn.Module | None = None, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value for name, value in (net or a_net()).state_dict().items()}


def shapes(state: dict[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in state.items()}


def built(chain: Chain, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole model's state dict when it starts from these tensors."""
    started = starting_from(chain, fit(chain, shapes(state), "--init x.pt"), state.__getitem__, {})
    return dict(started.build_whole(seed=0).state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_all_tensors_are_taken(prefix: str) -> None:
    net = a_net()
    found = built(a_chain(), given(net, prefix))
    for name, value in net.state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_prefix_that_the_model_has_alone() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = a_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)  # type: ignore[no-any-return]

    units = ["backbone.one", "backbone.two", "backbone.head"]
    chain = Chain.from_module(Wrapped(), units=units, input_shape=(4,)).tried()[0]
    state = given()
    fitted = fit(chain, shapes(state), "--init x.pt")
    assert fitted.describe() == "18 tensors, with 'backbone.' before their names"
    assert torch.equal(
        built(chain, state)["backbone.one.linear.weight"], state["one.linear.weight"]
    )


def test_names_without_the_prefix_stand_for_themselves() -> None:
    """As in Hugging Face's, where the classifier lies beside the network with the prefix."""
    state = given(prefix="vit.")
    for name in ("head.out.weight", "head.out.bias"):
        state[name] = state.pop(f"vit.{name}")
    fitted = fit(a_chain(), shapes(state), "--init x.pt")
    assert fitted.source["head.out.weight"] == "head.out.weight"
    assert fitted.source["one.norm.weight"] == "vit.one.norm.weight"
    assert not fitted.left_new


def test_a_classifier_of_other_classes_is_left_new() -> None:
    """Its last layer alone; and what is left new is what the seed draws."""
    chain, state = a_chain(5), given()
    fitted = fit(chain, shapes(state), "--init x.pt")
    assert fitted.describe() == (
        "16 tensors; of the classifier left new: head.out.weight ([3, 4] there, [5, 4] here), "
        "head.out.bias ([3] there, [5] here)"
    )
    found, fresh = built(chain, state), chain.build_whole(seed=0).state_dict()
    assert torch.equal(found["head.out.weight"], fresh["head.out.weight"])
    assert torch.equal(found["head.norm.weight"], state["head.norm.weight"])


@pytest.mark.parametrize("gone", [["head.out."], ["head."]])
def test_a_file_without_the_classifier(gone: list[str]) -> None:
    state = {n: v for n, v in given().items() if not n.startswith(tuple(gone))}
    fitted = fit(a_chain(), shapes(state), "--init x.pt")
    assert all(name.startswith(gone[0]) for name in fitted.left_new)
    assert set(fitted.left_new.values()) == {"not in the file"}


def test_a_file_with_a_classifier_of_its_own_name() -> None:
    """As BERT's, which was pretrained with another one; what lies within the model must be the model's."""
    state = {n: v for n, v in given(prefix="bert.").items() if not n.startswith("bert.head.")}
    state |= {"cls.bias": torch.zeros(2), "cls.out.weight": torch.zeros(2, 4)}
    fitted = fit(a_chain(), shapes(state), "--init x.pt")
    assert fitted.describe().endswith(
        "head.out.bias (not in the file); of the file's own classifier left out: cls.bias, cls.out.weight"
    )
    with pytest.raises(
        UserError, match=r"unexpected: cls.bias, cls.out.weight, bert.one.more: save"
    ):
        fit(a_chain(), shapes(state | {"bert.one.more": torch.zeros(2)}), "--init x.pt")


def test_old_names_of_hugging_face() -> None:
    state = {}
    for name, value in given().items():
        owner, _, end = name.rpartition(".")
        old = {"weight": "gamma", "bias": "beta"}.get(end, end) if "norm" in owner else end
        state[f"{owner}.{old}"] = value
    found = built(a_chain(), state)
    assert torch.equal(found["head.norm.bias"], state["head.norm.beta"])
    assert len(fit(a_chain(), shapes(state), "--init x.pt").source) == 18


def test_constants_that_old_files_hold() -> None:
    """As the masks of GPT-2: buffers that are no longer saved, and are what the model makes."""
    net = a_net()
    net[0].register_buffer("mask", torch.ones(3), persistent=False)
    chain = Chain.from_sequential(net, input_shape=(4,)).tried()[0]
    fitted = fit(chain, shapes(given() | {"one.mask": torch.zeros(3)}), "--init x.pt")
    assert len(fitted.source) == 18


class Tied(nn.Module):
    """The first layer's weights are the last one's, as in GPT-2, and two names within the second are one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.second[1].weight = self.second[0].weight
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))  # type: ignore[no-any-return]


def test_tied_weights_that_a_file_holds_once() -> None:
    """As those of safetensors do, which know no two names of one tensor."""
    units = ["first", "second", "last"]
    chain = Chain.from_module(Tied(), units=units, input_shape=(4,), untie=True).tried()[0]
    state = given(Tied())
    del state["last.weight"], state["second.0.weight"]
    found = built(chain, state)
    assert torch.equal(found["last.weight"], state["first.weight"])
    assert torch.equal(found["second.0.weight"], state["second.1.weight"])


def test_a_rank_reads_the_tensors_of_its_own_units() -> None:
    chain, state, read = a_chain(), given(), []

    def reading(name: str) -> Tensor:
        read.append(name)
        return state[name]

    started = starting_from(chain, fit(chain, shapes(state), "--init x.pt"), reading, {})
    assert not read
    started.build(1, 2, seed=0)
    assert read == [name for name in state if name.startswith("two.")]


def test_batchnorm_of_an_old_file() -> None:
    state = {n: v for n, v in given().items() if not n.endswith("num_batches_tracked")}
    assert int(built(a_chain(), state)["one.norm.num_batches_tracked"]) == 0


def test_what_does_not_fit_is_one_line_with_the_names() -> None:
    state = given(a_net(width=6))
    state["aux.weight"] = torch.zeros(2)
    del state["one.linear.bias"]
    with pytest.raises(UserError) as error:
        fit(a_chain(), shapes(state), "--init x.pt")
    assert str(error.value) == (
        "--init x.pt does not fit the model: missing: one.linear.bias; unexpected: aux.weight; of another "
        "shape: two.linear.weight ([6, 4] there, [4, 4] here), two.linear.bias ([6] there, [4] here), "
        "two.norm.weight ([6] there, [4] here) and 6 more: give the --model that these weights are of, or "
        "weights of this one"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "missing: one.linear.bias: give a file that has them, or a model without them"),
        ("unexpected", "unexpected: aux: save the state dict without them"),
        (
            "shape",
            "of another shape: one.linear.bias ([5] there, [4] here): give the model and the data",
        ),
        ("classifier", "missing: head.norm.bias: give a file"),
    ],
)
def test_one_thing_that_does_not_fit(change: str, said: str) -> None:
    state = given()
    if change == "missing":
        del state["one.linear.bias"]
    elif change == "classifier":
        del state["head.norm.bias"]
    else:
        state["aux" if change == "unexpected" else "one.linear.bias"] = torch.zeros(5)
    with pytest.raises(UserError) as error:
        fit(a_chain(), shapes(state), "--init x.pt")
    assert said in str(error.value)


def test_weights_of_another_model() -> None:
    with pytest.raises(UserError, match="give the --model that these weights are of"):
        fit(a_chain(), {"a": (1,), "b": (2,)}, "--init x.pt")
