from __future__ import annotations

from pathlib import Path

import pytest

from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.sd.file.tensorfile import read_header, read_tensors, write_tensors
from aid.sd.model.layouts import VAE


@pytest.fixture(scope="session")
def dataset(pictures: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alpha` is new and `beta` is replayed; six pictures of each are trained on, two held out. Its latents
    are of a VAE alone, which tells no family: any may learn from them."""
    out = tmp_path_factory.mktemp("train") / "dataset"
    tensors = {key: one for key, one in read_tensors(tiny_checkpoint).items() if key.startswith(VAE)}
    vae = out.with_name("vae.safetensors")
    write_tensors(vae, tensors, read_header(tiny_checkpoint).metadata)
    settings = PrepareSettings(resolution_px=64, held_fraction=0.25, buckets=False, mirrored=True)
    inputs = PrepareInputs(
        pictures={"alpha": pictures / "alpha"},
        regularisation={"beta": pictures / "beta"},
        vae=vae,
    )
    return prepare(settings, inputs, out)
