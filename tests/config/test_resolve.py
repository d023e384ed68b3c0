"""What the words of options become."""

from __future__ import annotations

import pytest

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import objective_of
from pipelocal.objective import SGR


@pytest.mark.parametrize(
    ("delta", "size"), [("sketch=64", 64), ("sketch", 256)], ids=["given", "by default"]
)
def test_the_size_of_a_sketch(delta: str, size: int) -> None:
    recipe = objective_of(TrainConfig(objective="sgr", delta=delta))
    assert isinstance(recipe, SGR)
    assert (recipe.delta, recipe.delta_size) == ("sketch", size)
