"""What the tests of views show: rows, progress, and a clock that they move."""

import io

from pipelocal.telemetry.progress import Progress, StageRow

UNMEASURED = StageRow(stage=2, rank=1, units="block2..head")
MEASURED = StageRow(
    stage=1,
    rank=0,
    units="stem..block1",
    step=120,
    loss=0.3123,
    metric=0.912,
    eval_metric=0.885,
    samples_per_second=3211.4,
    busy_fraction=0.5,
    peak_memory_bytes=1536 * 1024**2,
)
ROWS = (MEASURED, UNMEASURED)


def progress(
    step: int = 120, *, epoch: int = 2, phase: str = "train", elapsed_s: float = 12.0
) -> Progress:
    return Progress(
        step=step, total_steps=240, epoch=epoch, epochs=10, phase=phase, elapsed_s=elapsed_s
    )


class FakeClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True
