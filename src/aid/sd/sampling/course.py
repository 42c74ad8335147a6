"""The course of a sampler: where it starts and which levels it goes down, for new pictures and from old ones.

Source: A1111 sd_samplers_kdiffusion.py, sd_samplers_timesteps.py, setup_img2img_steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from aid.core.shot import Shot
from aid.core.spelling import did_you_mean, fold
from aid.errors import SettingsError
from aid.sd.sampling.noise import Levels
from aid.sd.sampling.random import PictureNoise
from aid.sd.sampling.samplers import SAMPLERS, TRAITS, Noise
from aid.sd.sampling.schedules import SCHEDULES, Schedule, ddim_levels, unipc_levels

AUTOMATIC = "Automatic"
COMFYUI = {
    "euler_ancestral": "Euler a", "dpm_2": "DPM2", "dpm_2_ancestral": "DPM2 a",
    "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_gpu": "DPM++ SDE", "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun_gpu": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE", "dpmpp_3m_sde_gpu": "DPM++ 3M SDE", "uni_pc": "UniPC",
}  # fmt: skip
"""Its names for samplers, where they aren't A1111's in lower case."""
SPELT_SAMPLERS = {
    fold(name): sampler for name, sampler in {**{one: one for one in SAMPLERS}, **COMFYUI}.items()
}
SPELT_SCHEDULES = {
    **{fold(name): name for name in (*SCHEDULES, AUTOMATIC)},
    "sgmuniform": "SGM Uniform", "ddim uniform": "DDIM",
}  # fmt: skip


@dataclass(frozen=True)
class Course:
    """The levels of one run of a sampler."""

    sigmas: Tensor
    """float32, from high to low, on the CPU."""
    noised_to: Tensor
    """The level to which a picture to start from gets noise: A1111's DDIM and UniPC start a level below."""
    lowest: Tensor
    """The lowest level above 0 of the whole schedule: with `highest` the ends of a Brownian tree."""
    highest: Tensor
    variance_preserving: bool = False

    def start(self, noise: Tensor, sgm_multiplier: bool = False) -> Tensor:
        """The first x of a new picture. `sgm_multiplier`: at the variance that training had, as
        generative-models, ComfyUI and A1111's option "SGM noise multiplier" do."""
        sigma = self.sigmas[0]
        exact = sgm_multiplier or self.variance_preserving
        return noise * ((1 + sigma**2) ** 0.5 if exact else sigma)

    def start_from(self, latent: Tensor, noise: Tensor) -> Tensor:
        """The first x of a picture made from another (img2img, the second pass of hires fix)."""
        x = latent + noise * self.noised_to
        if self.variance_preserving:
            return x * ((1 + self.sigmas[0] ** 2) / (1 + self.noised_to**2)) ** 0.5
        return x


def plan_course(
    sampler: str,
    schedule: str,
    steps: int,
    levels: Levels,
    *,
    discard_penultimate: bool = False,
    **options: float,
) -> Course:
    """The course of a new picture. `options` go to the schedule (rho; alpha and beta of Beta).

    `discard_penultimate` does for every sampler what A1111 does for some (its option "Discard penultimate
    sigma"). Raises SettingsError for an unknown sampler or schedule.
    """
    trait, make = TRAITS[check_sampler(sampler)], find_schedule(sampler, schedule)
    if trait.own_levels == "DDIM":
        return _own_course(ddim_levels(steps, levels))
    if trait.own_levels == "UniPC":
        return _own_course(unipc_levels(len(ddim_levels(steps, levels)), levels))
    discard = discard_penultimate or trait.discards_penultimate
    return _course(_make(make, steps, levels.every(trait.stride), discard, options))


def plan_course_from_picture(
    sampler: str,
    schedule: str,
    steps: int,
    levels: Levels,
    strength: float,
    *,
    fix_steps: bool = False,
    discard_penultimate: bool = False,
    **options: float,
) -> Course:
    """The course of a picture made from another at a denoising strength of 0 to 1: the tail of a whole one.

    `fix_steps`: exactly `steps` steps are taken; otherwise that share of them which `strength` is.
    """
    trait, make = TRAITS[check_sampler(sampler)], find_schedule(sampler, schedule)
    whole, taken = plan_tail(steps, strength, fix_steps)
    if trait.own_levels is not None:
        return _own_tail(trait.own_levels, max(whole, 1), taken, levels)
    discard = discard_penultimate or trait.discards_penultimate
    if whole == 0:
        return _course(_make(make, 1, levels.every(trait.stride), False, options)[-1:])
    sigmas = _make(make, whole, levels.every(trait.stride), discard, options)
    return _course(sigmas[whole - taken - 1 :], sigmas)


def plan_tail(steps: int, strength: float, fix_steps: bool = False) -> tuple[int, int]:
    """(steps of the whole schedule, t_enc): the tail taken is `sigmas[whole - t_enc - 1:]`, t_enc + 1 steps.

    (20, 0.5) -> (20, 10), 11 steps; fixed -> (40, 19), 20 steps. Strength 0 with fixed steps: (0, steps - 1).
    A strength below 0.001 counts as that, lest the whole be endless.
    """
    if fix_steps:
        return (int(steps / min(max(strength, 0.001), 0.999)) if strength > 0 else 0), steps - 1
    return steps, int(min(strength, 0.999) * steps)


def noise_for(sampler: str, course: Course, noise: PictureNoise) -> Noise:
    """What the sampler draws its noise from: the pictures' generators, or Brownian trees of their seeds."""
    return noise.brownian(course.lowest, course.highest) if TRAITS[sampler].brownian else noise


def split_name(name: str) -> tuple[str, str]:
    """A sampler's name in any case, as A1111 wrote it before v1.9 ("DPM++ 2M Karras"), or as ComfyUI has it
    ("dpmpp_2m_karras"), to (sampler, schedule)."""
    folded = fold(name)
    if folded in SPELT_SAMPLERS:
        return SPELT_SAMPLERS[folded], AUTOMATIC
    for schedule, spelt in SPELT_SCHEDULES.items():
        sampler = folded.removesuffix(f" {schedule}")
        if sampler != folded and sampler in SPELT_SAMPLERS:
            return SPELT_SAMPLERS[sampler], spelt
    return name, AUTOMATIC


def well_named(shot: Shot) -> Shot:
    """The shot with its samplers and schedules spelt as A1111 spells them: in any case, or a schedule behind
    its sampler. What is unknown stays as it is, for `check_sampler` and `find_schedule` to refuse."""
    sampler, schedule = _well_named(shot.sampler, shot.schedule, AUTOMATIC)
    hires = shot.hires
    if hires:
        second = _well_named(hires.sampler, hires.schedule, "")
        hires = hires.model_copy(update=dict(zip(("sampler", "schedule"), second, strict=True)))
    return shot.model_copy(update={"sampler": sampler, "schedule": schedule, "hires": hires})


def _well_named(sampler: str, schedule: str, unnamed: str) -> tuple[str, str]:
    """`unnamed` is the schedule where none is named."""
    found, own = split_name(sampler)
    named = SPELT_SCHEDULES.get(fold(schedule), schedule)
    if own == AUTOMATIC or named == own:
        return found, named
    return (found, own) if named == unnamed else (sampler, named)


def check_sampler(name: str) -> str:
    """The name, if it is a sampler's. Raises SettingsError."""
    if name in SAMPLERS:
        return name
    found, schedule = split_name(name)
    if schedule != AUTOMATIC:
        raise SettingsError(f"{name!r} names a schedule where another is set", found)
    long = [f"{sampler} {one}" for sampler in SAMPLERS for one in SCHEDULES]
    hint = did_you_mean(name, [*SAMPLERS, *long])
    raise SettingsError(f"{name!r} is not a sampler", " or ".join(SAMPLERS), hint)


def find_schedule(sampler: str, schedule: str) -> Schedule:
    """The schedule of that name, "Automatic" being the sampler's own. Raises SettingsError."""
    name = TRAITS[sampler].automatic if schedule == AUTOMATIC else schedule
    if name not in SCHEDULES:
        known = [AUTOMATIC, *SCHEDULES]
        hint = did_you_mean(schedule, known)
        raise SettingsError(f"{schedule!r} is not a schedule", " or ".join(known), hint)
    return SCHEDULES[name]


def _make(make: Schedule, steps: int, levels: Levels, discard: bool, options: dict[str, float]) -> Tensor:
    sigmas = make(steps + 1 if discard else steps, levels, **options)
    return sigmas[[*range(len(sigmas) - 2), -1]] if discard else sigmas


def _course(sigmas: Tensor, whole: Tensor | None = None) -> Course:
    whole = sigmas if whole is None else whole
    above = whole[whole > 0]
    ends = (above.min(), above.max()) if len(above) else (whole[-1], whole[0])
    return Course(sigmas, sigmas[0], *ends)


def _own_course(sigmas: Tensor) -> Course:
    return Course(sigmas, sigmas[0], sigmas[-1], sigmas[0], variance_preserving=True)


def _own_tail(kind: str, whole: int, taken: int, levels: Levels) -> Course:
    """A1111 noises to its timestep number t_enc and begins with number t_enc - 1."""
    sigmas = ddim_levels(whole, levels)
    taken = min(taken, len(sigmas) - 1)
    noised_to, tail = sigmas[-1 - taken], sigmas[len(sigmas) - taken :]
    if kind == "UniPC" and taken:
        highest = levels.sigma_to_t(tail[0]).round().item()
        tail = unipc_levels(taken, levels, highest)
    if not taken:
        tail = sigmas[-1:]
    return Course(tail, noised_to, sigmas[-1], sigmas[0], variance_preserving=True)
