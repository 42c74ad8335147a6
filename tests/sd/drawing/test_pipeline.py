"""Shots to pictures: the same as diffusers' from the same noise, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from torch import Tensor

from aid import starter
from aid.core.shot import Shot
from aid.errors import ModelError, SettingsError
from aid.sd.drawing.pipeline import Texts, decode, draw, plan_batches, to_pictures
from aid.sd.embedding.file import Embedding
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint, load_checkpoint
from aid.sd.prompt.text import encode_prompts


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    """Random, but no layer is silent: the U-Net heeds its input, its step and its text."""
    made = create_checkpoint(TINY, seed=2)
    generator = torch.Generator().manual_seed(4)
    for module in (made.unet, made.text_encoder):
        for parameter in module.parameters():
            spread = 0.1 if not parameter.any() or parameter.dim() == 1 else 0.0
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def starter_model() -> StableDiffusion:
    return load_checkpoint(starter.BASE)


def shot(prompt: str = "red hair", **changes: object) -> Shot:
    named = {"prompt": prompt, "width": 32, "height": 32, "steps": 2, **changes}
    return Shot.model_validate(named)


def pixels(picture: Image.Image) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(picture).astype(int)


def difference(one: Image.Image, two: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(two)).max())


def diffusers_latents(model: StableDiffusion, shot: Shot) -> Tensor:
    """StableDiffusionPipeline's own loop, with A1111's schedule and an initial noise of its kind."""
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        timestep_spacing="linspace", steps_offset=0,
    )  # fmt: skip
    scheduler.set_timesteps(shot.steps)
    generator = torch.Generator("cpu").manual_seed(shot.seed)
    x = (
        torch.randn((1, 4, shot.height // 8, shot.width // 8), generator=generator)
        * scheduler.init_noise_sigma
    )
    text = encode_prompts(model, [shot.negative_prompt, shot.prompt], shot.clip_skip).context
    for t in scheduler.timesteps:
        twice = scheduler.scale_model_input(torch.cat([x, x]), t)
        u, c = model.unet(twice, t, encoder_hidden_states=text).sample.chunk(2)
        x = scheduler.step(u + shot.cfg_scale * (c - u), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("steps", [10, 28])
@torch.no_grad()
def test_same_picture_as_diffusers(
    model: StableDiffusion, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = shot("by matcha, (red hair:1.2)", negative_prompt="blurry", steps=steps, seed=11, width=48)
    seen: list[Tensor] = []
    monkeypatch.setattr("aid.sd.drawing.pipeline.decode", lambda m, x: (seen.append(x), decode(m, x))[1])
    (picture,) = draw(model, [asked])
    expected = diffusers_latents(model, asked)
    assert torch.allclose(seen[0], expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.05
    decoded = ((model.vae.decode(expected / 0.18215).sample + 1) / 2).clamp(0, 1)
    (floor,) = (decoded * 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert picture.size == (48, 32)
    assert np.abs(pixels(picture) - floor.astype(int)).max() <= 1


@pytest.mark.parametrize("asked", [{}, {"cfg_scale": 1}, {"cfg_rescale": 0.7}, {"sampler": "DPM++ 2M SDE"}])
def test_a_picture_is_the_same_to_the_bit_in_any_batch(
    starter_model: StableDiffusion, asked: dict[str, object]
) -> None:
    """Also of 64 px, where the U-Net's middle is a single pixel."""
    shots = [
        shot(f"{word} hair", seed=seed, width=64, height=64, **asked) for seed, word in enumerate("abcd")
    ]
    alone, two, four = (
        [one.tobytes() for one in draw(starter_model, shots, batch_size=n)] for n in (1, 2, 4)
    )
    assert alone == two == four
    assert len(set(alone)) == 4


def test_shots_of_all_kinds_come_back_in_order(model: StableDiffusion) -> None:
    shots = [
        shot(seed=1),
        shot(seed=2, width=64),
        shot("cat " * 80, seed=3),
        shot(seed=4, cfg_scale=1),
        shot(seed=5, negative_prompt="dog " * 80),
        shot(seed=6, sampler="Euler"),
        shot(seed=7, clip_skip=2),
        shot(seed=8, steps=3),
        shot(seed=9),
    ]
    assert plan_batches(Texts(model, {}), shots, 8) == [[0, 8], *([index] for index in range(1, 8))]
    told: list[int] = []
    pictures = draw(model, shots, on_picture=told.append)
    assert sorted(told) == list(range(9))
    assert [picture.size for picture in pictures] == [(one.width, one.height) for one in shots]
    for one, picture in zip(shots, pictures, strict=True):
        assert draw(model, [one])[0].tobytes() == picture.tobytes()
    assert len({picture.tobytes() for picture in pictures}) == 9


def test_batches_are_no_larger_than_asked(model: StableDiffusion) -> None:
    batches = plan_batches(Texts(model, {}), [shot(seed=seed) for seed in range(7)], 3)
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "blue hair"}, {"negative_prompt": "blurry"}, {"seed": 5}, {"steps": 5}, {"cfg_scale": 3.0},
        {"clip_skip": 2}, {"sampler": "Euler"}, {"prompt": "(red:1.4) hair"}, {"negative_prompt": "badv3"},
    ],
)  # fmt: skip
def test_every_setting_matters(model: StableDiffusion, change: dict[str, object]) -> None:
    known = {"badv3": Embedding("badv3", torch.ones(4, TINY.text_width))}
    plain, changed = draw(model, [shot(), shot(**change)], known)  # type: ignore[arg-type]
    assert difference(plain, changed) > 0


def test_scale_one_leaves_the_negative_prompt_out(model: StableDiffusion) -> None:
    plain, negative = draw(model, [shot(cfg_scale=1), shot(cfg_scale=1, negative_prompt="cat " * 80)])
    assert plain.tobytes() == negative.tobytes()


def test_scales_below_one_still_guide(model: StableDiffusion) -> None:
    """At 0 only the negative prompt counts."""
    one, two = draw(model, [shot("cat", cfg_scale=0), shot("dog", cfg_scale=0)])
    assert difference(one, two) <= 1


def test_levels_are_cut_off_and_not_rounded(model: StableDiffusion) -> None:
    values = torch.tensor([-2.0, -1.0, 2 * 127.9 / 255 - 1, 1.0, 2.0]).expand(1, 3, 1, 5)
    (picture,) = to_pictures(values, [shot()], model)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 127, 255, 255]


def test_nan_names_the_checkpoint_and_the_shot(tiny_checkpoint: object) -> None:
    broken = create_checkpoint(TINY, seed=2)
    broken.path = tiny_checkpoint  # type: ignore[assignment]
    broken.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(ModelError, match=r"tiny\.safetensors drew NaN for 'red hair', seed 3"):
        draw(broken, [shot(seed=3)])


def test_an_unknown_sampler_is_refused_before_any_work(model: StableDiffusion) -> None:
    with pytest.raises(SettingsError, match="'DPM' is not a sampler; expected Euler a or Euler"):
        draw(model, [shot(), shot(sampler="DPM")])


def test_drawing_leaves_the_model_and_the_global_generator_alone(model: StableDiffusion) -> None:
    weight = model.unet.conv_in.weight
    before, state = weight.stride(), torch.random.get_rng_state()
    draw(model, [shot()])
    assert weight.stride() == before
    assert weight.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    encode_prompts(model, ["cat"]).context.sum().backward()
