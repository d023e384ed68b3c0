"""Cuts as users write them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import Chain, Unit, build_chain
from pipelocal.partition import Cut, from_names, from_text, names_of, other_reading, to_text

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
        (
            "classifier",
            "'classifier' is the classifier, which is part of the last stage; the units that a",
        ),
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


def _called(*names: str) -> Chain:
    units = [Unit(name=name, build=nn.Identity) for name in names]
    return Chain(
        units,
        classifier=Unit(name="the classifier", build=nn.Identity),
        input_shape=(3,),
        classes=3,
    )


def test_a_backslash_takes_a_comma_as_it_is() -> None:
    chain = _called("3x3,a", "3x3,b", "5x5")
    assert from_text(chain, r"3x3\,b, 5x5") == [Cut(start=k, stop=k + 1) for k in range(3)]
    with pytest.raises(UserError, match=r"no unit '3x3'; its units are 3x3\\,a, 3x3\\,b, 5x5"):
        from_text(chain, "3x3,b")


NAMES = st.lists(
    st.text(alphabet=", \\ab1\"'#\u3000\U0001f600", min_size=1, max_size=4),
    min_size=1,
    unique=True,
)


@given(NAMES, st.data())
def test_any_names_go_there_and_back(names: list[str], data: st.DataObject) -> None:
    chain = _called(*names)
    starts = sorted(data.draw(st.sets(st.integers(1, len(names) - 1)))) if len(names) > 1 else []
    bounds = [0, *starts, len(names)]
    cuts = [Cut(start=a, stop=b) for a, b in pairwise(bounds)]
    assert from_text(chain, to_text(chain, cuts)) == cuts
    assert from_names(chain, names_of(chain, cuts), what="it") == cuts


NUMBERED = _called("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("text", "starts", "other"),
    [
        ("1,3", [0, 1, 3], "in 3 stages; for stages of 1, 3 units give --cut 1"),
        ("2,2", [0, 2], None),  # no names, for the second does not come after the first
        ("3,1", [0, 3], None),
        ("1,1,2", [0, 1, 2], None),
        ("2", [0, 2], None),
        ("2,3", [0, 2, 3], None),
        ("4", [0], None),
    ],
)
def test_numbers_that_are_names(text: str, starts: list[int], other: str | None) -> None:
    """They are names if they can be, and it is told if they could be numbers of units as well."""
    assert [cut.start for cut in from_text(NUMBERED, text)] == starts
    said = other_reading(NUMBERED, text)
    assert said is None if other is None else other in str(said)
