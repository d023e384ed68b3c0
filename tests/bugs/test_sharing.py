"""Defects of models that share things, or keep them where copies lose them; the docstring gives the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipelocal as pl
from pipelocal.models.copying import copy_of

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(X, (X[:, 0] > 0).long())


def lin() -> nn.Linear:
    return nn.Linear(4, 4)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = lin(), lin()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


def test_an_average_of_tied_weights_took_the_place_of_the_trained_ones() -> None:
    """The state dict has the tensor twice, so that it was exchanged twice and not put back."""
    torch.manual_seed(0)
    pipeline = pl.Pipeline(nn.Sequential(Tied(), nn.Linear(4, 2)), stages=1, ema=0.9, device="cpu")
    pipeline.fit(DATA, epochs=3, batch_size=8, progress=False)
    before = {k: v.clone() for k, v in pipeline.module().state_dict().items()}
    averaged = pipeline.module(averaged=True).state_dict()
    assert not torch.equal(averaged["0.a.weight"], before["0.a.weight"])
    after = pipeline.module().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Closure(nn.Module):
    """Runs its layer by a function that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = lin()

        def run(x: Tensor) -> Tensor:
            return torch.tanh(self.a(x))

        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.run(x)
        return out


def hooked(hook: Callable[[nn.Linear], object]) -> nn.Module:
    layer = lin()
    hook(layer)
    return layer


def on_weight(register: str) -> nn.Module:
    return hooked(lambda layer: getattr(layer.weight, register)(lambda _gradient: None))


def computed() -> nn.Module:
    layer = nn.Sequential(nn.utils.weight_norm(lin()))
    layer(X)
    return layer


def same_memory() -> nn.Module:
    first, second = lin(), lin()
    second.weight = nn.Parameter(first.weight.data)
    return nn.Sequential(first, second)


class LateBuffer(nn.Module):
    """Makes a buffer of its first batch."""

    mean: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.a = lin()
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.detach().mean(0)
        out: Tensor = self.a(x - self.mean)
        return out


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (Closure, "'Closure.__init__.<locals>.run', which reaches the module from outside"),
        (
            lambda: hooked(lambda m: m.register_forward_hook(lambda _m, _a, out: out * m.bias)),
            "which reaches the module from outside",
        ),
        (lambda: on_weight("register_hook"), "'weight' has a hook"),
        (lambda: on_weight("register_post_accumulate_grad_hook"), "'weight' has a hook"),
        (computed, "computed from its parameters \\('weight'\\)"),
        (same_memory, "'0.weight' and '1.weight' share memory"),
        (LateBuffer, "registers its buffer 'mean' as None"),
    ],
    ids=[
        "closure",
        "closure-hook",
        "hook",
        "accumulated-hook",
        "computed",
        "memory",
        "late-buffer",
    ],
)
def test_what_a_copy_would_lose_was_lost_in_silence(
    unit: Callable[[], nn.Module], said: str
) -> None:
    """Stages train copies, which reach the original by a closure, and have no hooks on parameters."""
    model = nn.Sequential(lin(), unit(), nn.Linear(4, 2))
    with pytest.raises(pl.UserError, match=said):
        pl.Pipeline(model, stages=1, device="cpu").fit(DATA, epochs=1, batch_size=8, progress=False)


def test_backward_hooks_on_what_contains_units_were_lost_in_silence() -> None:
    """Tracing goes through containers, and sees no backward pass."""
    model = nn.Sequential(lin(), nn.Sequential(lin(), lin()), nn.Linear(4, 2))
    model[1].register_full_backward_hook(lambda _m, inputs, _o: inputs)
    with pytest.raises(pl.UserError, match=r"backward hooks on '1' would be lost"):
        pl.Chain.from_module(model, units=["0", "1.0", "1.1", "2"], input_shape=(4,))
    pl.Chain.from_module(model, units=["0", "1", "2"], input_shape=(4,))


class Aliased(nn.Module):
    """Counts in a buffer by a list that holds it."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = lin()
        self.register_buffer("count", torch.zeros(()))
        self.held = [self.count]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.held[0].add_(1)
        out: Tensor = self.a(x)
        return out


def test_a_second_pass_counted_in_a_buffer_that_a_list_holds() -> None:
    """A replay puts copies in place of names alone; the check of purity copied into the buffers."""
    model = nn.Sequential(Aliased(), Aliased(), nn.Linear(4, 2))
    with pytest.raises(pl.UserError, match="changes its buffer 'count' by another reference"):
        pl.Pipeline(model, stages=1, device="cpu", checkpoint_activations=1).fit(
            DATA, epochs=1, batch_size=8, progress=False
        )


class Unset(nn.Module):
    """Has a buffer that is no number yet."""

    def __init__(self) -> None:
        super().__init__()
        self.a = lin()
        self.register_buffer("later", torch.full((4,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        return out


def test_a_buffer_that_is_no_number_yet_is_not_taken_for_changed() -> None:
    model = nn.Sequential(Unset(), Unset(), nn.Linear(4, 2))
    pipeline = pl.Pipeline(model, stages=1, device="cpu", checkpoint_activations=1)
    pipeline.fit(DATA, epochs=1, batch_size=8, progress=False)


class Detaching(nn.Module):
    """Cuts the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a = lin()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x.detach())
        return out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no gradient comes through the head"),
        ({"head": "linear", "objective": pl.SGR(every=1)}, "no gradient comes through the units"),
    ],
    ids=["head", "sgr"],
)
def test_a_cut_gradient_ended_in_a_bare_assertion(options: dict[str, object], said: str) -> None:
    model = nn.Sequential(Detaching(), Detaching(), Detaching(), nn.Linear(4, 2))
    pipeline = pl.Pipeline(model, stages=2, device="cpu", **options)  # type: ignore[arg-type]
    with pytest.raises((pl.UserError, pl.StageError), match=said):
        pipeline.fit(DATA, epochs=1, batch_size=8, progress=False)


class Double(nn.Module):
    """Goes on in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_auxiliary_heads_failed_behind_float64() -> None:
    """They are in float32, and only half precision was converted for them."""
    model = nn.Sequential(lin(), Double(), lin().double(), lin().double(), nn.Linear(4, 2).double())
    pipeline = pl.Pipeline(model, stages=3, device="cpu")
    pipeline.fit(DATA, epochs=1, batch_size=8, progress=False)
    assert pipeline.module().state_dict()["2.weight"].dtype == torch.float64


class Spared(nn.Module):
    """Has a parameter on which it is written that weight decay spares it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.scale.spared = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Branched(nn.Module):
    """The same as a model that is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Spared(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(torch.relu(self.one(x)))
        return out


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Spared(), nn.Linear(4, 2)),
        pl.Chain.from_module(Branched(), units=["one", "two"], input_shape=(4,)),
    ],
    ids=["sequential", "traced"],
)
def test_what_was_written_on_parameters_was_lost(model: nn.Sequential | pl.Chain) -> None:
    """``deepcopy`` leaves it out, so an optimizer that reads it decayed every weight, in silence."""
    decays: dict[str, float] = {}

    def optimizer(named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        groups = []
        for name, parameter in named:
            decays[name] = 0.0 if getattr(parameter, "spared", False) else 0.1
            groups.append({"params": [parameter], "weight_decay": decays[name]})
        return torch.optim.SGD(groups, lr=0.1)

    pipeline = pl.Pipeline(model, stages=1, device="cpu", optimizer=optimizer)
    pipeline.fit(DATA, epochs=1, batch_size=8, progress=False)
    assert [decay for name, decay in decays.items() if name.endswith("scale")] == [0.0]
    assert len(decays) == 3
    (scale,) = (p for name, p in pipeline.module().named_parameters() if name.endswith("scale"))
    assert scale.spared is True  # type: ignore[attr-defined]


def test_copies_do_not_share_what_is_written_on_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    weight: Any = model[0].weight
    weight.velocity = torch.zeros(4, 4)
    weight.partner = model[0].bias
    made = copy_of(model)
    copied: Any = made[0].weight
    copied.velocity += 1
    assert not weight.velocity.any()
    assert copied.partner is made[0].bias
