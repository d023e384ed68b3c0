"""The passes of ``--cuda-graphs``, with a recorder of operations in place of a device's graphs.

The recorder does what a graph does: it repeats the operations of the capture on the memory of the capture,
and nothing that Python did around them. ``tests/test_gpu.py`` runs the same on a GPU.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

import pipelocal as pl
from pipelocal import cli
from pipelocal.run import blueprint
from pipelocal.seeding import other_generators
from pipelocal.stage import graphs
from pipelocal.stage.graphs import GraphedPasses


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands for a ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._done: list[tuple[Callable[[], Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._done.append((partial(func, *args, **(kwargs or {})), tree_leaves(made)))
        return made

    def pool(self) -> None:
        """Return nothing: memory is not reused here."""

    def replay(self) -> None:
        """Do all again, into the same memory."""
        with torch.no_grad():
            for again, places in self._done:
                for place, value in zip(places, tree_leaves(again()), strict=True):
                    if isinstance(place, Tensor) and isinstance(value, Tensor):
                        place.copy_(value)


class Stream:
    """Stands for a stream."""

    def wait_stream(self, other: Any) -> None:
        """Do nothing: there is one order of all operations."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Let graphs be recorded on the CPU; return what is recorded."""
    made: list[Recorder] = []

    def graph() -> Recorder:
        made.append(Recorder())
        return made[-1]

    @contextmanager
    def capture(graph: Recorder, **_options: Any) -> Iterator[None]:
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for context in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, context, lambda _given: nullcontext())
    monkeypatch.setattr(graphs, "generator_of", lambda _device: torch.default_generator)
    # Dropout draws from torch's generator of the CPU here, which on a GPU no graph repeats.
    monkeypatch.setattr(graphs, "states_of_draws", lambda: str(other_generators()))
    monkeypatch.setattr(blueprint, "check_cuda_graphs", lambda *_given, **_named: None)
    return made


def trained(**options: Any) -> dict[str, Tensor]:
    """The state of a model after two epochs that end in a shorter batch."""
    torch.manual_seed(0)
    x, y = torch.randn(155, 16), torch.randint(10, (155,))
    blocks = [
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU())
        for _ in range(3)
    ]
    model = nn.Sequential(*blocks, nn.Linear(16, 10))
    pipeline = pl.Pipeline(
        model, stages=2, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), **options
    )
    pipeline.fit(TensorDataset(x, y), epochs=2, batch_size=32)
    return pipeline.module().state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 2},
        {"objective": pl.SGR(every=2)},
        {"autocast": "bf16"},
        {"freeze_stage": "1:3"},
    ],
    ids=["plain", "accumulate", "sgr", "autocast", "freeze"],
)
def test_graphs_train_to_the_same_bits(recorded: list[Recorder], options: dict[str, Any]) -> None:
    plain = trained(**options)
    assert not recorded
    graphed = trained(**options, cuda_graphs=True)
    assert recorded
    for name, value in plain.items():
        torch.testing.assert_close(graphed[name], value, rtol=0, atol=0, msg=name)


def passes_of(module: nn.Module, stage: int = 1) -> GraphedPasses:
    """Its passes, after the first batch, which runs as it stands."""
    passes = GraphedPasses(module, what="the body", stage=stage)
    passes.end_batch()
    return passes


def test_what_a_graph_holds_is_not_captured_again(recorded: list[Recorder]) -> None:
    passes = GraphedPasses(layer := nn.Linear(4, 4), what="the body", stage=1)
    for _ in range(4):
        passes(layer, torch.randn(8, 4))
        passes(layer, torch.randn(8, 4))  # a second pass on the batch, whose first is still needed
        passes.end_batch()
        passes(layer, torch.randn(5, 4))
    assert len(recorded) == 2  # a forward and a backward pass


def test_a_longer_batch_is_captured_in_place_of_a_short_one(recorded: list[Recorder]) -> None:
    """A run that goes on at the end of an epoch begins with the short one."""
    passes = passes_of(layer := nn.Linear(4, 4))
    for rows, count in ((5, 2), (8, 4), (5, 4), (8, 4)):
        passes(layer, torch.randn(rows, 4))
        passes.end_batch()
        assert len(recorded) == count


def test_a_second_pass_leaves_the_first_alone(recorded: list[Recorder]) -> None:
    assert not recorded
    passes = passes_of(layer := nn.Linear(4, 4))
    x, other = torch.randn(8, 4), torch.randn(8, 4)
    passes(layer, x)
    passes.end_batch()
    first, _ = passes(layer, x), passes(layer, other)
    (found,) = torch.autograd.grad(first.square().sum(), layer.weight, retain_graph=True)
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match="a second backward pass through the same forward pass"):
        torch.autograd.grad(first.square().sum(), layer.weight)


def test_graphs_are_let_go_with_the_run_and_by_freezing(recorded: list[Recorder]) -> None:
    trained(freeze_stage="1:3", cuda_graphs=True)
    gone = [weakref.ref(graph) for graph in recorded]
    recorded.clear()
    gc.collect()
    assert gone
    assert not any(graph() for graph in gone)


class Counting(nn.Module):
    """Counts in a tensor that is no buffer, and scales by it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        with torch.no_grad():
            self.count += 1
        return x * self.count


def test_trials_leave_tensors_that_are_no_buffers_as_they_were(recorded: list[Recorder]) -> None:
    body = nn.Sequential(nn.Linear(4, 4), counting := Counting())
    passes = passes_of(body)
    passes(body, torch.randn(8, 4))
    assert recorded
    assert counting.count == 1


class HostDraw(nn.Module):
    """Draws from Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale by a random number."""
        return x * random.random()


class NewBuffer(nn.Module):
    """Counts in a buffer that is new on every batch."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Count."""
        self.seen = self.seen + 1
        return x + 0


class Listed(nn.Module):
    """Uses a parameter by a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))
        self.weights = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, 4]`` to the same shape."""
        return x @ self.weights[0]


class Half(Listed):
    """Uses it as a parameter, too."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, 4]`` to the same shape."""
        return x @ self.weight @ self.weights[0]


class Moving(nn.Module):
    """Puts its parameters in another memory, as recurrent layers do on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, 4]`` to the same shape."""
        self.weight.data = self.weight.data.clone()
        return x @ self.weight


class Pair(nn.Module):
    """Passes on two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input twice."""
        return x + 0, x + 1


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (HostDraw, "it draws random numbers on the host, which a graph would repeat"),
        (NewBuffer, "it puts new tensors in place of its buffers or parameters"),
        (Listed, "it holds its parameters in another place too"),
        (Half, "it holds its parameters in another place too"),
        (Moving, "it moves its parameters, as nn.LSTM and nn.GRU do"),
        (Pair, "it passes on several tensors"),
    ],
)
def test_what_a_graph_would_get_wrong_is_refused(
    recorded: list[Recorder], kind: type[nn.Module], why: str
) -> None:
    del recorded
    body = nn.Sequential(nn.Linear(4, 4), kind())
    passes = passes_of(body, stage=3)
    with pytest.raises(pl.StageError, match=f"stage 3: --cuda-graphs: the body .*{why}"):
        passes(body, torch.randn(8, 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cpu"], "--cuda-graphs is for CUDA devices, and this stage computes on cpu"),
        (["--compile", "eager"], "--compile changes how a stage's passes run"),
        (["--step-early"], "--step-early changes how a stage's passes run"),
        (["--checkpoint-activations", "1"], "--checkpoint-activations changes how"),
        (["--objective", "sgr", "--reconcile", "exact"], "choose --reconcile first-order"),
        (["--transport-penalty", "1"], "--transport-penalty 1 looks into units"),
        (["--objective", "loco"], "--cuda-graphs is for stages to which nothing comes back"),
        (["--objective", "lg-fg"], "--cuda-graphs is for stages that run as modules"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_at_the_start(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "--stages", "2", "--cuda-graphs", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
