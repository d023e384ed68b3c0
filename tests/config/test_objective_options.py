"""``--objective-options``: an objective's own options, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipelocal import Greedy, cli
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import objective_of
from pipelocal.config.toml_file import read_toml
from pipelocal.errors import UserError
from pipelocal.objective import Objective, Place, as_recipe
from pipelocal.objective.greedy import ForwardRecipe
from pipelocal.objective.options import described_options, options_from
from tests.objective.stages import place

OWN = """
from pipelocal import Greedy

class Scaled(Greedy):
    def __init__(self, place, factor: float = 1.0, both=False):
        self.factor, self.both = factor, both

fixed = Greedy()
"""


@dataclass(frozen=True, kw_only=True)
class Drawn(ForwardRecipe):
    """A recipe with an option of every type."""

    weight: float = 1.0
    steps: int | None = None
    target: Literal["image", "input"] = "image"
    label: str = "plain"
    twice: bool = False

    def for_stage(self, place: Place) -> Objective:
        del place
        return Greedy()


def test_texts_become_what_the_fields_are() -> None:
    texts = ["weight=2", "steps=3", "target=input", "label=none", "twice=true"]
    found = options_from(Drawn, texts, name="drawn")
    assert found == {"weight": 2.0, "steps": 3, "target": "input", "label": "none", "twice": True}
    assert isinstance(found["weight"], float)
    assert options_from(Drawn, ["steps=none"], name="drawn") == {"steps": None}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["wieght=2"], ["did you mean 'weight'", "target=image|input (image)"]),
        (["weight=much"], ["give weight=NUMBER"]),
        (["steps=1.5"], ["give steps=WHOLE-NUMBER|none"]),
        (["target=output"], ["give target=image|input"]),
        (["twice=yes"], ["give twice=true|false"]),
        (["twice"], ["give key=value"]),
        (["weight=1", "weight=2"], ["'weight' is given twice"]),
    ],
)
def test_what_does_not_fit_is_one_line(texts: Sequence[str], words: Sequence[str]) -> None:
    with pytest.raises(UserError) as caught:
        options_from(Drawn, texts, name="drawn")
    assert all(word in str(caught.value) for word in words), caught.value
    assert str(caught.value).startswith("--objective-options ")


def test_a_recipe_says_its_options() -> None:
    assert described_options(Drawn) == (
        "weight=NUMBER (1.0), steps=WHOLE-NUMBER|none (none), target=image|input (image), "
        "label=TEXT (plain), twice=true|false (false)"
    )


def test_a_class_of_ones_own_takes_them_beside_the_place(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    config = TrainConfig(
        objective=f"{tmp_path}/own.py:Scaled", objective_options=("factor=3", "both=true")
    )
    made = objective_of(config).for_stage(place(1))
    assert vars(made) == {"factor": 3.0, "both": True}


@pytest.mark.parametrize("objective", ["greedy", "sgr", "own.py:fixed"])
def test_an_objective_without_options_refuses_them(objective: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    config = TrainConfig(
        objective=objective.replace("own.py", f"{tmp_path}/own.py"), objective_options=("a=1",)
    )
    with pytest.raises(UserError, match="--objective-options a=1"):
        objective_of(config)


def test_a_class_of_recipes_stands_for_its_defaults() -> None:
    recipe = as_recipe(Drawn)
    assert recipe == Drawn()
    assert recipe.reconcile_every is None


@pytest.mark.parametrize(
    "text",
    [
        'objective_options = ["weight=2", "twice=true"]',
        "objective-options = { weight = 2, twice = true }",
        "[objective_options]\nweight = 2\ntwice = true",
    ],
)
def test_a_file_holds_them_as_list_or_table(text: str, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text)
    assert read_toml(str(path)) == {"objective_options": ("weight=2", "twice=true")}


def test_a_run_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    first, second = tmp_path / "first", tmp_path / "second"
    steps = ["train", "--threads", "1", "--max-steps"]
    own = ["--model", "mlp", "--data", "digits", "--stages", "2", "--head", "linear", "--objective"]
    own += [f"{tmp_path}/own.py:Scaled", "--objective-options", "factor=3", "both=true"]
    assert cli.run([*steps, "2", *own, "--out", str(first)]) == 0, capsys.readouterr().err
    assert cli.run([*steps, "4", "--resume", str(first), "--out", str(second)]) == 0
    for run in (first, second):
        text = (run / "config.toml").read_text()
        assert 'objective_options = ["factor=3", "both=true"]' in text
    other = ["--objective-options", "factor=4", "--out", str(tmp_path / "third")]
    assert cli.run([*steps, "6", "--resume", str(first), *other]) == 0
    assert "--objective-options (['factor=3', 'both=true'] there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "belongs_to"),
    [
        ({"objective": "greedy", "reconcile_weight": "0.5"}, "sgr"),
        ({"objective": "bp", "distance": "squared"}, "sgr"),
        ({"objective": "loco", "delta": "int8"}, "sgr"),
        ({"objective": "sgr", "guide_every": 4}, "pgl"),
    ],
)
def test_options_of_another_objective_did_nothing(options: dict[str, Any], belongs_to: str) -> None:
    """They were read by the objective that they belong to alone, and nobody looked whether that is it."""
    given = next(name for name in options if name != "objective")
    line = f"--{given.replace('_', '-')} .* is for --objective {belongs_to}, not {options['objective']}"
    with pytest.raises(UserError, match=line):
        validate(TrainConfig(**options))
    validate(TrainConfig(**{**options, "objective": belongs_to}))
