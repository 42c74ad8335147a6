"""Real parts at the smallest size: a checkpoint of SD1's topology, and folders of drawn pictures."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

# The same examples everywhere: `make fuzz` is what looks further. A busy machine is no failure.
settings.register_profile("aid", deadline=None, derandomize=True)
settings.load_profile("aid")
if not shutil.which("nvidia-smi"):
    os.environ["TRITON_INTERPRET"] = "1"  # for kernels of a GPU; read when Triton is first imported


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aid.sd.model.architecture import TINY
    from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(create_checkpoint(TINY, seed=1), path, {})
    return path


@pytest.fixture(scope="session")
def lively_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, but no layer of it is silent."""
    import torch

    from aid.sd.model.architecture import TINY
    from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

    model = create_checkpoint(TINY, seed=2)
    generator = torch.Generator().manual_seed(4)
    for module in (model.unet, model.text_encoder):
        for parameter in module.parameters():
            spread = 0.1 if not parameter.any() or parameter.dim() == 1 else 0.0
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    path = tmp_path_factory.mktemp("lively") / "lively.safetensors"
    save_checkpoint(model, path, {})
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alpha/` draws discs and `beta/` boxes; hair is the colour on top, and a smile a bright mouth."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = random.Random(7)
    for style in ("alpha", "beta"):
        (folder / style).mkdir()
        (folder / style / "credit.toml").write_text('licence = "CC0-1.0"\ncredit = "a test"\n')
        for index in range(8):
            hair, smile = ("red", "blue")[index % 2], index % 4 < 2
            draw_portrait(style, hair, smile, chance).save(folder / style / f"{style}{index}.png")
            tags = [f"{hair} hair", "smile" if smile else "frown"]
            (folder / style / f"{style}{index}.txt").write_text(", ".join(tags))
    return folder


def draw_portrait(style: str, hair: str, smile: bool, chance: random.Random) -> Image.Image:
    ground = tuple(chance.randrange(180, 256) for _ in range(3))
    picture = Image.new("RGB", (64, 64), ground)
    pen = ImageDraw.Draw(picture)
    x, y = chance.randrange(8, 16), chance.randrange(8, 16)
    shape = pen.ellipse if style == "alpha" else pen.rectangle
    shape((x, y, x + 40, y + 44), fill=(240, 200, 170), outline="black")
    pen.rectangle((x, y, x + 40, y + 10), fill=hair)
    pen.line((x + 12, y + 34, x + 28, y + 34), fill="red" if smile else "black", width=3)
    return picture
