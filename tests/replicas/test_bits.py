"""Packed bits, ternaries and gaps: what comes back, and in how many bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.replicas.bits import (
    BITS_A_BYTE,
    TERNARIES_A_BYTE,
    pack_bits,
    pack_ternaries,
    packed_bytes,
    unpack_bits,
    unpack_ternaries,
)
from pipelocal.replicas.gaps import ESCAPE, expected_bytes, pack_gaps, unpack_gaps


@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back(bits: list[bool]) -> None:
    tensor = torch.tensor(bits, dtype=torch.bool)
    packed = pack_bits(tensor)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(len(bits), BITS_A_BYTE),) == ((len(bits) + 7) // 8,)
    back = unpack_bits(packed, len(bits))
    assert back.dtype == torch.bool
    assert back.tolist() == bits


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_ternaries_come_back(ternaries: list[int]) -> None:
    tensor = torch.tensor(ternaries, dtype=torch.int8)
    packed = pack_ternaries(tensor)
    assert packed.dtype == torch.uint8
    assert (
        packed.shape
        == (packed_bytes(len(ternaries), TERNARIES_A_BYTE),)
        == ((len(ternaries) + 3) // 4,)
    )
    back = unpack_ternaries(packed, len(ternaries))
    assert back.dtype == torch.int8
    assert back.tolist() == ternaries


def test_a_packed_row_may_be_part_of_another_tensor() -> None:
    """As a message's is, which begins with a scale."""
    bits = torch.arange(21) % 3 == 0
    message = torch.cat((torch.full((5,), 255, dtype=torch.uint8), pack_bits(bits)))
    assert torch.equal(unpack_bits(message[5:], 21), bits)


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from([-1, 1]))), st.integers(0, 400))
def test_gaps_come_back(kept: list[tuple[int, int]], behind: int) -> None:
    """At one byte for each that is kept, and one for each 127 in a gap before one."""
    ternaries = [number for gap, sign in kept for number in [0] * gap + [sign]] + [0] * behind
    tensor = torch.tensor(ternaries, dtype=torch.int8)
    packed = pack_gaps(tensor)
    assert packed.dtype == torch.uint8
    assert packed.numel() == sum(1 + gap // 127 for gap, _ in kept)
    assert packed.numel() <= expected_bytes(len(ternaries), len(kept) / max(len(ternaries), 1))
    longer = torch.cat((torch.zeros(3), packed, torch.full((5,), ESCAPE))).to(torch.uint8)
    for row in (packed, longer[3:]):
        back = unpack_gaps(row, len(ternaries))
        assert back.dtype == torch.int8
        assert back.tolist() == ternaries


@pytest.mark.parametrize(
    ("ternaries", "packed"),
    [
        ([], []),
        ([0], []),
        ([1], [0]),
        ([-1], [128]),
        ([0] * 1000, []),
        ([1, -1] * 500, [0, 128] * 500),
        ([-1] + [0] * 999, [128]),
        ([0] * 126 + [1], [126]),
        ([0] * 127 + [1], [127, 0]),
        ([0] * 128 + [-1], [127, 129]),
        ([0] * 253 + [1], [127, 126]),
        ([0] * 254 + [1], [127, 127, 0]),
        ([1] + [0] * 127 + [1] + [0] * 126 + [-1], [0, 127, 0, 254]),
    ],
)
def test_gaps_by_hand(ternaries: list[int], packed: list[int]) -> None:
    tensor = torch.tensor(ternaries, dtype=torch.int8)
    assert pack_gaps(tensor).tolist() == packed
    assert unpack_gaps(pack_gaps(tensor), len(ternaries)).tolist() == ternaries


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.1, 0.3, 1.0])
def test_gaps_of_many_coordinates_come_back(share: float) -> None:
    """In no more bytes than are expected, or hardly."""
    count = 300_000
    draws = torch.rand(count, generator=torch.Generator().manual_seed(0))
    ternaries = torch.where(draws < share / 3, -1, torch.where(draws < share, 1, 0))
    packed = pack_gaps(ternaries.to(torch.int8))
    assert packed.numel() < 1.02 * expected_bytes(count, share)
    assert torch.equal(unpack_gaps(packed, count), ternaries)
