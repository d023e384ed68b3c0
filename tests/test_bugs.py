"""One test for each defect that was found and mended; the docstring gives the cause."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipelocal.build import Blueprint
from pipelocal.config import ExportConfig, TrainConfig
from pipelocal.errors import StageError, Terminated, UserError
from pipelocal.evaluate import export
from pipelocal.models import Chain, build_chain
from pipelocal.objective import DISTANCES, ExactReconciliation, Greedy
from pipelocal.pipeline.worker import Worker, run_stream
from pipelocal.stage import Stage
from pipelocal.train import train
from pipelocal.transport.contract import edge_contract
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import InProcessEdge
from pipelocal.world import World
from tests.ranks import run_ranks


def _stage(body: nn.Sequential, head: nn.Module, *, reconcile: bool = False) -> Stage:
    return Stage(
        number=2,
        body=body,
        head=head,
        objective=ExactReconciliation(DISTANCES.get("cosine"), 0.1) if reconcile else Greedy(),
        optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1),
    )


def test_module_used_twice_was_dropped_from_the_chain() -> None:
    """``Chain.from_sequential`` listed units by ``named_children()``, which names a module once.

    A model with one ``nn.ReLU`` in two places was trained without the second, and nobody told.
    """
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3))
    chain = Chain.from_sequential(model, input_shape=(4,), classes=3)
    assert [unit.name for unit in chain.units] == ["0", "1", "2", "3"]


def test_tied_parameters_were_untied() -> None:
    """Each unit is a copy of its own, so parameters that two units shared silently went apart."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(UserError, match="units '0' and '1' share a parameter"):
        Chain.from_sequential(model, input_shape=(4,), classes=4)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for child in self:
            x = x + child(x)
        return x


def test_forward_of_a_sequential_s_subclass_was_lost() -> None:
    """``Chain.from_sequential`` took the children of any subclass and never called its forward."""
    with pytest.raises(UserError, match="has a forward of its own"):
        Chain.from_sequential(
            _Residual(nn.Linear(4, 4), nn.Linear(4, 4)), input_shape=(4,), classes=4
        )


def test_model_file_with_a_dataclass_was_refused(tmp_path: Path) -> None:
    """The file's module was not in ``sys.modules``, where dataclasses look up postponed annotations.

    The message was "'NoneType' object has no attribute '__dict__'".
    """
    file = tmp_path / "model.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "@dataclass\n"
        "class Options:\n"
        "    width: int = 6\n"
        "def net(shape, classes):\n"
        "    width = Options().width\n"
        "    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, classes))\n"
    )
    chain = build_chain(f"{file}:net", input_shape=(4,), classes=3, seed=0)
    assert chain.shapes() == [(6,)]


def test_probe_refused_units_that_begin_in_place(tmp_path: Path) -> None:
    """The probe ran before ``Stage`` turned ``inplace=True`` off, and its inputs are leaves."""
    file = tmp_path / "model.py"
    file.write_text(
        "from torch import nn\n"
        "def net(shape, classes):\n"
        "    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))\n"
        "    second = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8))\n"
        "    return nn.Sequential(first, second, nn.Linear(8, classes))\n"
    )
    config = TrainConfig(
        model=f"{file}:net",
        data="digits",
        objective="sgr",
        stages=2,
        max_steps=1,
        out=str(tmp_path / "run"),
    )
    summary = train(config, World.alone(), stream=io.StringIO())
    assert summary is not None
    assert summary["steps"] == 1


class _InPlaceHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.relu_())
        return logits


@pytest.mark.parametrize("reconcile", [False, True])
def test_head_that_works_in_place_was_refused_in_autograd_s_words(reconcile: bool) -> None:
    """The check came after a backward pass that fails by itself.

    Greedy hands the head a leaf, which autograd lets nobody change; and where the body ends in an
    operation that needs its own output (tanh), reconciliation's backward finds it overwritten.
    """
    stage = _stage(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), _InPlaceHead(), reconcile=reconcile)
    stage.forward(torch.randn(5, 4))
    with pytest.raises(StageError, match="the head changes the stage's output in place"):
        stage.output_gradient(torch.tensor([0, 1, 2, 0, 1]))


def test_dropout_of_the_head_depended_on_what_was_drawn_between_the_phases() -> None:
    """Only ``forward`` seeded the generator; what else drew from it came before the head's turn."""
    found = []
    for noise in (0, 5):
        torch.manual_seed(0)
        head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        stage = _stage(nn.Sequential(nn.Linear(4, 4)), head)
        stage.forward(torch.ones(5, 4))
        torch.rand(noise)
        found.append(stage.output_gradient(torch.tensor([0, 1, 2, 0, 1])))
    assert torch.equal(found[0], found[1])


def test_three_ranks_waited_for_each_other_for_ever(tmp_path: Path) -> None:
    """``new_group(use_local_synchronization=True)`` names a group after the number of groups that a
    rank already has: the middle rank had one when it made its second, the last rank had none, and
    the two waited under different names. With two or four ranks the numbers happened to be equal.
    """
    arguments = ["train", "--model", "mlp", "--stages", "3", "--max-steps", "2"]
    run_ranks(tmp_path / "log", [*arguments, "--out", str(tmp_path / "run")], 3, seconds=30)


def test_an_evaluation_of_nothing_divided_by_zero() -> None:
    """The last stage divided the ensemble's right answers by their number, which was 0 when an
    evaluation held no batch; it now reports None, as for every other mean over nothing.
    """
    config = TrainConfig(model="mlp", stages=1)
    stage = Blueprint.draw(config).build_stage(1, config, device=torch.device("cpu"), total_steps=1)
    edge = InProcessEdge(
        edge_contract(
            source=0, feature_shape=(1,), target_shape=(), classes=10, max_rows=1, with_delta=False
        )
    )
    for number, kind in enumerate((Kind.EVALUATED, Kind.END)):
        edge.begin(Header(kind=kind, number=number, rows=0, epoch=0))
    records: list[dict[str, object]] = []
    worker = Worker(
        stage=stage,
        device=torch.device("cpu"),
        incoming=edge,
        outgoing=None,
        sends_delta=False,
        report=records.append,
        log_every=1,
    )
    run_stream([worker], lambda: None)
    assert [(r["accuracy"], r["ensemble_accuracy"]) for r in records] == [(None, None)]


def test_a_reader_that_left_made_a_run_wait_for_ever(tmp_path: Path) -> None:
    """``pipelocal train | head -1``: the reporter's thread failed with BrokenPipeError and told the
    control plane, but with one rank nobody watched for failures, so the run waited for the reporter.
    """
    command = f"{sys.executable} -m pipelocal train --model mlp --epochs 2 --out {tmp_path / 'run'}"
    shell = f"{command} --plain | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "BrokenPipeError" in result.stderr


def test_being_terminated_passed_for_a_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Terminated`` was an Exception, so ``except Exception`` around a unit's forward took SIGTERM
    for a unit that does not fit its input.
    """

    def terminated(*_: object) -> Tensor:
        raise Terminated("terminated by a signal")

    monkeypatch.setattr(nn.Linear, "forward", terminated)
    with pytest.raises(Terminated):
        Blueprint.draw(TrainConfig(model="mlp"))


def test_exports_of_equal_models_were_unequal_files(tmp_path: Path) -> None:
    """``torch.save(state, path)`` writes the file's own name into the archive."""
    out = tmp_path / "run"
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)))
    files = [tmp_path / "one.pt", tmp_path / "another.pt"]
    for file in files:
        export(ExportConfig(run=str(out), to=str(file)))
    assert files[0].read_bytes() == files[1].read_bytes()
