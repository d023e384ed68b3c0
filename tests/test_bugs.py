"""One test for each defect that was found and mended; the docstring gives the cause."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pipelocal import Pipeline, cli
from pipelocal.checkpoint.description import Description, ModelDescription
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import ExportConfig, TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of, spec_of, text_of
from pipelocal.config.saved import options_of
from pipelocal.config.training import train
from pipelocal.doctor.links import bits_per_s
from pipelocal.errors import StageError, Terminated, UserError
from pipelocal.models import Chain, build_chain
from pipelocal.objective import ExactReconciliation, Greedy, Reconciliation
from pipelocal.objective.delta_encoding import SUMMARIES
from pipelocal.objective.distances import relative
from pipelocal.pipeline.worker import Worker, run_stream
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.replicas.carrier import Carrier
from pipelocal.results.export import export
from pipelocal.run.choose_folder import choose_folder
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.clock import seconds_behind_rank_0
from pipelocal.telemetry.trace import read_events
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import InProcessEdge
from tests.launching import PATIENCE_S, launch, run_ranks, start, world_of
from tests.test_transparency import train_alone
from tests.transport.contracts import plain_contract


def _stage(body: nn.Sequential, head: nn.Module, *, reconcile: bool = False) -> Stage:
    return Stage(
        number=2,
        body=body,
        head=head,
        objective=ExactReconciliation(Reconciliation()) if reconcile else Greedy(),
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
    stage.forward(torch.randn(5, 4), reconciled=reconcile)
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
    run_ranks(tmp_path / "log", [*arguments, "--out", str(tmp_path / "run")], 3)


def test_an_evaluation_of_nothing_divided_by_zero() -> None:
    """The last stage divided the ensemble's right answers by their number, which was 0 when an
    evaluation held no batch; it now finds None, as for every other mean over nothing.
    """
    config = TrainConfig(model="mlp", stages=1)
    stage = blueprint_of(config).build_stage(1, device=torch.device("cpu"), total_steps=1)
    edge = InProcessEdge(plain_contract(source=0, feature=(1,), label=(), classes=10, max_rows=1))
    for number, kind in enumerate((Kind.EVALUATED, Kind.END)):
        edge.begin(Header(kind=kind, number=number, rows=0, epoch=0, step=0))
    records: list[dict[str, object]] = []
    worker = Worker(
        stage=stage,
        device=torch.device("cpu"),
        incoming=edge,
        outgoing=None,
        encode_delta=lambda delta: delta,
        report=records.append,
        log_every=1,
    )
    run_stream([worker], lambda: None)
    assert worker.evaluation.reading is not None
    assert worker.evaluation.reading.metrics == {"accuracy": None}
    assert worker.evaluation.ensemble == {"accuracy": None}
    assert records == []  # of no test data there is nothing to tell


def test_a_reader_that_left_made_a_run_wait_for_ever(tmp_path: Path) -> None:
    """``pipelocal train | head -1``: the reporter's thread failed with BrokenPipeError and told the
    control plane, but with one rank nobody watched for failures, so the run waited for the reporter.
    Now progress that nobody reads is dropped.
    """
    command = f"{sys.executable} -m pipelocal train --model mlp --epochs 2 --out {tmp_path / 'run'}"
    shell = f"{command} --plain | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert result.returncode == 0
    assert not result.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_being_terminated_passed_for_a_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Terminated`` was an Exception, so ``except Exception`` around a unit's forward took SIGTERM
    for a unit that does not fit its input.
    """

    def terminated(*_: object) -> Tensor:
        raise Terminated("terminated by a signal")

    monkeypatch.setattr(nn.Linear, "forward", terminated)
    with pytest.raises(Terminated):
        blueprint_of(TrainConfig(model="mlp"))


def test_exports_of_equal_models_were_unequal_files(tmp_path: Path) -> None:
    """``torch.save(state, path)`` writes the file's own name into the archive."""
    out = tmp_path / "run"
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)))
    files = [tmp_path / "one.pt", tmp_path / "another.pt"]
    for file in files:
        export(ExportConfig(run=str(out), to=str(file)))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_rank_lost_patience_with_stages_that_still_worked(tmp_path: Path) -> None:
    """A rank that had finished waited 30 s for "goodbye", while later stages could still have long
    to go: a good run failed at its very end. Now only a failure ends that wait.
    """

    def body(rank: int) -> None:
        control = ControlPlane(World.from_environment())
        if rank == 0:
            time.sleep(1.0)
        control.leave(timeout_s=0.2 if rank else PATIENCE_S)

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [0, 0], ranks.output()


def test_a_rank_that_met_nobody_could_not_be_ended(tmp_path: Path) -> None:
    """The rendezvous waits within C++ on the main thread, where Python sees no signal."""
    with socket.create_server(("127.0.0.1", 0)) as master:
        master.settimeout(PATIENCE_S)

        def before(_: int) -> None:
            del os.environ["PIPELOCAL_INIT_METHOD"]
            os.environ |= {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(master.getsockname()[1]),
            }

        ranks = launch(tmp_path / "log", ["train", "--out", str(tmp_path / "run")], 1, before)
        master.accept()[0].close()  # it has come to the rendezvous, where nobody answers it
    ranks.kill(0, signal.SIGTERM)
    assert ranks.wait() == [143]
    assert "pipelocal (rank 1): stopped: terminated by a signal" in ranks.output()


def of_nothing() -> Description:
    """A description for a folder in which nothing will be trained."""
    return Description(model=ModelDescription(units=""), data={}, versions={})


def test_two_runs_that_started_at_once_shared_a_folder(tmp_path: Path) -> None:
    """The folder was looked at early and made later, with ``exist_ok``."""
    config = TrainConfig(out=str(tmp_path / "run"))
    one, other = (choose_folder(spec_of(config), of_nothing().model) for _ in range(2))
    one.begin(text_of(config), of_nothing())
    with pytest.raises(UserError, match="another run has just taken it"):
        other.begin(text_of(config), of_nothing())


def test_a_rank_that_cannot_look_was_not_ended_when_its_neighbour_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last resort waited for an account, which only a main thread that looks would have given."""
    monkeypatch.setattr("pipelocal.ranks.control.LAST_RESORT_S", 0.5)

    def body(rank: int) -> None:
        control = ControlPlane(World.from_environment())
        control.watch_neighbours({1 - rank: f"stage {2 - rank} (rank {1 - rank})"}, stage=rank + 1)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10 * PATIENCE_S)  # as in a driver that waits for its peer

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [1, -signal.SIGKILL]
    assert "lost the connection to stage 2 (rank 1)" in ranks.output(0)


def test_options_beyond_ascii_could_not_be_read_again(tmp_path: Path) -> None:
    """JSON writes characters beyond 16 bits as two escapes, which TOML does not allow."""
    out = tmp_path / "ü😀"
    train(TrainConfig(model="mlp", max_steps=1, plain=True, out=str(out)))
    assert options_of(RunFolder.open(str(out))).out == str(out)
    with pytest.raises(UserError, match="give text without line breaks"):
        validate(TrainConfig(out="bad\udcff"))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK must be set, from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK=5 and WORLD_SIZE=2"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK=x"),
    ],
)
def test_an_odd_environment_ended_in_a_traceback(
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """RANK and WORLD_SIZE were taken for numbers wherever they were read, also to report errors."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["train"]) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_last_batch_of_one_sample_failed_late(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BatchNorm over flat features cannot train on one sample; 1442 = 11 * 131 + 1 samples found
    that out at the end of an epoch. Now it is tried at the start.
    """
    arguments = ["train", "--model", "mlp", "--plain", "--max-steps", "2", "--batch-size", "131"]
    out = tmp_path / "run"
    assert cli.run([*arguments, "--out", str(out)]) == cli.USER_ERROR
    assert "a training batch has one sample" in capsys.readouterr().err
    assert not out.exists()
    assert cli.run([*arguments, "--drop-last", "--out", str(out)]) == 0


def test_a_model_in_float64_failed_after_the_start() -> None:
    """The meta device computes with mixed dtypes without a word."""
    double = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    chain = Chain.from_sequential(double, input_shape=(1, 8, 8), classes=10)
    with pytest.raises(
        UserError,
        match=r"works in torch.float64, and is given torch.float32, as samples in float64 become",
    ):
        chain.shapes()


def test_a_model_that_ends_the_program_ended_it_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``sys.exit(0)`` in a user's function passed for a good end."""
    (tmp_path / "model.py").write_text("import sys\ndef f(shape, classes): sys.exit(0)\n")
    assert cli.run(["train", "--model", f"{tmp_path / 'model.py'}:f"]) == cli.FAILURE
    assert "the model ended the program (exit code 0)" in capsys.readouterr().err


def test_a_plan_for_a_reader_that_left_blamed_the_model() -> None:
    """rich raises SystemExit on a broken pipe, which passed for the model's own ``sys.exit``."""
    command = f"{sys.executable} -m pipelocal plan --model mlp --stages 2 --repeats 1"
    shell = f"{command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert "the model ended the program" not in done.stderr
    assert "Traceback" not in done.stderr


def test_relative_distance_had_no_bound_for_a_learned_sample() -> None:
    """``relative`` was a mean of ratios, each over the length of its own sample's delta.

    What the stage before has learned has next to no delta: ResNet-32 on digits diverged within four
    epochs at a weight of 0.01.
    """
    delta = torch.ones(4, 8)
    delta[0] *= 1e-6
    assert relative(torch.full((4, 8), 0.5), delta) < 1


@pytest.mark.slow
def test_cosine_distance_had_no_bound_where_the_own_gradient_vanishes(tmp_path: Path) -> None:
    """A classifier that begins at zero, as torchvision's ViT has, has no input gradient at first.

    The distance's gradient, 1 over that length, was 1e12, and the second batch's loss was NaN.
    """
    arguments = ["--model", "vit_small", "--stages", "2", "--max-steps", "4", "--lr", "0.01"]
    arguments += ["--objective", "sgr"]
    for form in (["--reconcile-fraction", "1"], ["--reconcile-every", "1"]):
        out = tmp_path / form[0].strip("-")
        assert cli.run(["train", "--plain", *arguments, *form, "--out", str(out)]) == 0


def test_int8_of_a_batch_of_one_row_could_not_be_read() -> None:
    """One row is contiguous, so its scale was not copied, and a float may begin at fours alone."""
    summary = SUMMARIES.get("int8")((2,), 1, 0)
    delta = torch.tensor([[0.5, 1.0]])
    torch.testing.assert_close(summary.decode(summary.encode(delta)), delta, rtol=0, atol=0.5 / 127)


@pytest.mark.slow
def test_a_rank_that_died_after_the_end_made_a_finished_run_fail(tmp_path: Path) -> None:
    """The fault drill killed a rank between the summary and its exit: torchrun began anew, and the new
    ranks refused the folder that they had finished themselves, again and again.
    """
    out = tmp_path / "run"
    arguments = ["train", "--model", "mlp", "--stages", "2", "--epochs", "1", "--out", str(out)]
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\n"
        "from pipelocal import cli\n"
        "cli.run(sys.argv[1:]) and sys.exit(1)\n"
        "if os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    command += ["--nproc-per-node", "2", str(script), *arguments, "--plain"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "it was finished before: accuracy" in done.stdout


def test_a_busy_host_made_a_link_infinitely_fast() -> None:
    """The bandwidth was found from the median ping, which may take longer than the fastest message."""
    slow_pings, one_fast_message = [0.02, 0.03, 0.0001], [0.01, 0.04]
    assert bits_per_s(1000, slow_pings, one_fast_message) == pytest.approx(8000 / 0.00995)
    assert bits_per_s(1000, [0.03], [0.01]) == pytest.approx(8000 / 0.005)


def test_two_ranks_of_one_host_had_two_clocks(tmp_path: Path) -> None:
    """Each rank's clock was off by up to half a round trip, so that a trace now and then showed a stage
    that used a batch some microseconds before the stage in front of it had made it.
    """

    def body(rank: int) -> None:
        world_of(rank)
        assert [seconds_behind_rank_0() for _ in range(20)] == [0.0] * 20
        dist.destroy_process_group()

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [0, 0], ranks.output()


def test_fully_sharded_replicas_that_share_a_gpu_failed_at_the_first_batch(tmp_path: Path) -> None:
    """fully_shard moves what a module is called with to the GPU, and before torch 2.13 failed with an
    IndexError where that was nothing. CPUs do not get there, so the call itself is looked at.
    """

    def called_with_something(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert arguments or not isinstance(module, Carrier)

    hook = register_module_forward_pre_hook(called_with_something)
    options = ["--model", "mlp", "--stages", "1", "--max-steps", "4", "--replicas", "2"]
    try:
        arguments = ["train", *options, "--replicate", "fsdp", "--out", str(tmp_path / "run")]
        run_ranks(tmp_path / "log", arguments, 2)
    finally:
        hook.remove()


def test_fully_sharded_replicas_mixed_batches_of_unequal_weight_wrongly(tmp_path: Path) -> None:
    """A replica's gradients are scaled by how much counts in its batches. Those of the optimizer's
    parameters were, which are shards that have none yet, and the sum was divided as if they had been.
    """
    # 1437 digits in batches of 110: the last of 14 has 7 rows, and shares an update with a whole one.
    model = Path(__file__).parent / "models_for_tests.py"  # without BatchNorm
    options = ["--model", f"{model}:dropout", "--stages", "2", "--batch-size", "110", "--lr", "0.1"]
    options += ["--schedule", "constant", "--epochs", "2", "--replicas", "2"]
    alone = train_alone(options, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *options, "--replicate", "fsdp", "--out", str(out)], 2)
    ours, theirs = (
        torch.load(run / "stages" / "stage-1.pt", weights_only=True)["body"] for run in (alone, out)
    )
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_an_early_step_was_taken_before_its_gradient_was_clipped() -> None:
    """``--step-early`` updates and lets go each gradient as it comes, and ``--clip-norm`` saw the rest."""
    with pytest.raises(
        UserError, match=r"--clip-norm 0.1 wants all gradients at once, and --step-early"
    ):
        validate(TrainConfig(step_early=True, clip_norm=0.1))


def test_memory_of_a_stage_left_its_optimizers_state_out(tmp_path: Path) -> None:
    """It was counted behind the first batch, which with several batches an update is behind no update."""

    def peak(name: str, *more: str) -> int:
        options = ["--model", "mlp", "--stages", "2", "--head", "linear", "--optimizer", "adamw"]
        run = train_alone([*options, "--max-steps", "6", *more], tmp_path / name)
        summary = json.loads((run / "summary.json").read_text())
        return int(summary["stages"][0]["peak_memory_bytes"])

    assert peak("accumulated", "--accumulate", "2") == pytest.approx(peak("plain"), rel=0.1)


@pytest.mark.parametrize(
    "line", [b"\xff", b'{"step": 15}', b'{"step": "x", "event": "train"}', b"[]"]
)
def test_a_damaged_record_kept_a_run_from_going_on(tmp_path: Path, line: bytes) -> None:
    """Records behind the snapshot are cut off, and one that was none ended in a bare Python error."""
    folder = RunFolder(str(tmp_path / "run"))
    folder.path.mkdir()
    kept = b'{"step": 3, "event": "train"}\n'
    folder.metrics.write_bytes(kept + line + b"\n" + b'{"step": 20, "event": "train"}\n')
    folder.cut_metrics(15, evaluated=True)
    assert folder.metrics.read_bytes() == kept


@pytest.mark.parametrize("text", ['{"traceEvents": [', "[]", "{}", '{"traceEvents": [1]}'])
def test_a_damaged_trace_ended_in_a_bare_python_error(tmp_path: Path, text: str) -> None:
    """``pipelocal timeline`` named no file and no remedy."""
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(UserError, match=r"trace.json is damaged, or no trace: train again"):
        read_events(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip_norm": -5.0}, "--clip-norm -5.0: give a number above 0"),
        ({"clip_norm": 0}, "--clip-norm 0: give a number above 0"),
        ({"clip_norm": float("nan")}, "--clip-norm nan: give a number above 0"),
        ({"ema": 2.0}, "--ema 2.0: give a number between 0 and 1"),
        ({"ema": "a"}, "Pipeline: ema='a': give a number"),
        ({"transport_penalty": -1.0}, "--transport-penalty -1.0: give a number of at least 0"),
        ({"stages": 0}, "Pipeline: stages=0: give a whole number of at least 1"),
        ({"stages": 2.5}, "Pipeline: stages=2.5: give a whole number of at least 1"),
    ],
    ids=str,
)
def test_a_pipeline_took_numbers_that_the_command_line_refuses(
    given: dict[str, Any], said: str
) -> None:
    """With a clip_norm below 0 it climbed the loss, with 0 it learnt nothing; no stages were one."""
    with pytest.raises(UserError, match=said):
        Pipeline(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), **{"stages": 2, **given})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cut", ""], "--cut '' names no unit"),
        (["--mixup", "1e-30"], "--mixup 1e-30: give a number from 0.001"),
        (["--workers", "2"], "--workers 2: data set 'digits' lies in memory"),
        (["--bad-samples", "skip"], "--bad-samples skip: data set 'digits' lies in memory"),
        (["--data-root", "/data"], "--data-root /data: data set 'digits' reads no files"),
    ],
)
def test_options_without_an_effect_were_taken(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One stage was trained, the bound in the line was not the one that held, or --data was another."""
    assert cli.run(["train", "--out", str(tmp_path / "run"), *options]) != 0
    assert said in capsys.readouterr().err


def test_compression_without_replicas_did_nothing_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is of gradients that replicas average."""
    run = ["--data", "digits", "--model", "mlp", "--stages", "2", "--max-steps", "2", "--plain"]
    assert cli.run(["train", *run, "--compress", "bf16", "--out", str(tmp_path / "run")]) == 0
    assert "--compress bf16: there are no replicas" in capsys.readouterr().err


def test_a_damaged_summary_ended_in_a_bare_python_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was read as if all was in it."""
    run = ["--data", "digits", "--model", "mlp", "--stages", "2", "--max-steps", "2", "--plain"]
    assert cli.run(["train", *run, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "summary.json").write_text('{"stages": []}')
    for command in (["report"], ["compare", str(tmp_path / "run")]):
        assert cli.run([*command, str(tmp_path / "run")]) != 0
        assert "summary.json cannot be read" in capsys.readouterr().err


def test_heads_that_never_learnt_were_exported(tmp_path: Path) -> None:
    """A stage that is frozen from the start has one, with the weights that it was drawn with."""
    run = ["--data", "digits", "--model", "mlp", "--stages", "2", "--max-steps", "2", "--plain"]
    frozen = ["--freeze-stage", "1:0", "--out", str(tmp_path / "run")]
    assert cli.run(["train", *run, *frozen]) == 0
    file = tmp_path / "model.safetensors"
    assert cli.run(["export", str(tmp_path / "run"), "--heads", "--to", str(file)]) == 0
    assert not [name for name in load_file(file) if name.startswith("heads.")]


def test_torchvision_failed_behind_import_pipelocal() -> None:
    """What mends it beside a CPU-only torch waited for the first use of a name."""
    code = "import pipelocal, sys; assert 'torch' not in sys.modules; import torchvision"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
