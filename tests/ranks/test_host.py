"""What a process does with the memory that its tensors free."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from pipelocal.ranks.host import keep_freed_memory

kept = sys.argv[1] == "keep" and keep_freed_memory()

def batch():
    torch.ones(2**24)  # 64 MiB, freed at once

for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str, **environment: str) -> tuple[str, int]:
    """Whether memory was kept, and the page faults of ten batches of 64 MiB."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, mode]
    out = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    ).stdout
    kept, faults = out.split()
    return kept, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    kept, faults = page_faults("keep")
    assert kept == "True"
    assert faults < 100
    assert page_faults("default")[1] > 300  # 16384 pages a batch, or 32 huge ones


def test_a_user_who_tunes_malloc_keeps_his_settings() -> None:
    assert page_faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
