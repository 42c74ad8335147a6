"""Prepared by a Ray cluster of this machine, a dataset has the bytes that threads give it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aid.core.files import sha256_file
from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import SettingsError

SETTINGS = PrepareSettings(resolution_px=64, mirrored=True, latent_batch=3, more_resolutions_px=(128,))
BENCH = Workbench("cpu", threads=1)


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def inputs(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> PrepareInputs:
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in" / "alpha" / "broken.png").write_bytes(b"junk")
    return PrepareInputs(pictures={"in": tmp_path / "in"}, vae=tiny_checkpoint)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=80 << 20)
    yield ray
    ray.shutdown()


def test_a_cluster_gives_the_same_bytes_and_goes_on_with_them(
    cluster: Any, inputs: PrepareInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers were started in another folder than the one that paths are told from."""
    alone = prepare(SETTINGS, inputs, tmp_path / "alone", BENCH)
    monkeypatch.chdir(tmp_path)
    inputs = inputs.model_copy(update={"pictures": {"in": Path("in")}})
    spread = prepare(SETTINGS, inputs, Path("spread"), replace(BENCH, ray="auto"))
    assert files(spread) == files(alone)


def test_a_cluster_that_is_not_there_is_named(inputs: PrepareInputs, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        prepare(SETTINGS, inputs, tmp_path / "out", replace(BENCH, ray="127.0.0.1:1"))
    assert not (tmp_path / "out").exists()


def test_without_ray_the_command_is_named(
    inputs: PrepareInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r'pip install "ray\[data\]"'):
        prepare(SETTINGS, inputs, tmp_path / "out", replace(BENCH, ray="auto"))
