"""Narrow models of every family, lively in every layer, as single files; and numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def family_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> an fp32 single file."""
    import torch

    from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL
    from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

    folder = tmp_path_factory.mktemp("families")
    for architecture in (TINY, TINY_SD2, TINY_SDXL):
        model = create_checkpoint(architecture, seed=3)
        generator = torch.Generator().manual_seed(4)
        for module in model.modules():
            for parameter in module.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        save_checkpoint(model, folder / f"{architecture.family}.safetensors", {}, torch.float32)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    import torch

    used = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(used)
