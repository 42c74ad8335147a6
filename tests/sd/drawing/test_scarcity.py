"""What a GPU's memory doesn't suffice for is done in parts; a full GPU is played by layers that refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import Module

from aid.core.shot import Shot
from aid.sd.drawing.decoding import decode, encode
from aid.sd.drawing.pipeline import draw
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return create_checkpoint(TINY, seed=2)


@contextmanager
def full(layer: Module, most: int) -> Iterator[list[int]]:
    """The layer has memory for so many numbers, and no more; the sizes that it was asked for."""
    asked: list[int] = []

    def refuse(_: Module, given: tuple[Any, ...]) -> None:
        asked.append(given[0].numel())
        if given[0].numel() > most:
            raise torch.OutOfMemoryError("the GPU is full")

    hook = layer.register_forward_pre_hook(refuse)
    try:
        yield asked
    finally:
        hook.remove()


def test_the_vae_takes_small_tiles(model: StableDiffusion) -> None:
    """Of 384 pixels; 448 alone would have done without."""
    latent = torch.randn((1, 4, 56, 56), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = decode(model, latent)
        back = encode(model, whole)
        with full(model.vae.decoder.conv_in, 4 * 48 * 48) as tiles, pytest.warns(UserWarning, match="tiles"):
            parts = decode(model, latent)
        assert tiles == [4 * 56 * 56] + 4 * [4 * 48 * 48]
        with full(model.vae.encoder.conv_in, 3 * 384**2), pytest.warns(UserWarning, match="small tiles"):
            again = encode(model, whole)
    assert (parts - whole).abs().mean() < 0.1 * whole.std()
    assert (again - back).abs().mean() < 0.1 * back.std()


def test_a_batch_is_drawn_one_by_one(model: StableDiffusion) -> None:
    shots = [Shot(prompt="a cat", seed=seed, width=64, height=64, steps=2) for seed in range(3)]
    with full(model.unet, 2 * 4 * 64):
        alone = [draw(model, [shot])[0].tobytes() for shot in shots]
        with pytest.warns(UserWarning, match="one by one; a smaller batch_size"):
            assert [picture.tobytes() for picture in draw(model, shots)] == alone


def test_what_fits_in_no_part_is_an_error(model: StableDiffusion) -> None:
    with full(model.unet, 1), pytest.raises(torch.OutOfMemoryError):
        draw(model, [Shot(prompt="a cat", width=64, height=64, steps=2)])
