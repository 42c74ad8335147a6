"""Pictures decoded a few at once, to the bit as the VAE decodes each by itself, for any number of threads."""

from __future__ import annotations

import pytest
import torch

from aid import starter
from aid.sd.drawing import decoding
from aid.sd.drawing.decoding import decode
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint, lay_out, load_checkpoint

SIZES = [(1, 1), (1, 2), (5, 3), (8, 8), (16, 16), (17, 11), (18, 18)]


@pytest.fixture(scope="module", params=["the starter", "the starter, its channels first", "random"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    if request.param == "random":
        return lay_out(create_checkpoint(TINY, seed=2))
    loaded = load_checkpoint(starter.BASE)
    return loaded if "first" in request.param else lay_out(loaded)


@torch.inference_mode()
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_the_same_to_the_bit_with_others(model: StableDiffusion, size: tuple[int, int]) -> None:
    """Of a few at once, of a few more than that, and of sizes that are decoded one by one."""
    count = decoding.FEW + 2
    latents = torch.randn((count, 4, *size), generator=torch.Generator().manual_seed(1))
    scaled = latents / model.architecture.vae_scale
    alone = torch.cat([model.vae.decode(one, return_dict=False)[0] for one in torch.split(scaled, 1)])
    for together in (2, 3, count):
        assert torch.equal(torch.cat([decode(model, part) for part in torch.split(latents, together)]), alone)
    again = model.vae.decode(scaled[:1], return_dict=False)[0]
    assert torch.equal(again, alone[:1])
