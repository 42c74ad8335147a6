"""What may still be taken of the memory, by the machine's files and a container's."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from aid.core.memory import free_bytes

GB = 10**9


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal:       32000000 kB\nMemAvailable:   20000000 kB\n"}
SECOND = {
    "sys/fs/cgroup/memory.max": f"{16 * GB}\n",
    "sys/fs/cgroup/memory.current": f"{10 * GB}\n",
    "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {3 * GB}\nactive_file 7\n",
}
FIRST = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GB}",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GB}",
}
SLURM = {
    "proc/self/cgroup": "1:name=systemd:/x\n0::/slurm/job_7/step\n",
    "sys/fs/cgroup/slurm/memory.max": f"{6 * GB}",
    "sys/fs/cgroup/slurm/memory.current": f"{2 * GB}",
    "sys/fs/cgroup/slurm/job_7/step/memory.max": "max",
    "sys/fs/cgroup/slurm/job_7/step/memory.current": f"{GB}",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        (MACHINE, 20.48 * GB),
        (MACHINE | SECOND, 9 * GB),
        (MACHINE | SECOND | {"sys/fs/cgroup/memory.max": "max\n"}, 20.48 * GB),
        (MACHINE | FIRST, 0),
        (MACHINE | SLURM, 4 * GB),
        (MACHINE | {"proc/meminfo": "nonsense MemAvailable:"}, math.inf),
    ],
)
def test_the_least_of_machine_and_container(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    assert free_bytes(written(tmp_path, files)) == pytest.approx(expected)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_this_machine_has_some_and_no_more_than_it_has() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_bytes() < whole
