"""``python -m pipelocal`` is the same as ``pipelocal``."""

import os
import sys
from typing import NoReturn

from pipelocal.system.streams import for_progress
from pipelocal.telemetry.setting_up import SettingUp

HELP = {"-h", "--help", "--help-all"}


def main() -> NoReturn:
    """Run the command line, after a first sign of life: loading PyTorch takes seconds."""
    if (
        sys.argv[1:2] == ["train"]
        and not HELP & set(sys.argv)
        and os.environ.get("RANK", "0") == "0"
    ):
        SettingUp(for_progress(sys.stdout)).now("loading PyTorch")
    from pipelocal.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
