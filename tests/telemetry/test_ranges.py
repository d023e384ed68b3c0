"""Under PyTorch's profiler actions are ranges with the names that a trace shows."""

import pytest
import torch
from torch.profiler import profile

from pipelocal.telemetry.actions import Recorder


def test_an_action_is_a_range_of_the_profiler() -> None:
    recorder = Recorder(trace=True)
    with recorder.begin("stage 2", "forward", 0):
        pass
    with profile() as profiler:
        with recorder.begin("stage 2", "forward", 1):
            torch.ones(3).exp()
        with pytest.raises(ZeroDivisionError), recorder.begin("stage 2", "head", 1):
            _ = 1 // 0
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["stage 2 forward"] == 1, "not of what was before"
    assert counts["stage 2 head"] == 1
    assert [action.batch for action in recorder.traced()] == [0, 1], "as without the profiler"
