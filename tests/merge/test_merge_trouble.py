"""Merges that can't end well: full disks, files that change. Nothing old is harmed. And whose a file is."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import aid.merge.streaming.stream as stream
from aid.errors import FileError
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings

HALF = MergeSettings(primary="a", weights={"b": {"BASE": 0.5, "IN": 0.5, "M00": 0.5, "OUT": 0.5}})
RUN = "from aid.cli import main; main()"
LARGEST = 1 << 20  # bytes of a file, where the system allows no more


@pytest.fixture(scope="module")
def models(lively_checkpoint: Path, tiny_checkpoint: Path) -> dict[str, Path]:
    return {"a": lively_checkpoint, "b": tiny_checkpoint}


def words(models: dict[str, Path], out: Path, share: float) -> list[str]:
    given = [word for name, path in models.items() for word in ("--models", f"{name}={path}")]
    weight = f"weights.b={{BASE = {share}, IN = {share}}}"
    return [sys.executable, "-c", RUN, "merge", *given, "--primary", "a", "--set", weight, "--out", str(out)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_that_may_not_grow_is_told_and_the_old_result_stays(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """The room is asked for at the start; the system's own limit on files stands in for a small disk."""
    out = tmp_path / "merged"
    subprocess.run(words(models, out, 0.25), check=True, capture_output=True)
    before = contents(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))

    done = subprocess.run(words(models, out, 0.75), capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "could not be written (File too large)" in done.stderr and "Free some disk space" in done.stderr
    assert "Traceback" not in done.stderr and contents(tmp_path) == before


def test_a_disk_that_is_full_in_mid_write_harms_nothing(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where room could not be reserved, as on some network disks."""
    inputs = MergeInputs(models=models)
    out = merge(MergeSettings(primary="a"), inputs, tmp_path / "merged")
    before, written = contents(tmp_path), 0

    def pwrite(file: int, values: memoryview, at: int) -> int:
        nonlocal written
        written += 1
        if written > 100:
            raise OSError(28, os.strerror(28))
        return whole(file, values, at)

    whole = os.pwrite
    monkeypatch.setattr(stream.os, "pwrite", pwrite)
    monkeypatch.setattr(stream, "STRETCH_BYTES", 4 << 10)
    with pytest.raises(FileError, match=r"merged could not be written \(No space left on device\)"):
        merge(HALF, inputs, out)
    assert written > 100 and contents(tmp_path) == before
    monkeypatch.undo()
    merge(HALF, inputs, out)
    assert contents(tmp_path)["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_is_whose_the_umask_says(
    models: dict[str, Path], tmp_path: Path, mask: int, mode: int
) -> None:
    old = os.umask(mask)
    try:
        out = merge(HALF, MergeInputs(models=models), tmp_path / "merged")
    finally:
        os.umask(old)
    assert (out / "model.safetensors").stat().st_mode & 0o777 == mode


def test_a_parent_that_is_cut_short_meanwhile_is_told(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "b.safetensors"
    copy.write_bytes(models["b"].read_bytes())
    plan = stream.write_stream

    def cut(*given: object) -> str:
        os.truncate(copy, copy.stat().st_size // 2)
        return plan(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("aid.merge.run.write_stream", cut)
    with pytest.raises(FileError, match=r"b\.safetensors ends inside .*stays as it is while it is read"):
        merge(HALF, MergeInputs(models={**models, "b": copy}), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]
