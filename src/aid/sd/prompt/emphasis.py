"""What a weight does to a token's vector.

Source: A1111 modules/sd_emphasis.py; ComfyUI comfy/sd1_clip.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEAST_MEAN = 0.01  # of the mean magnitude; CLIP ViT-L/14's mean is about 0.15 of it

Weigh = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def original(hidden: Tensor, weights: Tensor, _empty: Tensor, together: bool) -> Tensor:
    """Scale each token's vector by its weight, then each chunk back to its former mean; `together`, the
    mean is that of all prompts' chunks at one place, as A1111 takes it over an edited prompt's variants.

    Where there is no mean to speak of (an untrained encoder's layer norm leaves none, and 0/0 would be
    NaN) it is not restored; CLIP's is far above that bound.
    """
    over = (0, 2, 3) if together else (2, 3)
    scaled = hidden * weights
    before, after, size = (part.mean(dim=over, keepdim=True) for part in (hidden, scaled, hidden.abs()))
    there = before.abs() > LEAST_MEAN * size
    return scaled * (torch.where(there, before, 1) / torch.where(there, after, 1))


def no_norm(hidden: Tensor, weights: Tensor, _empty: Tensor, _together: bool) -> Tensor:
    """Scale each token's vector by its weight."""
    return hidden * weights


def from_empty(hidden: Tensor, weights: Tensor, empty: Tensor, _together: bool) -> Tensor:
    """Away from the empty prompt's vector at the same place: z_empty + w (z - z_empty)."""
    return empty + weights * (hidden - empty)


EMPHASIS: dict[str, Weigh] = {"Original": original, "No norm": no_norm, "ComfyUI": from_empty}
"""Modes that weigh; "Ignore" reads the weights and drops them, "None" doesn't even read them."""


def emphasise(
    hidden: Tensor, weights: Sequence[Sequence[Sequence[float]]], mode: str, empty: Tensor, together: bool
) -> Tensor:
    """`hidden` [prompts, chunks, 77, width] by the weights of its tokens; `empty` is [77, width]."""
    if mode not in EMPHASIS or all(weight == 1.0 for row in weights for chunk in row for weight in chunk):
        return hidden
    factors = torch.tensor(weights, dtype=hidden.dtype, device=hidden.device).unsqueeze(-1)
    return EMPHASIS[mode](hidden, factors, empty, together)
