"""Classifier-free guidance on denoised latents: pure functions of the unconditional `u`, the conditional `c`,
the noisy latent `x` and its σ, all [b, 4, h, w] but σ, a scalar.

`scale` may be a number or a tensor [b, 1, 1, 1], one for each picture.
"""

from __future__ import annotations

from math import inf

from torch import Tensor


def guide(u: Tensor, c: Tensor, scale: float | Tensor) -> Tensor:
    """u + s(c - u) (Ho and Salimans 2022), on denoised latents as A1111 combines them."""
    return u + scale * (c - u)


def guide_rescaled(
    u: Tensor, c: Tensor, x: Tensor, sigma: Tensor, scale: float | Tensor, share: float | Tensor = 0.7
) -> Tensor:
    """Guidance brought back to the conditional prediction's spread, against overexposure
    (Lin et al. 2023, arXiv 2305.08891, equations 14 to 16; their φ is `share`, 0.7 their choice).

    The spread is that of v, whatever the model predicts, as in ComfyUI's RescaleCFG.
    """
    v_u, v_c = _to_v(u, x, sigma), _to_v(c, x, sigma)
    v = guide(v_u, v_c, scale)
    rescaled = v * (_spread(v_c) / _spread(v))
    v = share * rescaled + (1 - share) * v
    return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1) ** 0.5


def is_guided(sigma: Tensor, low: float = 0.0, high: float = inf) -> bool:
    """Whether σ lies in the range, `low` < σ <= `high`, where guidance is used; elsewhere `c` alone is
    right, and `u` need not be computed (Kynkäänniemi et al. 2024, arXiv 2404.07724)."""
    return low < sigma.item() <= high


def guide_between(
    u: Tensor, c: Tensor, sigma: Tensor, scale: float | Tensor, low: float = 0.0, high: float = inf
) -> Tensor:
    """Guidance over a range of σ and `c` outside it (Kynkäänniemi et al. 2024)."""
    return guide(u, c, scale) if is_guided(sigma, low, high) else c


def _to_v(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return (x / (sigma**2 + 1) - denoised) * (sigma**2 + 1) ** 0.5 / sigma


def _spread(v: Tensor) -> Tensor:
    return v.std(dim=(1, 2, 3), keepdim=True)
