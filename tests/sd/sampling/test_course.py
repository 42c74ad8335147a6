"""The course around a sampler: A1111's levels, starts and tails."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid.core.shot import Hires, Shot
from aid.errors import SettingsError
from aid.sd.sampling.course import plan_course, plan_course_from_picture, plan_tail, split_name, well_named
from aid.sd.sampling.noise import levels
from aid.sd.sampling.samplers import SAMPLERS, TRAITS
from aid.sd.sampling.schedules import SCHEDULES, exponential, karras, uniform

ONES = torch.ones(1, 4, 2, 2)


def test_every_sampler_has_traits() -> None:
    assert list(SAMPLERS) == list(TRAITS)
    assert all(trait.automatic in SCHEDULES for trait in TRAITS.values())


def test_automatic_is_the_samplers_own() -> None:
    assert torch.equal(plan_course("Euler a", "Automatic", 9, levels()).sigmas, uniform(9, levels()))
    assert torch.equal(plan_course("DPM++ 2M", "Automatic", 9, levels()).sigmas, karras(9, levels()))
    assert torch.equal(plan_course("DPM++ 2M SDE", "Automatic", 9, levels()).sigmas, exponential(9, levels()))
    asked = plan_course("Euler a", "Karras", 9, levels(), rho=5.0).sigmas
    assert torch.equal(asked, karras(9, levels(), rho=5.0))


@pytest.mark.parametrize("name", ["DPM2", "DPM2 a", "DPM++ 3M SDE"])
def test_some_leave_the_penultimate_level_out(name: str) -> None:
    whole, sigmas = uniform(10, levels()), plan_course(name, "Uniform", 9, levels()).sigmas
    assert torch.equal(sigmas, torch.cat([whole[:9], whole[10:]]))


def test_any_can() -> None:
    kept = plan_course("Euler", "Uniform", 9, levels(), discard_penultimate=True).sigmas
    assert torch.equal(kept, plan_course("DPM2", "Uniform", 9, levels()).sigmas)


def test_starts() -> None:
    top = levels().sigma_max
    euler, ddim = (plan_course(name, "Automatic", 10, levels()) for name in ("Euler", "DDIM"))
    assert euler.start(ONES)[0, 0, 0, 0].item() == pytest.approx(top)
    assert euler.start(ONES, sgm_multiplier=True)[0, 0, 0, 0].item() == pytest.approx((1 + top**2) ** 0.5)
    assert ddim.start(ONES)[0, 0, 0, 0].item() == pytest.approx((1 + ddim.sigmas[0] ** 2).item() ** 0.5)


@pytest.mark.parametrize(
    ("steps", "strength", "fixed", "plan"),
    [
        (20, 0.5, False, (20, 10)),
        (20, 0.75, False, (20, 15)),
        (20, 1.0, False, (20, 19)),
        (20, 0.5, True, (40, 19)),
        (20, 0.75, True, (26, 19)),
        (20, 0.0, True, (0, 19)),
    ],
)
def test_tails_of_a1111(steps: int, strength: float, fixed: bool, plan: tuple[int, int]) -> None:
    assert plan_tail(steps, strength, fixed) == plan


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.floats(0, 1), st.booleans(), st.sampled_from(list(SAMPLERS)))
def test_a_tail_is_the_end_of_a_whole_course(steps: int, strength: float, fixed: bool, name: str) -> None:
    tail = plan_course_from_picture(name, "Automatic", steps, levels(), strength, fix_steps=fixed)
    assert len(tail.sigmas) >= 1
    assert tail.lowest <= tail.highest
    if TRAITS[name].variance_preserving:
        return
    assert tail.sigmas[-1] == 0
    if not fixed:
        whole = plan_course(name, "Automatic", steps, levels()).sigmas
        assert torch.equal(tail.sigmas, whole[-len(tail.sigmas) :])
        assert len(tail.sigmas) == plan_tail(steps, strength)[1] + 2
    elif strength > 0:
        assert len(tail.sigmas) == steps + 1
    start = tail.start_from(ONES, ONES)[0, 0, 0, 0].item()
    assert start == pytest.approx(1 + tail.sigmas[0].item())


def test_ddim_starts_a_level_below_its_noise_as_a1111_does() -> None:
    course = plan_course_from_picture("DDIM", "Automatic", 10, levels(), 0.5)
    trained = levels().sigmas
    assert torch.equal(course.sigmas, trained[[401, 301, 201, 101, 1]])
    assert course.noised_to == trained[501]
    preserved = course.start_from(ONES, ONES)[0, 0, 0, 0] / (1 + trained[401] ** 2) ** 0.5
    alpha = 1 / (1 + trained[501] ** 2)
    assert preserved.item() == pytest.approx((alpha**0.5 + (1 - alpha) ** 0.5).item())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("DPM++ 3M SDE Exponential", ("DPM++ 3M SDE", "Exponential")),
        ("Euler SGMUniform", ("Euler", "SGM Uniform")),
        ("DPM++ 2M SDE Heun", ("DPM++ 2M SDE Heun", "Automatic")),
        ("Euler a", ("Euler a", "Automatic")),
        ("euler A", ("Euler a", "Automatic")),
        ("dpm++ 2m sde karras", ("DPM++ 2M SDE", "Karras")),
        ("DPM++_2M sgm uniform", ("DPM++ 2M", "SGM Uniform")),
        ("ddim", ("DDIM", "Automatic")),
        ("euler_ancestral", ("Euler a", "Automatic")),
        ("dpmpp_2m_sde_gpu_karras", ("DPM++ 2M SDE", "Karras")),
        ("uni_pc_ddim_uniform", ("UniPC", "DDIM")),
        ("Nonsense Karras", ("Nonsense Karras", "Automatic")),
    ],
)
def test_names_in_any_case_and_from_before_1_9(written: str, read: tuple[str, str]) -> None:
    assert split_name(written) == read


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["Automatic", *SCHEDULES])
def test_every_name_is_known_in_any_case(sampler: str, schedule: str) -> None:
    right = Shot(
        prompt="", sampler=sampler, schedule=schedule, hires=Hires(sampler=sampler, schedule=schedule)
    )
    assert well_named(right) == right
    hires = Hires(sampler=sampler.lower(), schedule=schedule.upper())
    assert (
        well_named(Shot(prompt="", sampler=sampler.upper(), schedule=schedule.lower(), hires=hires)) == right
    )
    both = f"{sampler} {schedule}".lower()
    first_pass = Hires(sampler=sampler, schedule="" if schedule == "Automatic" else schedule)
    assert well_named(Shot(prompt="", sampler=both, hires=Hires(sampler=both))) == right.model_copy(
        update={"hires": first_pass}
    )


@pytest.mark.parametrize(
    ("sampler", "schedule", "message"),
    [
        ("Eular", "Automatic", r"'Eular' is not a sampler.*Did you mean Euler\?"),
        ("euler b", "Automatic", r"'euler b' is not a sampler.*Did you mean Euler a\?"),
        ("dpm++ 2m karas", "Automatic", r"Did you mean DPM\+\+ 2M Karras\?"),
        (
            "DPM++ 2M Karras",
            "Beta",
            r"'DPM\+\+ 2M Karras' names a schedule where another is set; expected DPM\+\+ 2M",
        ),
        ("Euler", "caras", r"'caras' is not a schedule.*Did you mean Karras\?"),
    ],
)
def test_unknown_names(sampler: str, schedule: str, message: str) -> None:
    shot = well_named(Shot(prompt="", sampler=sampler, schedule=schedule))
    with pytest.raises(SettingsError, match=message):
        plan_course(shot.sampler, shot.schedule, 9, levels())
