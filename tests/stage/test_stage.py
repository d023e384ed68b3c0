"""A stage by itself: what a step is, what it leaves behind, and what must not disturb it."""

import copy
import gc
import io
import math
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import StageError, UserError
from pipelocal.models.layers import PooledLinear
from pipelocal.objective import DISTANCES, Greedy, Objective
from pipelocal.stage.stage import Stage
from tests.objective.stages import make_stage, same_bits, sgr, weights

Make = Callable[[], Objective]


def _sgr() -> Objective:
    return sgr(DISTANCES.get("cosine"), 0.3)


def _first_order() -> Objective:
    return sgr(DISTANCES.get("cosine"), 0.3, form="first-order")


OBJECTIVES = pytest.mark.parametrize("make_objective", [Greedy, _sgr, _first_order])

TARGET = torch.tensor([0, 2, 1, 1, 0, 2, 2])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


def _noisy_stage(objective: Objective, *, number: int = 2, seed: int = 0) -> Stage:
    """Convolution, BatchNorm, dropout in body and head, momentum; always the same weights."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4)
    )
    head = nn.Sequential(nn.Dropout(0.4), PooledLinear((4, 4, 4), 3))
    return make_stage(body, head, number=number, objective=objective, momentum=0.9, seed=seed)


def _batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and deltas, always the same."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(7, 2, 4, 4, generator=generator)
        yield x, 0.1 * torch.randn(7, 2, 4, 4, generator=generator)


def _train(stage: Stage, steps: int = 3, between: Callable[[], object] = lambda: None) -> None:
    for x, delta in _batches(steps):
        stage.step(x, TARGET, delta if stage.wants_delta else None)
        between()


# A single greedy stage is back-propagation.


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_single_stage_is_a_plain_training_loop_bit_for_bit(model: str) -> None:
    """The baseline ``--objective bp`` against PyTorch by itself, with all the usual trimmings."""
    steps, warmup = 6, 2
    config = TrainConfig(
        model=model,
        data="digits",
        objective="bp",
        stages=4,
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_steps=warmup,
        seed=3,
    )
    blueprint = blueprint_of(config)
    assert len(blueprint.cuts) == 1
    stage = blueprint.build_stage(1, device=torch.device("cpu"), total_steps=steps)
    plain = blueprint.chain.build_whole(seed=3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * ((step - warmup) / (steps - warmup))))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(steps):
        x, target = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
        rate = 0.1 * factor(step)
        assert stage.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == rate
        result = stage.step(x, target)
        loss = F.cross_entropy(plain(x), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        assert torch.equal(result.metrics.loss, loss.detach())
    expected = plain.state_dict()
    mine = stage.body.state_dict() | {
        f"classifier.{name}": value for name, value in stage.head.state_dict().items()
    }
    assert list(mine) == list(expected)
    assert same_bits(mine, expected)
    assert not same_bits(mine, blueprint.chain.build_whole(seed=3).state_dict())


# What a step is.


@OBJECTIVES
def test_step_is_its_phases_whatever_is_drawn_between_them(make_objective: Make) -> None:
    """A pipeline runs the phases apart, with transfers and other threads in between."""
    whole, phased = _noisy_stage(make_objective()), _noisy_stage(make_objective())
    for x, delta in _batches(3):
        before = delta if whole.wants_delta else None
        result = whole.step(x, TARGET, before)
        torch.rand(3)
        output = phased.forward(x, reconciled=phased.wants_delta)
        torch.rand(5)
        output_gradient = phased.output_gradient(TARGET)
        torch.rand(1)
        phased.reconcile(before)
        metrics = phased.metrics(TARGET)
        torch.rand(2)
        phased.update()
        assert torch.equal(result.output, output)
        assert torch.equal(result.output_gradient, output_gradient)
        assert torch.equal(result.metrics.loss, metrics.loss)
        assert result.metrics.sums == metrics.sums
        assert metrics.weight == metrics.sums["predictions"] == 7
        if result.metrics.residual is None:
            assert metrics.residual is None
        else:
            assert metrics.residual is not None
            assert torch.equal(result.metrics.residual.distance, metrics.residual.distance)
    assert same_bits(weights(whole), weights(phased))
    assert whole.steps == phased.steps == 3


def test_metrics_are_of_the_weights_before_the_update() -> None:
    stage = make_stage(nn.Linear(4, 4), nn.Linear(4, 3))
    x = torch.randn(7, 4)
    logits = stage.head(stage.body(x))
    metrics = stage.step(x, TARGET).metrics
    assert torch.equal(metrics.loss, F.cross_entropy(logits, TARGET))
    assert int(metrics.sums["accuracy"]) == int((logits.argmax(1) == TARGET).sum())
    assert metrics.residual is None


# The output is the stage's own memory.


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


UNITS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "identity": nn.Identity,
    "flatten": nn.Flatten,
    "transpose": _Transpose,
    "half": _Half,
    "dropout in evaluation": lambda: nn.Dropout(0.5),
    "relu": lambda: nn.ReLU(inplace=True),
    "nothing": nn.Sequential,
}


@OBJECTIVES
@pytest.mark.parametrize("unit", UNITS)
def test_output_is_detached_contiguous_and_apart(unit: str, make_objective: Make) -> None:
    """The input's memory is used again while the output travels."""
    stage = make_stage(
        UNITS[unit](), nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), objective=make_objective()
    )
    x = torch.randn(7, 4, 4)
    stage.evaluate(x)  # gives the lazy head its shape
    stage.optimizer = torch.optim.SGD([*stage.body.parameters(), *stage.head.parameters()], lr=0.1)
    given = x.clone()
    trained = stage.forward(x, reconciled=stage.wants_delta)
    stage.output_gradient(TARGET)
    stage.reconcile(torch.randn_like(x) if stage.wants_delta else None)
    stage.update()
    evaluated, logits = stage.evaluate(x)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert logits.shape == (7, 3)
    assert not logits.requires_grad
    for output in (trained, evaluated):
        assert not output.requires_grad
        assert output.grad_fn is None
        assert output.is_contiguous()
        assert output.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        before = output.clone()
        x.fill_(7.0)
        assert torch.equal(output, before)
        x.copy_(given)


def test_output_is_the_body_s() -> None:
    stage = make_stage(nn.Sequential(nn.Linear(4, 5), _Transpose()), nn.Linear(3, 3))
    x = torch.randn(7, 3, 4)
    assert torch.equal(stage.forward(x), stage.body(x).detach())


# Nothing is left behind.


class _Kept:
    """Stands for a tensor that the graph keeps, and can be watched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


@OBJECTIVES
def test_nothing_of_a_batch_is_kept_after_its_update(make_objective: Make) -> None:
    stage = _noisy_stage(make_objective())
    _train(stage, 1)
    rows = 23  # no other tensor has as many
    x, target = torch.randn(rows, 2, 4, 4), torch.randint(3, (rows,))
    delta = torch.randn_like(x) if stage.wants_delta else None
    watched: list[weakref.ref[_Kept]] = []

    def keep(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        watched.append(weakref.ref(kept))
        return kept

    gc.collect()
    gc.disable()  # what only the collector would free is kept too long
    try:
        with saved_tensors_hooks(keep, lambda kept: kept.tensor):
            stage.forward(x, reconciled=stage.wants_delta)
            stage.output_gradient(target)
            stage.reconcile(delta)
        stage.update()
        assert len(watched) > 5
        assert [reference() for reference in watched if reference() is not None] == []
        parameters = [*stage.body.parameters(), *stage.head.parameters()]
        assert [parameter.grad for parameter in parameters] == [None] * len(parameters)
        own = {id(tensor) for tensor in (x, target, delta)}
        left = [
            tuple(thing.shape)
            for thing in gc.get_objects()
            if issubclass(type(thing), Tensor) and rows in thing.shape and id(thing) not in own
        ]
        assert left == []
    finally:
        gc.enable()


# Evaluation changes nothing.


@OBJECTIVES
def test_evaluation_leaves_everything_as_it_is(make_objective: Make) -> None:
    stage = _noisy_stage(make_objective())
    _train(stage)
    for parameter in (*stage.body.parameters(), *stage.head.parameters()):
        parameter.grad = torch.ones_like(parameter)
    before, optimizer = weights(stage), copy.deepcopy(stage.optimizer.state_dict())
    x = torch.randn(7, 2, 4, 4)
    output, logits = stage.evaluate(x)

    assert same_bits(weights(stage), before)
    assert stage.steps == 3
    for parameter in (*stage.body.parameters(), *stage.head.parameters()):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    for index, state in stage.optimizer.state_dict()["state"].items():
        assert same_bits(state, optimizer["state"][index])
    body, head = copy.deepcopy(stage.body).eval(), copy.deepcopy(stage.head).eval()
    assert torch.equal(output, body(x).detach())
    assert torch.equal(logits, head(body(x)).detach())


@OBJECTIVES
def test_evaluation_between_steps_does_not_change_training(make_objective: Make) -> None:
    alone, disturbed = _noisy_stage(make_objective()), _noisy_stage(make_objective())
    _train(alone, 4)
    disturbed.evaluate(torch.randn(7, 2, 4, 4))
    _train(disturbed, 4, between=lambda: disturbed.evaluate(torch.randn(7, 2, 4, 4)))
    assert same_bits(weights(alone), weights(disturbed))


# Randomness.


@pytest.mark.parametrize("place", ["body", "head"])
def test_dropout_depends_on_seed_stage_and_step_alone(place: str) -> None:
    """The output gradient shows the mask: of ones on the way in, it keeps what was kept."""

    def masked(number: int, seed: int, noise: int) -> list[Tensor]:
        dropout, plain = nn.Dropout(0.5), nn.Sequential()
        torch.manual_seed(0)
        linear = nn.Linear(16, 3)
        in_body = place == "body"
        stage = make_stage(
            dropout if in_body else plain,
            nn.Sequential(plain if in_body else dropout, linear),
            number=number,
            seed=seed,
            lr=0.0,
        )
        found = []
        for _ in range(2):
            torch.manual_seed(noise)
            torch.rand(noise)
            result = stage.step(torch.ones(7, 16), TARGET)
            found.append((result.output if in_body else result.output_gradient) != 0)
        return found

    expected = masked(2, 0, 1)
    assert not expected[0].all()
    assert all(map(torch.equal, expected, masked(2, 0, 77)))
    for other in (masked(3, 0, 1), masked(2, 1, 1)):
        assert not any(map(torch.equal, expected, other))
    assert not torch.equal(expected[0], expected[1])  # another step


# In-place operations.


class _RectifyingHead(nn.Module):
    """Works on its input in place: with its gradient, or behind autograd's back."""

    def __init__(self, *, hidden: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden:
            x.detach().mul_(2)
        else:
            x = x.relu_()
        logits: Tensor = self.linear(x)
        return logits


@OBJECTIVES
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("last", [nn.Identity, nn.Tanh])
def test_head_that_works_in_place_is_refused(
    last: Callable[[], nn.Module], hidden: bool, make_objective: Make
) -> None:
    """Whether autograd sees it or not, and whether the body's backward needs what is overwritten."""
    body = nn.Sequential(nn.Linear(4, 4), last())
    stage = make_stage(body, _RectifyingHead(hidden=hidden), number=3, objective=make_objective())
    stage.forward(torch.randn(7, 4), reconciled=stage.wants_delta)
    with pytest.raises(StageError) as caught:
        stage.output_gradient(TARGET)
    text = str(caught.value)
    assert text.startswith("stage 3: the head changes the stage's output in place")
    assert "use an operation that is not in place" in text
    assert "\n" not in text


@OBJECTIVES
def test_other_failures_of_the_head_keep_their_own_words(make_objective: Make) -> None:
    stage = make_stage(nn.Linear(4, 4), nn.Linear(5, 3), objective=make_objective())
    stage.forward(torch.randn(7, 4), reconciled=stage.wants_delta)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        stage.output_gradient(TARGET)


@OBJECTIVES
def test_modules_that_ask_to_work_in_place_are_switched_off(make_objective: Make) -> None:
    """At the start of a body they would overwrite the neighbour's tensor, in a head the output."""
    body = nn.Sequential(nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 4), nn.SiLU(True)))
    head = nn.Sequential(nn.Dropout(0.1, inplace=True), nn.ReLU(inplace=True), nn.Linear(4, 3))
    stage = make_stage(body, head, objective=make_objective())
    assert not any(getattr(m, "inplace", False) for part in (body, head) for m in part.modules())
    x = torch.randn(7, 4)
    given = x.clone()
    result = stage.step(x, TARGET, torch.randn(7, 4) if stage.wants_delta else None)
    assert torch.equal(x, given)
    assert bool(torch.isfinite(result.output_gradient).all())


# State.


@OBJECTIVES
def test_state_dict_loads_without_pickle_and_continues_the_run(make_objective: Make) -> None:
    stage = _noisy_stage(make_objective())
    batches = list(_batches(5))
    for x, delta in batches[:3]:
        stage.step(x, TARGET, delta if stage.wants_delta else None)
    file = io.BytesIO()
    torch.save(stage.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    other = _noisy_stage(make_objective())
    other.body.load_state_dict(state["body"])
    other.head.load_state_dict(state["head"])
    other.optimizer.load_state_dict(state["optimizer"])
    other.steps = state["steps"]
    assert other.steps == 3
    for x, delta in batches[3:]:
        stage.step(x, TARGET, delta if stage.wants_delta else None)
        other.step(x, TARGET, delta if stage.wants_delta else None)
    assert same_bits(weights(stage), weights(other))


# Stages from options.


def test_blueprint_builds_the_stages_that_the_options_name() -> None:
    config = TrainConfig(model="resnet8", data="digits", objective="sgr", stages=4, seed=1)
    blueprint = blueprint_of(config)
    cpu = torch.device("cpu")
    stages = [blueprint.build_stage(k, device=cpu, total_steps=9) for k in range(1, 5)]
    assert [stage.wants_delta for stage in stages] == [False, True, True, True]
    assert [blueprint.units(k) for k in range(1, 5)] == ["stem", "block1", "block2", "block3"]
    whole = blueprint.chain.build_whole(seed=1).state_dict()
    mine = {name: value for stage in stages for name, value in stage.body.state_dict().items()}
    classifier = {f"classifier.{k}": value for k, value in stages[-1].head.state_dict().items()}
    assert same_bits(mine | classifier, whole)
    x, delta, shapes = torch.randn(2, 1, 8, 8), None, []
    for stage in stages:
        result = stage.step(x, TARGET[:2], delta if stage.wants_delta else None)
        x, delta = result.output, result.output_gradient
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [blueprint.output_shape(k) for k in range(1, 5)]
    assert blueprint.output_shape(0) == (1, 8, 8)


def test_heads_of_stages_of_one_shape_start_apart() -> None:
    config = TrainConfig(
        model="resnet20", data="digits", objective="greedy", head="linear", stages=10
    )
    blueprint = blueprint_of(config)
    cpu = torch.device("cpu")
    heads = [
        blueprint.build_stage(k, device=cpu, total_steps=1).head.state_dict() for k in (1, 2, 3)
    ]
    assert not torch.equal(heads[0]["linear.weight"], heads[1]["linear.weight"])
    assert not torch.equal(heads[1]["linear.weight"], heads[2]["linear.weight"])


def test_stage_without_parameters_is_refused() -> None:
    config = TrainConfig(
        model="tests.models.user_models:bare", data="digits", objective="greedy", stages=1
    )
    blueprint = blueprint_of(config)
    with pytest.raises(UserError, match=r"^stage 1 \(flatten\) has no parameters to train$"):
        blueprint.build_stage(1, device=torch.device("cpu"), total_steps=1)
