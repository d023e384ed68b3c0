"""Packed bits and ternaries: what comes back, and in how many bytes."""

from __future__ import annotations

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
