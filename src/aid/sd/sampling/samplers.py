"""Samplers by their A1111 names, and what A1111 does around each. A new one is one function and one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aid.sd.sampling.ode import dpm_2, dpm_plus_plus_2m, euler, heun, lms, unipc
from aid.sd.sampling.sde import (
    ddim,
    dpm_2_ancestral,
    dpm_plus_plus_2m_sde,
    dpm_plus_plus_2m_sde_heun,
    dpm_plus_plus_2s_ancestral,
    dpm_plus_plus_3m_sde,
    dpm_plus_plus_sde,
    euler_ancestral,
    lcm,
)
from aid.sd.sampling.step import Denoise, Noise, OnStep, Sampler, ancestral_step

__all__ = ["SAMPLERS", "TRAITS", "Denoise", "Noise", "OnStep", "Sampler", "Trait", "ancestral_step"]

SAMPLERS: dict[str, Sampler] = {
    "Euler a": euler_ancestral,
    "Euler": euler,
    "Heun": heun,
    "DPM2": dpm_2,
    "DPM2 a": dpm_2_ancestral,
    "DPM++ 2S a": dpm_plus_plus_2s_ancestral,
    "DPM++ 2M": dpm_plus_plus_2m,
    "DPM++ SDE": dpm_plus_plus_sde,
    "DPM++ 2M SDE": dpm_plus_plus_2m_sde,
    "DPM++ 2M SDE Heun": dpm_plus_plus_2m_sde_heun,
    "DPM++ 3M SDE": dpm_plus_plus_3m_sde,
    "LMS": lms,
    "DDIM": ddim,
    "UniPC": unipc,
    "LCM": lcm,
}


@dataclass(frozen=True)
class Trait:
    """What A1111 (v1.9 and later) does around a sampler.

    Source: A1111 sd_samplers_kdiffusion.py, sd_samplers_timesteps.py, sd_samplers_lcm.py.
    """

    automatic: str = "Uniform"
    """The schedule meant by "Automatic"."""
    discards_penultimate: bool = False
    """Whether one more level is made and the last above 0 left out."""
    brownian: bool = False
    """Whether noise comes from a Brownian tree over σ, not from the picture's generator."""
    eta: float | None = None
    """Its default; None where it adds no noise of its own."""
    uses_ensd: bool = False
    """Whether A1111 writes ENSD into the infotext (where eta is not 0). It re-seeds for every sampler."""
    second_order: bool = False
    """Whether the U-Net is called twice a step, but once for the last."""
    own_levels: Literal["DDIM", "UniPC"] | None = None
    """Variance-preserving samplers go down levels of their own, whatever the schedule."""
    stride: int = 1
    """A model of every `stride`-th timestep: LCM's has 50 levels, and is asked at the nearest."""

    @property
    def variance_preserving(self) -> bool:
        return self.own_levels is not None


TRAITS: dict[str, Trait] = {
    "Euler a": Trait(eta=1.0, uses_ensd=True),
    "Euler": Trait(),
    "Heun": Trait(second_order=True),
    "DPM2": Trait("Karras", discards_penultimate=True, second_order=True),
    "DPM2 a": Trait("Karras", discards_penultimate=True, eta=1.0, uses_ensd=True, second_order=True),
    "DPM++ 2S a": Trait("Karras", eta=1.0, uses_ensd=True, second_order=True),
    "DPM++ 2M": Trait("Karras"),
    "DPM++ SDE": Trait("Karras", brownian=True, eta=1.0, second_order=True),
    "DPM++ 2M SDE": Trait("Exponential", brownian=True, eta=1.0),
    "DPM++ 2M SDE Heun": Trait("Exponential", brownian=True, eta=1.0),
    "DPM++ 3M SDE": Trait("Exponential", discards_penultimate=True, brownian=True, eta=1.0),
    "LMS": Trait(),
    "DDIM": Trait(eta=0.0, own_levels="DDIM"),
    "UniPC": Trait(own_levels="UniPC"),
    "LCM": Trait(stride=20),
}
