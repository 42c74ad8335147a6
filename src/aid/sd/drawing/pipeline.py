"""Shots to pictures.

    texts --> noise or a picture's latent --sampler--> latents [--enlarge, sampler-->] --VAE--> pictures

A picture depends on its shot and the weights alone: noise comes from its own seed, and prompts of
different length are never padded to share a batch. Drawn in another batch it is the same, on a CPU to the
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aid.core.shot import Shot
from aid.sd.adapter.folder import AdapterFolder
from aid.sd.drawing.decoding import FACTOR, decode, to_pictures
from aid.sd.drawing.denoiser import Denoiser, keep_outside, levels_of
from aid.sd.drawing.hires import enlarge, second_shot
from aid.sd.drawing.init_picture import (
    InitPicture,
    encode_init,
    inpainting_channels,
    open_init,
    start_under,
)
from aid.sd.drawing.quick import quick
from aid.sd.drawing.scarcity import or_in_parts
from aid.sd.drawing.shot_text import Texts, calls_of
from aid.sd.embedding.file import Embedding
from aid.sd.model.checkpoint import StableDiffusion, lay_out
from aid.sd.prompt.sugar import Wildcards
from aid.sd.sampling.course import Course, find_schedule, noise_for, plan_course, plan_course_from_picture
from aid.sd.sampling.random import PictureNoise
from aid.sd.sampling.samplers import SAMPLERS, TRAITS, Denoise, OnStep

__all__ = ["Texts", "decode", "draw", "draw_batch", "plan_batches", "steps_of", "to_pictures"]

OnPicture = Callable[[int], None]


def draw(
    model: StableDiffusion,
    shots: Sequence[Shot],
    embeddings: Mapping[str, Embedding] | None = None,
    batch_size: int = 8,
    on_picture: OnPicture | None = None,
    *,
    adapters: AdapterFolder | None = None,
    wildcards: Wildcards | None = None,
) -> list[Image.Image]:
    """Draw every shot, in batches of at most `batch_size`; pictures come back in the order asked. The model
    is laid out for it, and stays so.

    `on_picture` is told each index as it is done. `adapters` are what `<lora:name:1>` calls, `wildcards` what
    `__name__` does. Raises SettingsError for an unknown sampler or schedule, FileError for an adapter that
    isn't there, PictureError for a source that can't be read, ModelError for a model that draws NaN.
    """
    pictures: dict[int, Image.Image] = {}
    lay_out(model)
    with Texts(model, embeddings, adapters, wildcards) as texts:
        for batch in plan_batches(texts, shots, batch_size):
            for index, picture in zip(
                batch, draw_batch(model, [shots[i] for i in batch], texts), strict=True
            ):
                pictures[index] = picture
                if on_picture is not None:
                    on_picture(index)
    return [pictures[index] for index in range(len(shots))]


def plan_batches(texts: Texts, shots: Sequence[Shot], batch_size: int) -> list[list[int]]:
    """The indices of shots that can be drawn together: alike in all but prompts, seeds, the strengths of
    variation and guidance, with prompts of the same lengths that call the same adapters."""
    groups: dict[object, list[int]] = {}
    for index, shot in enumerate(shots):
        groups.setdefault(_kind(texts, shot), []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def _kind(texts: Texts, shot: Shot) -> tuple[object, ...]:
    """Equal for shots that can share a batch. Raises SettingsError for an unknown sampler or schedule."""
    passes = [shot, second_shot(shot)] if shot.hires else [shot]
    for one in passes:
        calls_of(one.sampler, one.steps)
        find_schedule(one.sampler, one.schedule)
    told = shot.model_copy(
        update={"prompt": "", "negative_prompt": "", "seed": 0, "variation_seed": 0, "style": "", "tags": ()}
        | {"variation_strength": 0.0, "cfg_scale": 1.0 + (shot.cfg_scale != 1)}
        | {"hires": shot.hires and shot.hires.model_copy(update={"prompt": "", "negative_prompt": ""})}
    )
    return told, *(texts.lengths(shot, second) for second in (False, True)[: len(passes)])


@torch.inference_mode()
def draw_batch(
    model: StableDiffusion,
    shots: Sequence[Shot],
    texts: Texts,
    on_step: OnStep = lambda: None,
    pictures: Mapping[str, Path] | None = None,
) -> list[Image.Image]:
    """Draw shots that plan_batches put together, or one after another if a GPU has no memory for all.
    `on_step` is called after each step of the sampler; `pictures` (sha256 -> path) are where sources are
    looked for first."""

    def drawn(some: Sequence[Shot]) -> list[Image.Image]:
        return _draw_together(model, some, texts, on_step, pictures)

    if len(shots) == 1:
        return drawn(shots)
    return or_in_parts(
        lambda: drawn(shots),
        lambda: [picture for shot in shots for picture in drawn([shot])],
        "pictures are drawn one by one; a smaller batch_size is quicker",
    )


def _draw_together(
    model: StableDiffusion,
    shots: Sequence[Shot],
    texts: Texts,
    on_step: OnStep,
    pictures: Mapping[str, Path] | None,
) -> list[Image.Image]:
    first = shots[0]
    init = open_init(first.source, (first.width, first.height), pictures) if first.source else None
    if init:
        latents = _from_picture(model, shots, init, texts, on_step)
    else:
        latents = _from_noise(model, shots, texts, on_step)
    if first.hires:
        latents = _second_pass(model, shots, latents, texts, on_step)
    drawn = to_pictures(decode(model, latents), shots, model)
    return [init.over(picture) for picture in drawn] if init else drawn


def steps_of(shot: Shot) -> int:
    """How often `on_step` is called for a shot, about: U-Net calls but for second-order samplers."""
    share = shot.source.denoising_strength if shot.source else 1.0
    second = (shot.hires.steps or shot.steps) if shot.hires else 0
    return max(1, round(shot.steps * share)) + second


def _from_noise(model: StableDiffusion, shots: Sequence[Shot], texts: Texts, on_step: OnStep) -> Tensor:
    first = shots[0]
    course = _course(first.sampler, first.schedule, first.steps, levels_of(model, first))
    noise = _noise(model, shots, (first.width, first.height))
    denoise = _denoiser(model, shots, texts)
    return _sample(model, first, denoise, course.start(noise()), course, noise, on_step)


def _from_picture(
    model: StableDiffusion, shots: Sequence[Shot], init: InitPicture, texts: Texts, on_step: OnStep
) -> Tensor:
    """img2img and, with a mask, inpainting."""
    first, size = shots[0], (shots[0].width, shots[0].height)
    encoded, mask = encode_init(model, init)
    latent = encoded.expand(len(shots), -1, -1, -1)
    course = _course_from(first, init.source.denoising_strength, model, fix_steps=False)
    noise = _noise(model, shots, size)
    denoise: Denoise = _denoiser(model, shots, texts, init=init)
    if mask is None:
        return _sample(model, first, denoise, course.start_from(latent, noise()), course, noise, on_step)
    latent = start_under(latent, mask, init.source.masked_content, _noise(model, shots, size))
    denoise = keep_outside(denoise, latent, mask)
    x = _sample(model, first, denoise, course.start_from(latent, noise()), course, noise, on_step)
    return x * mask + latent * (1 - mask)


def _second_pass(
    model: StableDiffusion, shots: Sequence[Shot], latents: Tensor, texts: Texts, on_step: OnStep
) -> Tensor:
    hires = shots[0].hires
    assert hires is not None
    second = second_shot(shots[0])
    large = enlarge(model, latents, hires, list(shots))
    course = _course_from(second, hires.denoising_strength, model, fix_steps=True)
    noise = _noise(model, shots, shots[0].drawn_size)
    denoise = _denoiser(model, shots, texts, second=True)
    return _sample(model, second, denoise, course.start_from(large, noise()), course, noise, on_step)


_course = lru_cache(plan_course)  # found once for all pictures alike


def _course_from(shot: Shot, strength: float, model: StableDiffusion, *, fix_steps: bool) -> Course:
    levels = levels_of(model, shot)
    return plan_course_from_picture(
        shot.sampler, shot.schedule, shot.steps, levels, strength, fix_steps=fix_steps
    )


def _denoiser(
    model: StableDiffusion,
    shots: Sequence[Shot],
    texts: Texts,
    second: bool = False,
    init: InitPicture | None = None,
) -> Denoiser:
    """With the adapters on that the shots call."""
    texts.wear(texts.words(shots[0], second).loras)
    guides = [texts.guide(shot, second) for shot in shots]
    one = second_shot(shots[0]) if second else shots[0]
    size = one.width, one.height
    return Denoiser(model, shots, guides, one.sampler, size, inpainting_channels(model, size, init))


def _noise(model: StableDiffusion, shots: Sequence[Shot], size: tuple[int, int]) -> PictureNoise:
    first = shots[0]
    return PictureNoise(
        [shot.seed for shot in shots],
        (4, size[1] // FACTOR, size[0] // FACTOR),
        model.device,
        first.noise_source,
        [shot.variation_seed for shot in shots],
        [shot.variation_strength for shot in shots],
        first.seed_delta,
    )


def _sample(
    model: StableDiffusion,
    shot: Shot,
    denoise: Denoise,
    x: Tensor,
    course: Course,
    noise: PictureNoise,
    on_step: OnStep,
) -> Tensor:
    """One run of the shot's sampler from `x`, whose noise is drawn already, with what the model wears."""
    if len(course.sigmas) == 1:  # of a second pass of strength 0
        return x
    takes_eta = shot.eta is not None and TRAITS[shot.sampler].eta is not None
    own = {"eta": shot.eta} if takes_eta else {}
    source = noise_for(shot.sampler, course, noise)
    with quick(model):
        return SAMPLERS[shot.sampler](denoise, x, course.sigmas, source, on_step, **own)
