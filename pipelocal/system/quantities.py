"""Parses quantities as users write them."""

import re

from pipelocal.errors import UserError

BYTES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}

FLOPS = {"G": 1e9, "T": 1e12, "P": 1e15}

MOST_BYTES = 10**18
"""Largest number of bytes, also per second: an exabyte."""
MOST_SECONDS = 10**6
MOST_FLOPS = 1e24
MOST_WEIGHT = 1e6
SPEEDS = (1e-6, 1e6)
"""Least and greatest relative speed."""


def parse_bytes(option: str, text: str) -> int:
    """Parse bytes from text such as ``16GiB`` or ``500 MB``.

    Args:
        option: where the text comes from, for the error.
        text: a positive number and a unit.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in BYTES or float(match[1]) * BYTES[match[2]] < 1:
        raise UserError(
            f"{option} {text}: give a number above 0 with one of {', '.join(filter(None, BYTES))}, "
            f"such as 16GiB"
        )
    return int(_at_most(MOST_BYTES, float(match[1]) * BYTES[match[2]], option, text, "bytes"))


def parse_rate(option: str, text: str) -> float:
    """Parse bytes per second from text such as ``12.5GB/s``.

    Raises:
        UserError: it is none.
    """
    size = text.strip().removesuffix("/s")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", size)
    rate = 0.0 if match is None else float(match[1]) * BYTES.get(match[2], 0)
    if size == text.strip() or rate < 1:
        raise UserError(
            f"{option} {text}: give a number above 0 with one of "
            f"{', '.join(f'{unit}/s' for unit in BYTES if unit)}, such as 12.5GB/s"
        )
    return _at_most(MOST_BYTES, rate, option, text, "bytes a second")


def parse_time(option: str, text: str) -> float:
    """Parse seconds from text such as ``20us``; 0 is allowed.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s)\s*", text)
    if match is None:
        raise UserError(f"{option} {text}: give a number with us, ms or s, such as 20us")
    seconds = float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]
    return _at_most(MOST_SECONDS, seconds, option, text, "seconds")


def parse_flops(option: str, text: str) -> float:
    """Parse floating-point operations per second from text such as ``50TFLOPS``.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GTP])FLOPS\s*", text)
    flops = 0.0 if match is None else float(match[1]) * FLOPS[match[2]]
    if flops < 1:
        raise UserError(
            f"{option} {text}: give a number above 0 with GFLOPS, TFLOPS or PFLOPS, such as 50TFLOPS"
        )
    return _at_most(MOST_FLOPS, flops, option, text, "operations a second")


def parse_weights(option: str, text: str, count: int) -> list[float]:
    """Parse weights from text such as ``0.05`` (for all) or ``0.05,0.1``, one for each.

    Raises:
        UserError: they are not numbers of at least 0, or neither one number nor ``count``.
    """
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        weights = []
    sound = all(0 <= weight <= MOST_WEIGHT for weight in weights)
    if not sound or len(weights) not in (1, count) or not weights:
        raise UserError(
            f"{option} {text}: give one number from 0 to {MOST_WEIGHT:g}, or {count} with commas between "
            f"them, one for each stage but the first"
        )
    return weights * count if len(weights) == 1 else weights


def parse_speeds(option: str, text: str, stages: int) -> list[float]:
    """Parse relative speeds from text such as ``1,1,0.5``, one for each stage.

    Raises:
        UserError: they are not positive numbers, or not one per stage.
    """
    try:
        speeds = [float(word) for word in text.split(",")]
    except ValueError:
        speeds = []
    least, most = SPEEDS
    if len(speeds) != stages or not all(least <= speed <= most for speed in speeds):
        raise UserError(
            f"{option} {text}: give {stages} numbers above 0, {least:g} to {most:g}, one for each "
            f"stage, such as {','.join(['1'] * stages)}"
        )
    return speeds


def _at_most(most: float, value: float, option: str, text: str, what: str) -> float:
    if value > most:
        raise UserError(f"{option} {text}: give at most {most:g} {what}")
    return value
