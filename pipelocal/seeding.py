"""Derives seeds that depend on what is seeded, never on the rank or the time.

Where torch's generators are seeded, so are those of Python's ``random`` and NumPy's ``np.random``, since a
user's unit may draw from any of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """Derive a 63-bit seed for one purpose, e.g. ``derive_seed(0, "unit", "block1")``.

    A hash and not ``seed + k``: neighbouring purposes, and neighbouring seeds of the user, must
    not meet.
    """
    text = "/".join([str(seed), *map(str, path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(seed: int) -> None:
    """Seed Python's and NumPy's generators, torch's of the CPU and, where CUDA is in use, of its devices.

    As torch.manual_seed does, but fit for every batch: that one also goes through the back ends that
    are not in use, and takes down the call stack for one of them.
    """
    reseed_host(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def reseed_host(seed: int) -> None:
    """Seed the same generators but for those of CUDA devices."""
    torch.default_generator.manual_seed(seed)
    _seed_others(seed)


@contextmanager
def host_generators_kept() -> Iterator[None]:
    """Leave the generators of :func:`reseed_host` as they were before the block."""
    state = torch.default_generator.get_state()
    try:
        with restored(other_generators()):
            yield
    finally:
        torch.default_generator.set_state(state)


@contextmanager
def undone() -> Iterator[None]:
    """Undo behind a block what a user's code in it may have set for all of torch and left so.

    That is gradients, the default dtype and device, and the number of threads, on which bits depend.
    """
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    device, threads = torch.get_default_device(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def seeded(seed: int, *path: str | int) -> Iterator[None]:
    """Run a block under a derived seed and leave all generators but CUDA's as they were before."""
    derived = derive_seed(seed, *path)
    with torch.random.fork_rng(devices=[]), restored(other_generators()):
        torch.manual_seed(derived)
        _seed_others(derived)
        yield


def other_generators() -> tuple[Any, Any]:
    """Return the states of Python's and NumPy's generators, which torch does not manage."""
    return random.getstate(), np.random.get_state()


def states_of_draws() -> tuple[object, ...]:
    """Return what differs once anything has drawn from a generator of the host."""
    # NumPy's text omits most of the state, but not the position, which changes with each draw.
    own, numpy = other_generators()
    return torch.default_generator.get_state().tolist(), own, str(numpy)


@contextmanager
def restored(states: tuple[Any, Any]) -> Iterator[None]:
    """Restore these states of Python's and NumPy's generators after a block."""
    try:
        yield
    finally:
        set_other_generators(states)


def _seed_others(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def set_other_generators(states: tuple[Any, Any]) -> None:
    """Set the states returned by :func:`other_generators`."""
    random.setstate(states[0])
    np.random.set_state(states[1])
