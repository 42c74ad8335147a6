"""Freed memory is used again, in a process of its own: what malloc was told can't be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

FAULTS = """
from resource import RUSAGE_SELF, getrusage
from aid.sd.model.allocation import keep_freed_memory
if {asked}:
    keep_freed_memory()
bytearray(64 << 20)
before = getrusage(RUSAGE_SELF).ru_minflt
for _ in range(4):
    bytearray(64 << 20)
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


def faults(asked: bool, **environment: str) -> int:
    """How many pages the system zeroes while 64 MB are taken and freed four times."""
    code = FAULTS.format(asked=asked)
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults(asked=True) < 16
    assert faults(asked=False) > 100


def test_a_choice_of_ones_own_stays() -> None:
    assert faults(asked=True, MALLOC_MMAP_THRESHOLD_="1000000") > 100
