"""Which options go together, as the documentation says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.errors import UserError
from pipelocal.objective import OBJECTIVES

METHODS = Path(__file__).parents[2] / "docs" / "methods"


def works(**options: Any) -> bool:
    try:
        validate(TrainConfig(**options))
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("option", "page", "given"),
    [
        ("--head-loss supcon", "supcon.md", {"head_loss": "supcon"}),
        ("--transport-penalty", "transport-penalty.md", {"transport_penalty": 1.0}),
    ],
)
def test_the_documentation_names_the_objectives(
    option: str, page: str, given: dict[str, Any]
) -> None:
    """All of those beside which an option is taken, in the table of methods and on its own page."""
    whole: dict[str, dict[str, Any]] = {"sgr": {"reconcile_fraction": 1.0}}
    taken = {name for name in OBJECTIVES if works(objective=name, **whole.get(name, {}), **given)}
    (row,) = (
        line
        for line in (METHODS / "README.md").read_text().splitlines()
        if line.startswith("|") and option in line.split("|")[1]
    )
    (sentence,) = re.findall(r"It goes with\s([^.]*)", (METHODS / page).read_text())
    for text in (row.split("|")[2], sentence):
        assert set(re.findall(r"`([a-z-]+)`", text)) == taken
