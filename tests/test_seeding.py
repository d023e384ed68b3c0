"""Seeds depend on what they are for, and on nothing else."""

import itertools
import subprocess
import sys

import pytest
import torch

from pipelocal.seeding import derive_seed, reseed, seeded


def test_fixed_for_ever() -> None:
    """Another value here means that no run of an older version can be repeated."""
    assert derive_seed(0, "unit", "block1") == 8805726042894373446


def test_same_in_another_process() -> None:
    """No built-in hash, which differs from process to process."""
    code = "from pipelocal.seeding import derive_seed; print(derive_seed(7, 'step', 2, 9))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(out.stdout) == derive_seed(7, "step", 2, 9)


def test_purposes_and_seeds_never_meet() -> None:
    paths = [
        (seed, what, stage, step)
        for seed, what, stage, step in itertools.product(
            range(8), ("step", "head"), range(1, 12), range(40)
        )
    ]
    seeds = {derive_seed(seed, what, stage, step) for seed, what, stage, step in paths}
    assert len(seeds) == len(paths)
    assert derive_seed(0, "step", 1, 12) != derive_seed(0, "step", 11, 2)
    assert derive_seed(1, 2) != derive_seed(12)


def test_range_is_what_torch_and_numpy_take() -> None:
    seeds = [derive_seed(i) for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61  # the upper bits are used


def test_seeded_restores_the_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded(0, "a"):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(0, "a"):
        assert torch.equal(torch.rand(3), inside)
    with seeded(0, "b"):
        assert not torch.equal(torch.rand(3), inside)


def test_seeded_restores_the_generator_after_an_error() -> None:
    def fail() -> None:
        with seeded(0, "a"):
            torch.rand(3)
            raise ZeroDivisionError

    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_reseed_draws_what_manual_seed_draws() -> None:
    drawn = []
    for seed_all in (torch.manual_seed, reseed):
        with torch.random.fork_rng(devices=[]):
            seed_all(2**62 + 3)
            drawn.append(torch.rand(5))
    assert torch.equal(*drawn)
