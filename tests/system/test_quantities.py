"""Quantities as users write them."""

import pytest

from pipelocal.errors import UserError
from pipelocal.system.quantities import (
    parse_bytes,
    parse_flops,
    parse_rate,
    parse_speeds,
    parse_time,
)


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


def test_rates_operations_and_times() -> None:
    assert parse_rate("--bandwidth", "12.5GB/s") == 12.5e9
    assert parse_flops("--device-flops", "50TFLOPS") == 50e12
    assert parse_time("--latency", "20us") == pytest.approx(20e-6)
    assert parse_time("--latency", "1.5 ms") == pytest.approx(1.5e-3)
    assert parse_time("--latency", "0s") == 0.0


@pytest.mark.parametrize("text", ["", "us", "20", "-1us", "20 min", "1e3us", "20us/s"])
def test_no_times(text: str) -> None:
    with pytest.raises(UserError, match=r"^--latency .*such as 20us$"):
        parse_time("--latency", text)


@pytest.mark.parametrize("text", ["", "GB/s", "12GB", "0GB/s", "12Gbit/s", "12/s"])
def test_no_rates(text: str) -> None:
    with pytest.raises(UserError, match=r"^--bandwidth .*such as 12.5GB/s$"):
        parse_rate("--bandwidth", text)
