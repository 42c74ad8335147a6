"""Guidance by its promises, and against diffusers' rescaling."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from aid.sd.sampling.guidance import guide, guide_between, guide_rescaled, is_guided
from aid.sd.sampling.noise import to_denoised

SIGMA = torch.tensor(2.5)


def latents() -> tuple[torch.Tensor, ...]:
    return torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()


def test_scale_one_is_the_conditional() -> None:
    u, c, x = latents()
    assert torch.allclose(guide(u, c, 1.0), c, atol=1e-6)
    assert torch.allclose(guide_rescaled(u, c, x, SIGMA, 1.0), c, atol=1e-5)


def test_a_scale_for_each_picture() -> None:
    u, c, _ = latents()
    scales = torch.tensor([2.0, 7.0]).reshape(-1, 1, 1, 1)
    assert torch.equal(guide(u, c, scales)[1], guide(u[1], c[1], 7.0))


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_is_diffusers_on_v(share: float) -> None:
    v_u, v_c, x = latents()
    u, c = (to_denoised("v", x, v, SIGMA) for v in (v_u, v_c))
    peer = rescale_noise_cfg(guide(v_u, v_c, 7.0), v_c, guidance_rescale=share)
    ours = guide_rescaled(u, c, x, SIGMA, 7.0, share)
    assert torch.allclose(ours, to_denoised("v", x, peer, SIGMA), atol=1e-4)


def test_guidance_in_a_range_of_sigma() -> None:
    u, c, _ = latents()
    assert torch.equal(guide_between(u, c, SIGMA, 7.0, 0.3, 3.0), guide(u, c, 7.0))
    assert guide_between(u, c, torch.tensor(3.1), 7.0, 0.3, 3.0) is c
    assert not is_guided(torch.tensor(0.25), 0.25, 3.0)
    assert is_guided(torch.tensor(3.0), 0.25, 3.0)
