"""A studio that serves over HTTP: a model with an embedding, a LoRA and another VAE, and the starter."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvicorn

from aid import starter
from aid.core.workbench import Workbench
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint
from aid.studio.server import create_app
from aid.studio.settings import StudioSettings
from aid.studio.studio import Studio


@pytest.fixture(scope="session")
def other_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's VAE that isn't that of `lively_checkpoint`."""
    path = tmp_path_factory.mktemp("vaes") / "other.safetensors"
    save_checkpoint(create_checkpoint(TINY, seed=77), path, {}, torch.float32)
    return path


@pytest.fixture(scope="module")
def studio(lively_checkpoint: Path, other_vae: Path) -> Iterator[tuple[Studio, str]]:
    """The studio, and the address at which it answers."""
    places = (lively_checkpoint, starter.shipped("release"))
    settings = StudioSettings(models=places, vaes=(other_vae,), port=0, waiting=2, names=("studio.LOCAL",))
    studio = Studio(settings, Workbench(threads=1))
    server = uvicorn.Server(uvicorn.Config(create_app(studio), "127.0.0.1", 0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield studio, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
