"""Quantities as users write them."""

import pytest

from pipelocal.errors import UserError
from pipelocal.units import parse_bytes, parse_speeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GiB", 2**34), ("500 MB", 500_000_000), ("1.5KiB", 1536), ("7", 7), (" 3B ", 3)],
)
def test_bytes(text: str, expected: int) -> None:
    assert parse_bytes("--memory-limit", text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0MiB", "1 XB", "1e3", "1GiB2"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(UserError, match=r"^--memory-limit .*such as 16GiB$"):
        parse_bytes("--memory-limit", text)


def test_speeds() -> None:
    assert parse_speeds("--device-speeds", "1, 1,0.5", 3) == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("text", ["", "1,1", "1,1,0", "1,1,-2", "1,1,x", "1,1,inf", "1,1,nan"])
def test_no_speeds(text: str) -> None:
    with pytest.raises(UserError, match=r"give 3 numbers above 0, .*such as 1,1,1$"):
        parse_speeds("--device-speeds", text, 3)
