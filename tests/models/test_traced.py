"""Chains from modules with a forward of their own."""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal import cli
from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.system.torchvision import import_torchvision
from tests.launching import run_ranks
from tests.models.traced_models import UNITS, Net
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


def test_a_language_model_with_positions_and_an_optional_loss() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(11, 8), nn.Embedding(16, 8)
            self.drop = nn.Dropout(0.1)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)
            )
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5, bias=False)

        def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
            _, length = tokens.size()
            x = self.token(tokens) + self.position(torch.arange(length, device=tokens.device))
            x = self.drop(x)
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return logits if targets is None else (logits, F.cross_entropy(logits, targets))

    model = Language()
    units = ["drop", "blocks.0", "blocks.1", "head"]
    chain = Chain.from_module(
        model, units=units, input_shape=(6,), classes=5, input_dtype=torch.int64
    )
    assert chain.shapes() == [(6, 8)] * 3
    assert list(chain.units[0].build().state_dict()) == ["token.weight", "position.weight"]
    for train in (False, True):
        ours, expected = outputs(model, chain, torch.randint(11, (3, 6)), train=train)
        assert torch.equal(ours, expected)


def test_two_ranks_equal_one_process_and_export_loads_into_the_author_s_class(
    tmp_path: Path,
) -> None:
    arguments = ["--model", MODEL, "--stages", "3", "--max-steps", "10"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
    assert cli.run(["export", str(out), "--to", str(tmp_path / "model.pt")]) == 0
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    model = Net(1, 10)
    model.load_state_dict(state)
    # What was trained makes the same logits in pieces, whose names are thus the author's.
    chain = Chain.from_module(Net(1, 10), units=UNITS, input_shape=(1, 8, 8), classes=10)
    body, classifier = chain.build(0, 3, seed=0), chain.build_classifier(seed=0)
    chain.load_whole_state(body, 0, 3, state)
    chain.load_whole_state(nn.Sequential(classifier), 3, 4, state)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(classifier.eval()(body.eval()(x)), model.eval()(x))
    assert not torch.equal(classifier(body(x)), chain.build_whole(seed=0).eval()(x))


class Parts(nn.Module):
    """Four layers, called as ``forward`` says."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 5)
        self.register_buffer("count", torch.zeros(()), persistent=False)
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


def long_skip(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.out(m.c(m.b(x))) + x.sum()  # type: ignore[no-any-return]


def skip_over_all(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x)))) + x.sum()  # type: ignore[no-any-return]


def plain(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x))))  # type: ignore[no-any-return]


def not_used(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    m.b(x)
    return m.out(m.c(x))  # type: ignore[no-any-return]


def result_not_used(m: Any, x: Tensor) -> Tensor:
    x = m.c(m.b(m.a(x)))
    m.out(x)
    return x * 2


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


def random_branch(m: Any, x: Tensor) -> Tensor:
    """A layer that is left out now and then, which a trace would never or always do."""
    x = m.a(x)
    return m.out(m.c(m.b(x) if random.random() < 2 else x))  # type: ignore[no-any-return]


def no_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.a(x)
    return m.out(m.c(m.b(x)))  # type: ignore[no-any-return]


def autocast(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = m.b(x)
    return m.out(m.c(x.float()))  # type: ignore[no-any-return]


def counts(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.out(m.c(m.b(m.a(x))))  # type: ignore[no-any-return]


def named_results(m: Any, x: Tensor) -> dict[str, Tensor]:
    return {"scores": m.out(m.c(m.b(m.a(x))))}


def two_results(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = m.c(m.b(m.a(x)))
    return m.out(x), x


def shared_scale(m: Any, x: Tensor) -> Tensor:
    return m.out(m.c(m.b(m.a(x) * m.c.bias)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (not_used, "what unit 'b' makes is not used: leave it out"),
        (result_not_used, "what unit 'out' makes is not used: leave it out"),
        (without_b, "'b' is not called by the model's forward: it must be once"),
        (twice, "'a' is called 2 times by the model's forward: it must be once"),
        (other_order, "the model calls them in the order a, c, b, out: name them in that order"),
        (by_value, "between its units cannot be traced (symbolically traced variables"),
        (dropout, "something else in training than in evaluation ('dropout'): use a module"),
        (noise, "makes a tensor that is not the same every time ('_tensor_constant0')"),
        (
            random_branch,
            "Parts draws a random number that tracing would fix: put it into a submodule",
        ),
        (no_gradient, "uses torch.no_grad, autocast or the like, which tracing would lose ('a')"),
        (autocast, "uses torch.no_grad, autocast or the like, which tracing would lose ('b')"),
        (counts, "between its units Parts assigns to 'count', which tracing would lose"),
        (two_results, "the model returns a tuple: it must return one tensor, the logits"),
        (named_results, "the model returns a dict: it must return one tensor, the logits"),
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
        ("ab", "units='ab': give a list of names of submodules"),
    ],
)
def test_units_that_cannot_be(units: list[str] | str, said: str) -> None:
    if said == "no 'x'":  # fewer names: what is not named goes with the next one
        chain = a_chain(Parts(plain), *units, shape=(4,))
        assert sorted(chain.classifier.build().state_dict())[0] == "b.bias"
        return
    with pytest.raises(UserError, match=r"^units") as caught:
        Chain.from_module(Parts(plain), units=units, input_shape=(4,), classes=5)
    assert said in str(caught.value)


def test_a_unit_within_a_unit_is_refused() -> None:
    with pytest.raises(UserError, match=r"'blocks.0.conv' lies within 'blocks.0'"):
        a_chain(a_net(), "first", "blocks.0", "blocks.0.conv", "fc")


@pytest.mark.parametrize(
    "forward", [skip, skip_from_the_input, skip_of_an_expression, long_skip, skip_over_all]
)
@pytest.mark.parametrize("units", ["abc", "ac"])
def test_skips_go_over_cuts(forward: Any, units: str) -> None:
    """And within a unit, if the one that is skipped is left out."""
    model = Parts(forward)
    chain = a_chain(model, *units, "out", shape=(4,))
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

    with pytest.raises(UserError, match=r"one tensor \(missing a required argument: 'y'\)"):
        a_chain(Two(plain), "a", "out", shape=(4,))


def test_further_arguments_keep_their_defaults() -> None:
    class Options(Parts):
        def forward(
            self, images: Tensor, features: bool = False, *more: Tensor, scale: float = 2.0
        ) -> Any:
            images = self.c(self.b(self.a(images)))
            return (images, *more) if features else self.out(images) * scale

    model = Options(plain)
    ours, expected = outputs(
        model, a_chain(model, "a", "b", "out", shape=(4,)), torch.randn(2, 4), train=True
    )
    assert torch.equal(ours, expected)


def test_a_hook_on_the_model_itself_is_not_lost() -> None:
    model = Parts(plain)
    model.register_forward_hook(lambda _module, _args, result: result * 3)
    ours, expected = outputs(
        model, a_chain(model, "a", "b", "out", shape=(4,)), torch.randn(2, 4), train=True
    )
    assert torch.equal(ours, expected)


class Awkward(nn.Module):
    """Of which nothing could be traced: a branch, randomness, gradients switched off."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            keep = torch.rand(len(x), 1) < 0.5
        return x * keep if self.training and x.dim() == 2 else x


def test_submodules_that_hold_no_unit_are_not_traced() -> None:
    model = Parts(lambda m, x: m.out(m.c(m.awkward(m.b(m.a(x))))))
    model.awkward = Awkward()
    chain = a_chain(model, "a", "b", "c", "out", shape=(4,))
    assert chain.shapes() == [(4,), (4,), (4,)]
    for train in (False, True):
        ours, expected = outputs(model, chain, torch.randn(64, 4), train=train)
        assert torch.equal(ours, expected)


def test_units_that_return_more_than_their_output() -> None:
    """The output is taken out of the tuple in the unit itself, since only a tensor can be passed on."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x, _ = m.one(m.a(x))
        _, (last, _) = m.two(torch.tanh(x))
        return m.out(last[-1])  # type: ignore[no-any-return]

    model = Parts(forward)
    del model.b, model.c
    model.one, model.two = (nn.LSTM(4, 4, batch_first=True) for _ in range(2))
    chain = a_chain(model, "a", "one", "two", "out", shape=(6, 4))
    assert chain.shapes() == [(6, 4), (6, 4), (4,)]
    ours, expected = outputs(model, chain, torch.randn(2, 6, 4), train=True)
    assert torch.equal(ours, expected)
    code = [node.target for node in chain.units[2].build().graph.nodes]  # type: ignore[union-attr]
    assert operator.getitem in code


def test_buffers_are_read_and_written_when_the_units_run() -> None:
    """Not when they are traced: a table that is sliced by the input's length, and a count."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x = m.b(x + m.table[: x.size(1)])
        m.steps.add_(1)
        return m.out(m.c(x * m.steps))  # type: ignore[no-any-return]

    model = Parts(forward)
    model.register_buffer("table", torch.randn(16, 4))
    model.register_buffer("steps", torch.zeros(()))
    chain = a_chain(model, "a", "b", "c", "out", shape=(8, 4))
    assert "table" in chain.units[1].build().state_dict()
    body, classifier = chain.build(0, 3, seed=0), chain.build_classifier(seed=0)
    for _ in range(3):
        x = torch.randn(2, 8, 4)
        assert torch.equal(classifier(body(x)), model(x))
    assert int(body[2].state_dict()["steps"]) == 3
    assert int(chain.build(0, 3, seed=0)[2].state_dict()["steps"]) == 0


def test_a_unit_s_own_constant_is_used_between_the_units() -> None:
    """It is no buffer, and cannot become one under its own name."""
    model = Parts(lambda m, x: m.out(m.b(m.a(x) * m.b.constant)))
    model.b.constant = torch.tensor(3.0)
    del model.c
    chain = a_chain(model, "a", "b", "out", shape=(4,))
    assert sorted(chain.units[1].build().state_dict()) == ["b.bias", "b.weight"]
    ours, expected = outputs(model, chain, torch.randn(2, 4), train=True)
    assert torch.equal(ours, expected)


def test_a_train_method_that_freezes_parts_is_refused() -> None:
    class Frozen(Parts):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.b.eval()
            return self

    with pytest.raises(
        UserError, match=r"^Frozen.train\(\) does not treat all parts alike \('b'\)"
    ):
        a_chain(Frozen(plain), "a", "b", "out", shape=(4,))


def test_a_second_name_for_a_parameter_is_told_apart_from_one_not_used() -> None:
    model = Parts(plain)
    model.alias = model.b
    with pytest.raises(UserError, match=r"^'alias.weight' is 'b.weight' under a second name"):
        a_chain(model, "a", "b", "out", shape=(4,))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes an nn.Module, not a function"):
        a_chain(plain, "a", "out")  # type: ignore[arg-type]


def test_a_refusal_in_the_user_s_function_names_the_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"{Path(__file__).with_name('traced_models.py')}:misnamed"
    assert cli.run(["train", "--model", name, "--plain"]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert f"model '{name}': units: Net has no submodule 'block.0'; did you mean 'blocks.0'" in said


def test_a_bare_module_is_refused_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{Path(__file__).with_name('user_models.py')}:linear"
    assert cli.run(["train", "--model", name, "--plain"]) == cli.USER_ERROR
    assert "Chain.from_module makes one from any module" in capsys.readouterr().err
