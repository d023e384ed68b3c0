"""On CUDA devices: one process, ranks that share a GPU, and NCCL between GPUs.

Ranks are started by torchrun here: CUDA does not survive a fork.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
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
