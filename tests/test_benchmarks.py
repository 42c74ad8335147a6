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


def test_any_program_can_be_a_peer_of_merging(tmp_path: Path) -> None:
    (tmp_path / "sd1-F16-style.safetensors").write_bytes(b"a model")
    done = merging(
        "--job", f"{sys.executable} -c 'b\"x\" * (100 << 20)' && cp {{style}} {{out}}.copy", "slerp", tmp_path
    )
    assert (tmp_path / "peer.safetensors.copy").read_bytes() == b"a model"
    assert int(done.stderr.split("VmHWM:")[1].split()[0]) > 100 << 10  # of the program, in KiB


def test_a_peer_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    assert "expected loop, mecha or NAME=COMMAND" in merging("--peer", "meh").stderr
    assert "expected style, detail, out" in merging("--job", "cp {a} {out}", "slerp", tmp_path).stderr
    assert "left no" in merging("--job", "true", "slerp", tmp_path).stderr


def merging(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "merging.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
