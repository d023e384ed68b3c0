"""Cuts as users write them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.errors import UserError
from pipelocal.models import build_chain
from pipelocal.partition import Cut, from_text, to_text

CHAIN = build_chain("resnet20", input_shape=(3, 8, 8), classes=10, seed=0)  # stem, block1..9


def test_names_are_the_beginnings_of_stages() -> None:
    cuts = from_text(CHAIN, "block2, block7")
    assert cuts == [Cut(start=0, stop=2), Cut(start=2, stop=7), Cut(start=7, stop=10)]


def test_numbers_are_units_a_stage() -> None:
    assert from_text(CHAIN, "2,5,3") == from_text(CHAIN, "block2,block7")


def test_one_stage_needs_no_text() -> None:
    assert from_text(CHAIN, "") == [Cut(start=0, stop=10)]


@given(st.sets(st.integers(1, 9)))
def test_there_and_back(starts: set[int]) -> None:
    bounds = [0, *sorted(starts), 10]
    cuts = [Cut(start=a, stop=b) for a, b in pairwise(bounds)]
    assert from_text(CHAIN, to_text(CHAIN, cuts)) == cuts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("block12", "this model has no unit 'block12'; its units are stem, block1"),
        ("stem", "'stem' is the model's first unit"),
        ("block5,block2", "'block2' is named twice or does not come after 'block5'"),
        ("block5,block5", "'block5' is named twice"),
        ("5,0,5", "every stage needs at least one unit"),
        ("5,-1,6", "every stage needs at least one unit"),
        ("5,4", "adds up to 9 units, but this model has 10"),
        ("block2,", "this model has no unit ''"),
    ],
)
def test_bad_cuts_end_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        from_text(CHAIN, text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
