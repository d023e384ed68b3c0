"""What answers to a roll call mean."""

import pytest

from pipelocal.ranks.who_hangs import describe


@pytest.mark.parametrize(
    ("answers", "size", "said"),
    [
        ({0: 1, 2: 1, 3: 2}, 4, "rank 1 does not answer: stopped, or cut off"),
        ({0: 1}, 3, "ranks 1, 2 do not answer: stopped, or cut off"),
        ({0: 1, 1: None, 2: 1}, 3, "all ranks answer, and rank 1 does not wait for another"),
        ({0: None, 1: None}, 2, "all ranks answer, and ranks 0, 1 do not wait for another"),
        ({0: 1, 1: 0}, 2, "all ranks answer, and wait for each other"),
    ],
)
def test_who_hangs(answers: dict[int, int | None], size: int, said: str) -> None:
    assert describe(answers, size) == said
