"""What is said before there is anything to show."""

import io
import subprocess
import sys

from pipelocal.telemetry.setting_up import SettingUp
from tests.telemetry.shown import FakeClock


def test_the_first_line_at_once_and_others_only_after_a_while() -> None:
    stream, clock = io.StringIO(), FakeClock()
    setting_up = SettingUp(stream, clock=clock)
    for now_s, what in [(0.0, "model"), (1.0, "data"), (2.5, "stages"), (3.0, "ranks")]:
        clock.now_s = now_s
        setting_up.now(what)
    assert stream.getvalue() == "model ...\nstages ...\n"


def test_the_command_line_speaks_before_pytorch_is_loaded() -> None:
    program = (
        "import runpy, sys; sys.modules['torch'] = None; "  # loading it fails
        "sys.argv[1:] = ['train']; runpy.run_module('pipelocal', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "loading PyTorch ...\n"
    assert "torch" in done.stderr
