"""Benchmarks take minutes and run outside the tests; what they import from AID is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_every_benchmark_can_begin() -> None:
    names = [path.stem for path in sorted(FOLDER.glob("*.py"))]
    assert len(names) > 10
    done = subprocess.run(
        [sys.executable, "-c", "".join(f"import {name}\n" for name in names)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-2000:]
