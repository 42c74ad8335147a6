"""Hires fix: the first pass's latents made larger, for a second pass to draw the details.

Source: A1111 processing.py (sample_hr_pass), shared_items.py (latent upscale modes).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from aid.core.shot import Hires, Shot
from aid.sd.drawing.decoding import FACTOR, decode, encode, to_pictures, to_pixels
from aid.sd.model.checkpoint import StableDiffusion

LATENT: dict[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""Interpolation, and whether it is antialiased."""
PIXELS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


def second_shot(shot: Shot) -> Shot:
    """The second pass as a shot of its own kind: its size, steps, sampler and schedule."""
    hires = shot.hires
    if hires is None:
        return shot
    width, height = shot.drawn_size
    return shot.model_copy(
        update={
            "width": width,
            "height": height,
            "steps": hires.steps or shot.steps,
            "sampler": hires.sampler or shot.sampler,
            "schedule": hires.schedule or shot.schedule,
        }
    )


def enlarge(model: StableDiffusion, latents: Tensor, hires: Hires, shots: list[Shot]) -> Tensor:
    """Latents of the second pass's size, [b, 4, h/8, w/8]: enlarged until they cover it, and cropped."""
    width, height = (edge // FACTOR for edge in shots[0].drawn_size)
    wide, high = _covering((latents.shape[-1], latents.shape[-2]), (width, height))
    if hires.upscaler in LATENT:
        mode, antialias = LATENT[hires.upscaler]
        large = F.interpolate(latents, (high, wide), mode=mode, antialias=antialias)
    else:
        large = _through_pixels(model, latents, hires, shots, (wide * FACTOR, high * FACTOR))
    left, top = (wide - width) // 2, (high - height) // 2
    return large[..., top : top + height, left : left + width].contiguous()


def _through_pixels(
    model: StableDiffusion, latents: Tensor, hires: Hires, shots: list[Shot], size: tuple[int, int]
) -> Tensor:
    pictures = to_pictures(decode(model, latents), shots, model)
    enlarged = [picture.resize(size, PIXELS[hires.upscaler]) for picture in pictures]
    return torch.cat([encode(model, to_pixels([picture])) for picture in enlarged])


def _covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of about `size`'s proportions that covers `target`."""
    share = max(goal / edge for goal, edge in zip(target, size, strict=True))
    wide, high = (round(edge * share) for edge in size)
    return max(wide, target[0]), max(high, target[1])
