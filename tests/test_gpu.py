"""On CUDA devices: one process, ranks that share a GPU, and NCCL between GPUs.

Ranks are started by torchrun here: CUDA does not survive a fork.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipelocal as pl
from pipelocal import cli
from pipelocal.errors import StageError
from tests.launching import torchrun

CUDA_DEVICES = torch.cuda.device_count() if torch.cuda.is_available() else 0
ARGUMENTS = ["train", "--stages", "4", "--epochs", "3", "--device", "cuda", "--plain"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA_DEVICES == 0, reason="no CUDA device"),
]


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_one_process_learns(tmp_path: Path, objective: str) -> None:
    out = tmp_path / "run"
    assert cli.run([*ARGUMENTS, "--objective", objective, "--out", str(out)]) == 0
    summary = summary_of(out)
    assert summary["eval_accuracy"] > 0.85
    assert all(stage["device_peak_bytes"] > 0 for stage in summary["stages"])


def test_ranks_that_share_a_gpu_use_the_host_edge(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert cli.run([*ARGUMENTS, "--out", str(alone)]) == 0
    result = torchrun(2, [*ARGUMENTS, "--edge", "host", "--out", str(shared)])
    assert result.returncode == 0, result.stderr
    assert math.isclose(
        summary_of(alone)["eval_accuracy"], summary_of(shared)["eval_accuracy"], abs_tol=0.05
    )


class Repeated(nn.Module):
    """A unit by what a graph would make of it: dropout is drawn anew, what it does on the host is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(64, 64)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, 64]`` to the same shape."""
        if self.kind == "draws on the host":
            x = x * random.random()
        if self.kind == "waits for the device":
            x = x / x.abs().max().item()
        if self.kind == "new buffer":
            self.seen = self.seen + 1
        return torch.relu(self.linear(x))


def trained(*, objective: Any = None, batches: int = 10, **options: Any) -> dict[str, Tensor]:
    """The state of a model with dropout and BatchNorm after two epochs that end in a shorter batch."""
    torch.manual_seed(0)
    x, y = torch.randn(32 * batches - 5, 64), torch.randint(10, (32 * batches - 5,))
    blocks = [
        nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3))
        for _ in range(3)
    ]
    model = nn.Sequential(*blocks, nn.Linear(64, 10))
    pipeline = pl.Pipeline(model, stages=2, device="cuda", objective=objective, **options)
    pipeline.fit(TensorDataset(x, y), epochs=2, batch_size=32)
    return pipeline.module().state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 3}, {"objective": pl.SGR()}, {"autocast": "bf16"}, {"ema": 0.9}],
    ids=["plain", "accumulate", "sgr", "autocast", "ema"],
)
def test_cuda_graphs_train_to_what_launched_kernels_do(options: dict[str, Any]) -> None:
    """Random numbers, short batches, buffers and added gradients are those of plain passes."""
    plain, graphed = trained(**options), trained(**options, cuda_graphs=True)
    for name, value in plain.items():
        torch.testing.assert_close(graphed[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_cuda_graphs_of_convolutions_and_replicas(tmp_path: Path) -> None:
    """Ranks that share a GPU, with replicas whose gradients are averaged in the graphs' memory."""
    options = [*ARGUMENTS, "--stages", "2", "--replicas", "1,2"]
    found = []
    for name, graphs in (("plain", []), ("graphed", ["--cuda-graphs"])):
        out = tmp_path / name
        result = torchrun(3, [*options, "--edge", "host", *graphs, "--out", str(out)])
        assert result.returncode == 0, result.stderr
        found.append(summary_of(out)["eval_accuracy"])
    assert math.isclose(*found, abs_tol=0.05)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("draws on the host", "it draws random numbers on the host, which a graph would repeat"),
        ("new buffer", "it puts new tensors in place of its buffers or parameters"),
        ("waits for the device", "cannot be captured"),
    ],
)
def test_what_a_cuda_graph_would_get_wrong_is_refused(kind: str, why: str) -> None:
    model = nn.Sequential(Repeated("plain"), Repeated(kind), nn.Linear(64, 10))
    data = TensorDataset(torch.randn(64, 64), torch.randint(10, (64,)))
    pipeline = pl.Pipeline(model, stages=1, device="cuda", cuda_graphs=True)
    with pytest.raises(StageError, match=f"stage 1.*--cuda-graphs.*{why}"):
        pipeline.fit(data, epochs=1, batch_size=32)


@pytest.mark.skipif(CUDA_DEVICES > 1, reason="the ranks do not share a GPU here")
def test_nccl_on_a_shared_gpu_is_refused_with_the_way_out(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    result = torchrun(2, [*ARGUMENTS, "--edge", "device", "--out", out])
    assert result.returncode != 0
    assert "share one GPU, which NCCL refuses" in result.stderr
    assert "--edge host" in result.stderr


@pytest.mark.multigpu
@pytest.mark.skipif(CUDA_DEVICES < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_nccl_edges_carry_what_host_edges_carry(tmp_path: Path, objective: str) -> None:
    accuracies = []
    for edge in ("device", "host"):
        out = tmp_path / edge
        arguments = [*ARGUMENTS, "--objective", objective, "--edge", edge, "--out", str(out)]
        result = torchrun(2, arguments)
        assert result.returncode == 0, result.stderr
        accuracies.append(summary_of(out)["eval_accuracy"])
    assert math.isclose(*accuracies, abs_tol=0.05)


def test_replicas_that_share_a_gpu(tmp_path: Path) -> None:
    """Their gradients go by gloo then, which takes CUDA tensors by way of the host."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    replicas = [*ARGUMENTS, "--stages", "2", "--replicas", "1,2"]
    assert cli.run([*replicas, "--out", str(alone)]) == 0
    result = torchrun(3, [*replicas, "--edge", "host", "--out", str(shared)])
    assert result.returncode == 0, result.stderr
    assert math.isclose(
        summary_of(alone)["eval_accuracy"], summary_of(shared)["eval_accuracy"], abs_tol=0.05
    )


def test_sharded_replicas_that_share_a_gpu_are_refused(tmp_path: Path) -> None:
    """gloo cannot scatter CUDA tensors: it ended in SIGSEGV with torch 2.11."""
    replicas = [*ARGUMENTS, "--stages", "2", "--replicas", "1,2", "--replicate", "fsdp"]
    result = torchrun(3, [*replicas, "--edge", "host", "--out", str(tmp_path / "run")])
    assert result.returncode != 0
    assert "--replicate fsdp: ranks 1, 2 are replicas on CUDA without NCCL" in result.stderr


@pytest.mark.multigpu
@pytest.mark.skipif(CUDA_DEVICES < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    "options",
    [[], ["--replicate", "fsdp"], ["--compress", "bf16"], ["--sync-batchnorm"]],
    ids=lambda options: " ".join(options) or "ddp",
)
def test_replicas_over_nccl_learn(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--stages", "2", "--replicas", "2", *options, "--out", str(out)]
    result = torchrun(2, arguments)
    assert result.returncode == 0, result.stderr
    assert summary_of(out)["eval_accuracy"] > 0.75
