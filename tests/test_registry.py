"""Names, and what a user reads who mistypes one."""

from collections.abc import Callable

import pytest

from pipelocal.errors import UserError
from pipelocal.registry import Registry


def _colours() -> Registry[int]:
    colours: Registry[int] = Registry("colour")
    for number, name in enumerate(("red", "green", "blue")):
        colours.register(name)(number)
    return colours


def test_get_iterate_and_ask() -> None:
    colours = _colours()
    assert colours.get("green") == 1
    assert [*colours] == ["red", "green", "blue"]
    assert "blue" in colours
    assert "bleu" not in colours
    assert 3 not in colours


def test_decorator_gives_back_what_it_registers() -> None:
    functions: Registry[Callable[[], int]] = Registry("function")

    @functions.register("one")
    @functions.register("uno")
    def one() -> int:
        return 1

    assert one() == 1
    assert functions.get("one") is functions.get("uno") is one


def test_unknown_name_with_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        _colours().get("gren")
    assert str(caught.value) == (
        "unknown colour 'gren': choose one of red, green, blue; did you mean 'green'?"
    )
    assert caught.value.__suppress_context__  # a KeyError tells the user nothing


def test_unknown_name_without_one() -> None:
    with pytest.raises(UserError) as caught:
        _colours().get("xyz")
    assert str(caught.value) == "unknown colour 'xyz': choose one of red, green, blue"


def test_name_given_twice() -> None:
    colours = _colours()
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        colours.register("red")(9)
    assert colours.get("red") == 0
