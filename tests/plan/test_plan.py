"""The plan command."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from tests.bugs import stateful_models
from tests.launching import run_ranks
from tests.models import of_several_tensors


def test_the_plan_as_json_is_consistent(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run(["plan", "--model", "resnet20", "--stages", "3", "--json", "--repeats", "1"]) == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in plan["stages"]] == [1, 2, 3]
    slowest = max(plan["stages"], key=lambda stage: stage["seconds"])
    assert plan["bottleneck"] == slowest["stage"]
    assert plan["samples_per_second"] == pytest.approx(plan["batch_size"] / slowest["seconds"])
    assert plan["stages"][-1]["sent_bytes"] == 0
    bp, pipeline = plan["alternatives"]
    assert bp["memory_bytes"] > max(stage["memory_bytes"] for stage in plan["stages"])
    assert pipeline["memory_bytes"] < bp["memory_bytes"]


def test_the_table_names_the_bottleneck_and_the_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "--stages", "2", "--repeats", "1", "--objective", "greedy"]) == 0
    said = capsys.readouterr().out
    assert said.count(" *") == 1
    assert "the bottleneck" in said
    assert "--cut block" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "resnet21"], "unknown model 'resnet21'"),
        (["--stages", "9"], "--stages 9: this model has 4 units"),
        (["--cut", "block9"], "this model has no unit 'block9'"),
        (["--objective", "deep-supervision"], "deep-supervision has no stages to plan"),
        (["--objective", "infopro", "--stages", "1"], "there is one stage"),
        (["--objective", "infopro", "--cut", "4"], "there is one stage"),
        (["--objective", "bp"], "bp has no stages to plan"),
        (["--memory-limit", "1KiB"], "raise the limit, cut more stages"),
        (["--memory-limit", "much"], "such as 16GiB"),
        (["--device-speeds", "1,2"], "give 4 numbers above 0"),
        (["--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--input-shape", "3,x"], "--input-shape 3,x: give positive numbers"),
        (["--model", "a:b"], "--model a:b: say what it takes"),
        (["--device", "meta", "--device-flops", "fast"], "such as 50TFLOPS"),
        (["--device", "meta", "--device-bandwidth", "3GB"], "such as 12.5GB/s"),
        (["--ranks", "0"], "--ranks 0: give a number from 1 to 4096"),
        (["--bandwidth", "12Gbit"], "--bandwidth 12Gbit: give a number above 0 with one of"),
        (["--latency", "20"], "--latency 20: give a number with us, ms or s, such as 20us"),
        (["--plot", "there/is/none.png"], "give a file in a folder that exists"),
        (["--plot", "plot.jpg"], "give a file whose name ends in .png"),
        (["--balance", "luck"], "unknown partitioner 'luck': choose one of count, time, memory"),
    ],
)
def test_bad_options_end_in_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["plan", "--repeats", "1", *options]) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        (["greedy"], True),
        (["sgr"], True),
        (["infopro", "--model", "resnet8"], True),
        (["bwbpf"], False),
        (["lg-fg", "--model", "local-mixer"], False),
        (["anp", "--model", "rnn-last"], False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_an_objective_does_besides_is_said_to_be_left_out(
    options: list[str], counted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--data", "digits", "--stages", "2", "--device", "meta", "--json"]
    assert cli.run(["plan", *wanted, "--objective", *options]) == 0
    note = json.loads(capsys.readouterr().out)["note"]
    said = f"timed as for --objective greedy; what {options[0]} does besides"
    assert note is None if counted else said in note


def test_training_with_a_measured_cut_writes_it_down(tmp_path: Path) -> None:
    """Rank 0 measures, all ranks cut alike, and later commands find the same cut."""
    out = tmp_path / "run"
    arguments = ["train", "--model", "resnet20", "--balance", "time", "--max-steps", "2"]
    run_ranks(tmp_path / "log", [*arguments, "--objective", "greedy", "--out", str(out)], 2)
    options = tomllib.loads((out / "config.toml").read_text())
    assert options["cut"].count(",") == 2
    assert cli.run(["evaluate", str(out)]) == 0
    assert cli.run(["export", str(out), "--to", str(tmp_path / "m.pt")]) == 0


def test_a_users_cut_decides_the_number_of_stages(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--cut", "block2", "--max-steps", "2", "--plain", "--out", str(out)]
    assert cli.run(arguments) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["stages"]) == 2


@pytest.mark.slow
def test_pipelines_over_other_numbers_of_ranks_are_simulated_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    arguments = ["plan", "--model", "resnet20", "--device", "meta", "--ranks", "16"]
    assert cli.run([*arguments, "--micro-batches", "4", "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "simulated over 16 ranks, 12.5GB/s and 20us between neighbours, 4 micro-batches" in said
    assert "taken to be cut into equal parts" in said
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert cli.run([*arguments, "--json"]) == 0
    simulation = json.loads(capsys.readouterr().out)["simulation"]
    names = [outcome["schedule"] for outcome in simulation["outcomes"]]
    assert names == ["pipelocal", "GPipe", "1F1B", "ZB-H1"]
    own, *others = simulation["outcomes"]
    assert all(own["utilisation"] > other["utilisation"] for other in others)


def test_without_matplotlib_a_plot_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.run(["plan", "--plot", str(tmp_path / "plot.png")]) == cli.USER_ERROR
    assert "pip install 'pipelocal[plot]'" in capsys.readouterr().err


def test_a_model_that_cannot_reconcile_is_planned_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fused attention cannot be differentiated twice, as exact reconciliation wants it."""
    arguments = ["plan", "--model", "gpt", "--head", "linear", "--device", "cpu", "--repeats", "1"]
    assert cli.run([*arguments, "--objective", "sgr", "--reconcile", "exact"]) == 0
    said = capsys.readouterr().out
    assert "planned for --objective greedy: unit 'block1' cannot be differentiated twice" in said
    assert "the bottleneck" in said


def test_a_unit_that_looks_at_values_wants_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    model = f"{stateful_models.__name__}:by_values"
    arguments = ["plan", "--model", model, "--stages", "2", "--objective", "greedy"]
    arguments += ["--input-shape", "1,8,8", "--classes", "10", "--device"]
    assert cli.run([*arguments, "meta"]) == cli.USER_ERROR
    assert "unit 'a' looks at values, of which --device meta has none" in capsys.readouterr().err
    assert cli.run([*arguments, "cpu"]) == 0


META = ["plan", "--model", "resnet20", "--device", "meta", "--objective", "greedy"]
LINEAR = [*META, "--head", "linear"]


def test_replicas_set_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    """A number for each stage: to the cut, the second device is twice as fast."""
    arguments = [*LINEAR, "--stages", "3", "--batch-size", "64", "--json"]
    assert cli.run(arguments) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [stage["replicas"] for stage in alone["stages"]] == [1, 1, 1]
    assert cli.run([*arguments, "--replicas", "1,2,1"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["replicas"] for stage in plan["stages"]] == [1, 2, 1]
    every = [stage["every_seconds"] for stage in plan["stages"]]
    assert every == [stage["seconds"] / stage["replicas"] for stage in plan["stages"]]
    assert every[plan["bottleneck"] - 1] == max(every)
    assert plan["samples_per_second"] == pytest.approx(64 / max(every))
    assert plan["samples_per_second"] > 1.2 * alone["samples_per_second"]
    assert plan["replication"]["ranks"] == 4
    assert plan["replication"]["left_over"] == 0
    assert plan["replication"]["batches_an_update"] == 2
    assert plan["replication"]["crossing_bytes"] == 0
    assert plan["simulation"] is None


def test_replicas_are_chosen_for_the_ranks_and_dealt_to_the_nodes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*LINEAR, "--cut", "2,5,3", "--batch-size", "64", "--replicas", "auto"]
    arguments += ["--ranks", "8", "--nodes", "2"]
    assert cli.run([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    replication, replicas = plan["replication"], [stage["replicas"] for stage in plan["stages"]]
    assert replicas == [2, 4, 2]
    assert (replication["ranks"], replication["batches_an_update"]) == (8, 4)
    seats = [seat for node in replication["nodes"] for seat in node["ranks"]]
    assert [seat["rank"] for seat in seats] == list(range(8))
    assert seats[0] == {"rank": 0, "stage": 1, "replica": 0}
    assert [len(node["ranks"]) for node in replication["nodes"]] == [4, 4]
    # Stage 2 is on both nodes: half of what it takes and passes on goes over, and two links of its ring.
    first, second, _ = plan["stages"]
    edges = first["sent_bytes"] + second["sent_bytes"]
    ring = 2 * 3 / 4 * 4 * second["parameters"] / 4
    assert replication["crossing_bytes"] == pytest.approx(edges / 2 + 2 * ring)
    assert plan["simulation"]["ranks"] == 8
    assert cli.run(arguments) == 0
    said = capsys.readouterr().out
    assert "8 ranks; 4 batch(es) an update" in said
    assert "0: 1.0  1: 1.1  2: 2.0  3: 2.1" in said
    assert "between nodes: " in said
    assert "the simulation has one rank a stage, without replicas" in said


def test_heads_of_stages_and_other_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines are what a plan with that budget says."""

    def plan(*options: str) -> dict[str, Any]:
        assert cli.run([*META, "--stages", "4", "--head", "auto", *options, "--json"]) == 0
        made: dict[str, Any] = json.loads(capsys.readouterr().out)
        return made

    now = plan("--head-budget", "0.2")
    heads = [stage["head"] for stage in now["stages"]]
    assert heads == ["twin=3@2", "twin=1", "twin=1", None]
    assert [(each["larger"], each["budget"]) for each in now["budgets"]] == [
        (False, 0.11),
        (True, 0.24),
    ]
    for other in now["budgets"]:
        there = plan("--head-budget", str(other["budget"]))
        slowest = there["stages"][there["bottleneck"] - 1]
        assert other["seconds"] == pytest.approx(slowest["every_seconds"])
        assert other["cut"] == there["cut"]
        assert [*other["heads"], None] == [stage["head"] for stage in there["stages"]]
        assert other["heads"] != heads[:-1]
    assert cli.run([*META, "--head", "auto", "--head-budget", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "with a smaller --head-budget 0.11: heads " in said
    assert "with a larger --head-budget 0.24: heads twin=2, twin=1 (2); slow" in said


def test_ranks_left_over_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ones, of the last node."""
    monkeypatch.setattr("pipelocal.plan.replicas.choose_replicas", lambda *_: [2, 2])
    arguments = [*LINEAR, "--stages", "2", "--replicas", "auto", "--ranks", "6", "--nodes", "2"]
    assert cli.run(arguments) == 0
    assert "4 ranks; 2 left over; 2 batch(es) an update" in capsys.readouterr().out
    assert cli.run([*arguments, "--json"]) == 0
    replication = json.loads(capsys.readouterr().out)["replication"]
    assert replication["left_over"] == 2
    assert [len(node["ranks"]) for node in replication["nodes"]] == [3, 1]


def test_nodes_without_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*LINEAR, "--stages", "4", "--nodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "0: 1  1: 2" in said
    assert "an update" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "auto"], "--replicas auto: say how many ranks there are, with --ranks"),
        (
            ["--replicas", "auto", "--ranks", "3"],
            "--ranks 3: with --replicas auto each of the 4 stag",
        ),
        (["--replicas", "1,2"], "--replicas 1,2: give auto, one whole number from 1 to 4096"),
        (["--replicas", "none"], "--replicas none: give auto, one whole number"),
        (["--replicas", "2000"], "--replicas 2000: these are 8000 ranks; plan for at most 4096"),
        (["--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--nodes", "3"], "--nodes 3: 4 rank(s) cannot be the same number on each"),
        (
            ["--replicas", "auto", "--ranks", "8", "--nodes", "3"],
            "a number of nodes that divides 8",
        ),
    ],
)
def test_bad_replicas_end_in_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*META, *options]) == cli.USER_ERROR
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_what_crosses_a_cut_beside_the_main_tensor_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model of tokens and a mask, planned without data."""
    model = f"{of_several_tensors.__file__}:encoder"
    options = ["--input-shape", "9", "--classes", "5", "--cut", "layers.1", "--device", "meta"]
    assert cli.run(["plan", "--model", model, *options]) == 0
    assert (
        "cut after layers.0: layers.0 [9, 8], attention_mask [9] int64 (input): 360 B a row\n"
        in capsys.readouterr().out
    )


def test_a_model_of_several_inputs_wants_data_that_have_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = f"{of_several_tensors.__file__}:encoder"
    assert cli.run(["plan", "--model", model, "--data", "text16"]) == cli.USER_ERROR
    assert (
        "the model takes ids [16] int64 and attention_mask [16] int64, but beside the first a sample of "
        "the data holds nothing: let the data set return ((ids, attention_mask), target)"
        in capsys.readouterr().err
    )
