"""What lies around a process: signals, streams, launchers. Each ends well, or is told in one line."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder
from pipelocal.config import TrainConfig
from pipelocal.config.training import train
from pipelocal.ranks import world
from pipelocal.ranks.world import World
from tests.launching import PATIENCE_S, Ranks, launch, start, until

PIPELOCAL = [sys.executable, "-m", "pipelocal"]
SHORT = ["--max-steps", "4"]
SMALL = [
    "train",
    "--model",
    "mlp",
    "--stages",
    "2",
    "--batch-size",
    "32",
    "--lr",
    "0.01",
    "--plain",
]


def start_long(tmp_path: Path, before: Callable[[int], None] | None = None) -> Ranks:
    """A run without a soon end, in which training goes on; what it says on standard error is kept."""

    def begin(rank: int) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if before is not None:
            before(rank)

    options = [*SMALL, "--epochs", "4000", "--snapshot-every", "100000"]
    ranks = launch(tmp_path / "log", [*options, "--out", str(tmp_path / "run")], 1, begin)
    wait_for_more(tmp_path / "run", ranks.processes[0].is_alive)
    return ranks


def wait_for_more(out: Path, alive: Callable[[], bool]) -> None:
    """Wait until a run has written further metrics."""
    metrics = out / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0

    def grown() -> bool:
        assert alive()
        return metrics.exists() and metrics.stat().st_size >= before + 2000

    until(grown)


def test_sighup_took_no_snapshot(tmp_path: Path) -> None:
    """Only SIGTERM and Ctrl-C were listened to, so a closed terminal ended a run at once, in silence."""
    ranks = start_long(tmp_path)
    ranks.kill(0, signal.SIGHUP)
    assert ranks.wait() == [128 + signal.SIGHUP]
    assert ranks.output().count("\n") == 1
    assert "the terminal was closed (SIGHUP); a snapshot after batch" in ranks.output()
    assert SnapshotFolder(tmp_path / "run").steps()


def test_a_repeated_sighup_is_one(tmp_path: Path) -> None:
    """The system tells all processes of a terminal, and torchrun passes it on as well.

    A repetition after the snapshot was written took the place of the line that tells of it.
    """
    ranks = start_long(tmp_path)

    def told_and_ended() -> bool:
        ranks.kill(0, signal.SIGHUP)
        return not ranks.processes[0].is_alive()

    until(told_and_ended)
    assert ranks.wait() == [128 + signal.SIGHUP]
    assert ranks.output().count("\n") == 1
    assert "a snapshot after batch" in ranks.output()


def test_nohup_is_respected(tmp_path: Path) -> None:
    def ignore_sighup(_rank: int) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    ranks = start_long(tmp_path, ignore_sighup)
    ranks.kill(0, signal.SIGHUP)
    wait_for_more(tmp_path / "run", ranks.processes[0].is_alive)
    ranks.kill(0, signal.SIGTERM)
    assert ranks.wait() == [128 + signal.SIGTERM]
    assert "a snapshot after batch" in ranks.output()


def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """Its streams fail from then on, which must not keep the snapshot from being written."""
    ours, theirs = pty.openpty()
    out = tmp_path / "run"
    command = [*PIPELOCAL, *SMALL, "--epochs", "4000", "--out", str(out)]
    command += ["--snapshot-every", "100000", "--no-plain"]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the terminal
    )
    os.close(theirs)
    wait_for_more(out, lambda: process.poll() is None)
    os.close(ours)
    assert process.wait(timeout=PATIENCE_S) == 128 + signal.SIGHUP
    assert SnapshotFolder(out).steps()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(TrainConfig(model="mlp", stages=2, max_steps=2, plain=True, out=str(out)))
    return out


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run ``pipelocal`` with a line of redirections; what is left of its streams, and its exit code."""
    pipelocal = f"{sys.executable} -m pipelocal"
    return subprocess.run(
        ["bash", "-c", line.replace("pipelocal", pipelocal, 1)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
        ">/dev/full 2>/dev/full",
        pytest.param("</dev/null >/dev/full", marks=pytest.mark.slow),
    ],
)
def test_a_training_without_streams_failed(tmp_path: Path, streams: str) -> None:
    """Python has None for a stream that was closed at the start, and a full one fails at each write."""
    out = tmp_path / "run"
    done = shell(f"pipelocal {' '.join([*SMALL, *SHORT])} --out {out} {streams}")
    assert done.returncode == 0, done
    assert (out / "summary.json").exists()
    assert not done.stderr


def test_an_error_without_streams_keeps_its_exit_code(tmp_path: Path) -> None:
    done = shell(f"pipelocal {' '.join(SMALL)} --lr -1 --out {tmp_path / 'run'} >&- 2>/dev/full")
    assert done.returncode == cli.USER_ERROR
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("streams", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
@pytest.mark.parametrize(
    "command", ["evaluate RUN", pytest.param("evaluate RUN --json", marks=pytest.mark.slow)]
)
def test_a_result_that_was_lost_was_a_success(
    finished: Path, command: str, streams: str, reason: str
) -> None:
    """Or a traceback, where standard output was closed."""
    done = shell(f"pipelocal {command.replace('RUN', str(finished))} {streams}")
    assert done.returncode == cli.FAILURE
    assert done.stderr.count("\n") == 1
    assert f"standard output cannot be written ({reason})" in done.stderr


@pytest.mark.slow
def test_an_export_whose_word_is_lost_is_there(finished: Path, tmp_path: Path) -> None:
    done = shell(f"pipelocal export {finished} --to {tmp_path / 'm.pt'} >/dev/full")
    assert done.returncode == 0, done
    assert (tmp_path / "m.pt").exists()


LEFT_OVER = {"RANK": "1", "WORLD_SIZE": "2"}
TASK = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_ID": "0"}


def set_all(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_left_over_variables_made_commands_do_nothing(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ranks beyond the first leave such commands to it, and there was none."""
    set_all(monkeypatch, LEFT_OVER)
    assert cli.run(["export", str(finished), "--to", str(tmp_path / "m.pt")]) == 0
    assert (tmp_path / "m.pt").exists()
    assert cli.run(["evaluate", str(finished)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert cli.run(["plan", "--model", "mlp", "--stages", "2", "--device", "meta"]) == 0
    assert "stage" in capsys.readouterr().out


def test_ranks_beyond_the_first_leave_it_to_that_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, LEFT_OVER | {"TORCHELASTIC_RUN_ID": "job", "LOCAL_RANK": "1"})
    assert cli.run(["export", str(finished), "--to", str(tmp_path / "m.pt")]) == 0
    assert not (tmp_path / "m.pt").exists()


def test_left_over_variables_are_named_by_who_waits(tmp_path: Path) -> None:
    """A process of its own: the abandoned attempt to connect goes on for seconds after the error."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])  # nobody answers there

        def wait_in_vain(_rank: int) -> None:
            del os.environ["PIPELOCAL_INIT_METHOD"], os.environ["LOCAL_RANK"]
            os.environ.update(LEFT_OVER | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
            world.SILENT_S = 0.1
            sys.exit(cli.run([*SMALL, *SHORT, "--start-timeout", "4"]))

        ranks = start(tmp_path, wait_in_vain, 1)
        assert ranks.wait() == [cli.USER_ERROR]
    waits, error = ranks.output().splitlines()
    for line in (waits, error):
        assert f"RANK=1, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT={port}" in line
        assert "'unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT'" in line
    assert "waits for the other ranks" in waits
    assert "error: the other ranks were not met" in error


def test_a_port_in_use_was_mended_by_the_same_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        environment = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        set_all(monkeypatch, LEFT_OVER | environment)
        assert cli.run([*SMALL, *SHORT, "--start-timeout", "30"]) == cli.USER_ERROR
    assert f"MASTER_PORT={port} is in use on this host: give all 2" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1"])
def test_no_port(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(monkeypatch, LEFT_OVER | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    assert cli.run([*SMALL, *SHORT]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert f"MASTER_PORT={port}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "environment",
    [
        TASK,
        TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "8"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {"MPI_LOCALNRANKS": "4"},
        {"PALS_RANKID": "3"},
        {"PMIX_RANK": "1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_tasks_without_a_rank_trained_the_whole_each(
    command: str,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    set_all(monkeypatch, environment)
    arguments = [*SMALL, *SHORT] if command == "train" else [command]
    assert cli.run(arguments) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "start torchrun once on each node" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        (TASK | {"WORLD_SIZE": "1"}, False),
        (TASK | {"SLURM_NTASKS": "1"}, False),
        (TASK | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"PMI_SIZE": "1", "PMI_RANK": "0", "PMIX_RANK": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),  # a batch script
        ({"SLURM_NTASKS": "4"}, True),  # a shell of salloc
        (TASK | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}, True),  # an interactive step
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
    ],
    ids=str,
)
def test_one_process_of_a_job_works_alone(
    environment: dict[str, str],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_all(monkeypatch, environment)
    assert World.from_environment().size == 1
    said = capsys.readouterr().err
    assert said.count("\n") == warned
    assert ("SLURM_NTASKS=4, but this is one process outside srun" in said) == warned
