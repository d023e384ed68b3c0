"""``python -m pipelocal`` is the same as ``pipelocal``."""

from pipelocal.cli import main

if __name__ == "__main__":
    main()
