from __future__ import annotations

from pathlib import Path

import pytest

from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings


@pytest.fixture(scope="session")
def dataset(pictures: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alpha` is new and `beta` is replayed; six pictures of each are trained on, two held out."""
    out = tmp_path_factory.mktemp("train") / "dataset"
    settings = PrepareSettings(resolution_px=64, held_fraction=0.25, buckets=False, mirrored=True)
    inputs = PrepareInputs(
        pictures={"alpha": pictures / "alpha"},
        regularisation={"beta": pictures / "beta"},
        vae=tiny_checkpoint,
    )
    return prepare(settings, inputs, out)
