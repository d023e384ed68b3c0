"""The recipes of ``launch/``: they are sound scripts, and start real ranks as far as one machine can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder
from tests.interrupted import EVERY
from tests.launching import PATIENCE_S, free_port, until
from tests.test_transparency import assert_same_bits, train_alone

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"
SHORT = ["--model", "mlp", "--stages", "2", "--epochs", "1"]
LONG = ["--model", "mlp", "--stages", "2", "--epochs", "20", "--log-every", "8", *EVERY]


def _environment(**more: str) -> dict[str, str]:
    """With this interpreter's torchrun, and the stand-ins for SLURM's programs, before all others."""
    path = f"{HERE}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize(
    "script",
    [*sorted(LAUNCH.glob("*.sh")), LAUNCH.parent / "benchmarks" / "gpu.sh"],
    ids=lambda path: path.name,
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_kubernetes_recipe_fits_the_schema() -> None:
    documents = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    job = documents[1]["spec"]
    pods = job["completions"]
    assert job["parallelism"] == pods
    assert f"--nnodes={pods}" in job["template"]["spec"]["containers"][0]["args"]


@pytest.mark.slow
def test_one_node(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [str(LAUNCH / "one-node.sh"), *SHORT, "--plain", "--out", str(out)]
    done = subprocess.run(
        command,
        env=_environment(RANKS="2"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 stage(s) on 2 rank(s)" in done.stdout
    assert_same_bits(train_alone(SHORT, tmp_path / "alone"), out)


@pytest.mark.slow
def test_several_nodes_by_hand(tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = _environment(PORT=str(free_port()))
    processes = [
        subprocess.Popen(
            [LAUNCH / "several-nodes.sh", "2", str(number), "127.0.0.1", *SHORT, "--out", out],
            env=environment,
        )
        for number in (0, 1)
    ]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0]
    assert_same_bits(train_alone(SHORT, tmp_path / "alone"), out)


def test_several_nodes_wants_to_know_which() -> None:
    command = [str(LAUNCH / "several-nodes.sh"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")


def _slurm(tmp_path: Path, restart: int) -> subprocess.Popen[bytes]:
    """The batch script as SLURM runs it, on two nodes."""
    environment = _environment(
        SLURM_JOB_ID=str(free_port() % 20000),  # of which the recipe makes a port
        SLURM_JOB_NODELIST="node[0-1]",
        SLURM_NNODES="2",
        SLURM_RESTART_COUNT=str(restart),
        RANKS="1",
        REQUEUED=str(tmp_path / "requeued"),
    )
    options = [*LONG, "--plain", "--out", str(tmp_path / "run")]
    return subprocess.Popen([LAUNCH / "slurm.sh", *options], env=environment)


@pytest.mark.slow
def test_a_slurm_job_is_pre_empted_and_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = _slurm(tmp_path, 0)
    until(SnapshotFolder(out).steps)
    job.send_signal(signal.SIGTERM)
    assert job.wait(PATIENCE_S) == 0
    status = (tmp_path / "run.status").read_text()
    assert "told to end; back into the queue" in status
    assert (tmp_path / "requeued").read_text().split()
    assert SnapshotFolder(out).steps()[0] < 460
    assert _slurm(tmp_path, 1).wait(PATIENCE_S) == 0
    lines = (tmp_path / "run.status").read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines[-2:]] == ["began on node[0-1]", "finished"]
    for name in ("node-0.0", "node-1.0", "node-0.1", "node-1.1"):
        assert (tmp_path / "run.logs" / name).exists()
    assert "going on after batch" in (tmp_path / "run.logs" / "node-0.1").read_text()
    assert_same_bits(train_alone(LONG, tmp_path / "alone"), out)


def test_a_slurm_job_that_cannot_work_is_not_put_back(tmp_path: Path) -> None:
    command = [str(LAUNCH / "slurm.sh"), "--stages", "2"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give --out" in done.stderr


def test_the_command_lists_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["launch"]) == 0
    listed = capsys.readouterr().out.splitlines()[:-1]
    files = sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".md")
    assert [line.split()[0] for line in listed] == files
    assert all(line.split(maxsplit=1)[1].startswith("Train ") for line in listed)
    for name in files:
        assert cli.run(["launch", name]) == 0
        assert capsys.readouterr().out == (LAUNCH / name).read_text()
    assert cli.run(["launch", "slurm"]) == cli.USER_ERROR
    assert "did you mean 'slurm.sh'?" in capsys.readouterr().err
