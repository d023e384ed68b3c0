"""Seeds that depend on what is seeded, never on which rank does it or when."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(0, "unit", "block1")``.

    A hash and not ``seed + k``: neighbouring purposes, and neighbouring seeds of the user, must
    not meet.
    """
    text = "/".join([str(seed), *map(str, path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def reseed(seed: int) -> None:
    """Seed torch's generators of the CPU and, where CUDA is in use, of its devices.

    As torch.manual_seed does, but fit for every batch: that one also goes through the back ends that
    are not in use, and takes down the call stack for one of them.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@contextmanager
def seeded(seed: int, *path: str | int) -> Iterator[None]:
    """Run a block under a derived seed and leave torch's CPU generator as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *path))
        yield
