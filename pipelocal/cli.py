"""The command line: ``pipelocal train | evaluate | export | plan | report | compare | ...``.

::

    pipelocal train --stages 4 --out runs/one
    torchrun --standalone --nproc-per-node 4 -m pipelocal train --stages 4 --out runs/first
    pipelocal evaluate runs/first
    pipelocal export runs/first --to model.pt
    pipelocal plan --model resnet50 --stages 4
    pipelocal report runs/first
    pipelocal compare runs/first runs/second
    pipelocal timeline runs/first
    torchrun --nproc-per-node 4 -m pipelocal doctor --out runs
    pipelocal launch slurm.sh > slurm.sh
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pipelocal.config import (
    CompareConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    LaunchConfig,
    PlanConfig,
    ReportConfig,
    TimelineConfig,
    TrainConfig,
)
from pipelocal.config.command_line import AnyConfig, parse
from pipelocal.errors import Interrupted, Passing, PipelocalError, Refused, Terminated, UserError
from pipelocal.ranks.launcher import (
    end_job,
    has_other_nodes,
    speaks_for_node,
    tell_launcher,
    under_torchrun,
    world_size,
)
from pipelocal.system.signals import end_on_signals
from pipelocal.system.streams import (
    fill_closed_streams,
    flush_streams,
    for_progress,
    result_wanted,
    say,
)
from pipelocal.system.strict_json import to_json

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130

TELLING_S = 20.0
"""How long a rank that cannot read its options tries to meet the others, in order to tell them."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    fill_closed_streams()
    end_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a name that the terminal cannot show is no failure
    try:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
    except Terminated as error:  # once more, while it was being told why this process ends
        code = 128 + error.number
    flush_streams()
    if code:
        # Transfers with a lost rank cannot be called back, and would keep the process alive. And where a
        # signal came in the middle of a batch, taking torch's threads down may abort, with another code.
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command; its exit code, with one line on standard error if it is not 0."""
    if arguments == ["--version"]:
        say_version()
        return 0
    try:
        try:
            command = parse(arguments, options_of=_options_of, quiet=not speaks_for_node())
        except (SystemExit, UserError) as error:
            if not isinstance(error, SystemExit) or error.code:  # not --help
                _tell_unreadable(arguments)
            if isinstance(error, SystemExit) and error.code:
                end_job()
            raise
        try:
            _dispatch(command)
        except SystemExit as error:  # from the user's own model; tyro's comes from parsing
            raise PipelocalError(f"the model ended the program (exit code {error.code})") from error
    except Passing as error:
        return _say("error", error, USER_ERROR)
    except UserError as error:
        _say("error", error, USER_ERROR)
        end_job()
        return USER_ERROR
    except Refused as error:
        _say("stopped", error, FAILURE)
        end_job()
        return FAILURE
    except Interrupted as error:
        return _say("stopped", error, FAILURE)
    except Terminated as error:
        return _say("stopped", error, 128 + error.number)
    except KeyboardInterrupt:
        return _say("stopped", "interrupted by the user", INTERRUPTED)
    except PipelocalError as error:
        return _say("error", error, FAILURE)
    except BrokenPipeError:
        return FAILURE  # whoever read the output has left, and wants to hear no more
    except Exception as error:
        if os.environ.get("PIPELOCAL_TRACEBACK"):
            raise
        from pipelocal.references import told

        what = f"{told(error)} (PIPELOCAL_TRACEBACK=1 shows where)"
        return _say("error", what, FAILURE)
    return 0


def say_version() -> None:
    """Print the version of pipelocal, and of what computes."""
    from pipelocal.checkpoint.description import versions

    found = versions()
    rest = ", ".join(f"{name} {version}" for name, version in found.items() if name != "pipelocal")
    print(f"pipelocal {found['pipelocal']} ({rest})")


def _tell_unreadable(arguments: list[str]) -> None:
    """Have ranks on other nodes, whose options may be others, not wait for one that is not to come."""
    if arguments[:1] not in (["train"], ["doctor"]) or not has_other_nodes():
        return
    from pipelocal.ranks.control import ControlPlane
    from pipelocal.ranks.world import World

    with suppress(PipelocalError):
        control = ControlPlane(World.from_environment(start_timeout_s=TELLING_S))
        control.fail(UserError("its options cannot be read: its own output says why"))
        control.stop_watching()


def _options_of(run: str) -> TrainConfig:
    from pipelocal.config.saved import options_to_go_on_with

    return options_to_go_on_with(run)


def _dispatch(command: AnyConfig) -> None:
    if isinstance(command, TrainConfig):
        from pipelocal.config.training import train

        train(command)
        return
    if isinstance(command, DoctorConfig):
        from pipelocal.doctor.command import doctor

        doctor(command, sys.stdout)
        return
    if under_torchrun() and _rank() != "0":
        return  # only training and its preparation need ranks
    if isinstance(command, PlanConfig):
        from pipelocal.plan.plan import plan
        from pipelocal.plan.view import print_plan

        result_of_plan = plan(command)
        with result_wanted():
            if command.json:
                print(to_json(result_of_plan.to_json(), indent=2))
            else:
                print_plan(result_of_plan, sys.stdout)
        return
    if isinstance(command, TimelineConfig):
        _timeline(command)
        return
    if isinstance(command, ReportConfig):
        from pipelocal.report.report import report

        for_progress(sys.stdout).write(f"{report(command)}\n")  # the result is the file
        return
    if isinstance(command, CompareConfig):
        _compare(command)
        return
    if isinstance(command, LaunchConfig):
        _launch(command)
        return
    if isinstance(command, ExportConfig):
        from pipelocal.results.export import export

        for_progress(sys.stdout).write(f"{export(command)}\n")  # the result is the file
        return
    from pipelocal.results.evaluate import evaluate

    result = evaluate(command)
    with result_wanted():
        _print_figures(result, command)


def _print_figures(result: dict[str, Any], command: EvaluateConfig) -> None:
    from pipelocal.run.summary import known

    if command.json:
        print(to_json(result, indent=2))
        return
    metrics = [name for name in result["eval"] if name != "loss"]

    def shown(figures: dict[str, float | None]) -> str:
        return "  ".join(f"{name} {known(figures.get(name))}" for name in metrics)

    for stage in result["stages"]:
        print(f"stage {stage['stage']:>3}  {stage['units']:<24} {shown(stage)}")
    print(f"ensemble of heads                   {shown(result['ensemble'] or {})}")
    if result["no_ensemble"] is not None:
        print(result["no_ensemble"])


def _compare(command: CompareConfig) -> None:
    from pipelocal.report.comparison import compare
    from pipelocal.report.comparison_view import print_comparison, write_comparison

    comparison = compare(command.runs)
    with result_wanted():
        if command.json:
            print(to_json(comparison.to_json(), indent=2))
        else:
            print_comparison(comparison, sys.stdout)
    if command.html is not None:
        write_comparison(comparison, Path(command.html))
        if not command.json:
            for_progress(sys.stdout).write(f"curves: {command.html}\n")


def _launch(command: LaunchConfig) -> None:
    from pipelocal.system.recipes import recipe, recipes

    text = None if command.recipe is None else recipe(command.recipe)
    with result_wanted():
        if text is not None:
            sys.stdout.write(text)
            return
        for name, what in recipes().items():
            print(f"{name:<18} {what}")
        print("pipelocal launch NAME prints one, to be kept and changed")


def _timeline(command: TimelineConfig) -> None:
    from pipelocal.checkpoint.run_folder import RunFolder
    from pipelocal.telemetry.pyplot import check_plot
    from pipelocal.telemetry.timeline import Timeline
    from pipelocal.telemetry.timeline_view import draw_timeline, print_timeline

    folder = RunFolder.open(command.run).path
    path = folder / "timeline.png" if command.to is None else Path(command.to)
    timeline = Timeline.of(folder)
    with result_wanted():
        print_timeline(timeline, sys.stdout)
    check_plot("--to", str(path))
    draw_timeline(timeline, path)
    for_progress(sys.stdout).write(f"picture: {path}\n")


def _say(what: str, error: object, code: int) -> int:
    text = " ".join(str(error).split())
    rank = f" (rank {_rank()})" if world_size() > 1 else ""
    line = f"pipelocal{rank}: {what}: {text}"
    say(line)
    tell_launcher(line, first=what == "error")
    return code


def _rank() -> str:
    return os.environ.get("RANK", "0")
