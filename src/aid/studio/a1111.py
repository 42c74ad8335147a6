"""A1111's requests as settings of ours, and the answers in its words.

Source: A1111 modules/api/models.py and processing.py. Unknown keys are ignored, as there.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aid.core.shot import RANDOM
from aid.errors import SettingsError
from aid.generate.settings import GenerateSettings
from aid.sd.picture.file import picture_bytes
from aid.studio.desk import Answer, Job

CONTENTS = ("fill", "original", "latent noise", "latent nothing")
RESIZES = ("Just resize", "Crop and resize", "Resize and fill")
AREAS = ("Whole picture", "Only masked")
MASKS = ("Inpaint masked", "Inpaint not masked")
VERSION = "v1.10.1"  # whose interface this is
MOST_PICTURES = 64  # of a request
LARGEST_NATIVE = 1024  # pixels, of SDXL
NONE = (None, False, "", "None")  # nothing is asked for
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("tiling", "restore_faces", "script_name", "refiner_checkpoint"), NONE),
    "s_churn": (None, 0),
    "alwayson_scripts": (None, {}),
    "initial_noise_multiplier": (None, 0, 1),
}
"""What AID has not, and the values by which it is not asked for."""
USUAL_BLUR = 4
SAME = ("", "Use same checkpoint", "Use same sampler", "Use same scheduler")  # as in the first pass

# with a length, so that pydantic refuses what is no Unicode
Word = Annotated[str, Field(max_length=1000)]
Prompt = Annotated[str, Field(max_length=100_000)]


class Override(BaseModel):
    """Options for one request."""

    model_config = ConfigDict(extra="ignore")
    sd_model_checkpoint: Word | None = None
    sd_vae: Word | None = None
    CLIP_stop_at_last_layers: int | None = None
    sdxl_clip_l_skip: bool | None = None
    enable_prompt_comments: bool | None = None
    emphasis: Word | None = None
    randn_source: Word | None = None
    eta_noise_seed_delta: int | None = None
    use_old_scheduling: bool | None = None
    use_downcasted_alpha_bar: bool | None = None
    inpainting_mask_weight: float | None = None


class Asked(BaseModel):
    """What both kinds of request have. What is left out is as the model's card recommends."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    styles: list[Word] | None = Field(default=None, max_length=1000)
    seed: int | None = None
    subseed: int | None = None
    subseed_strength: float | None = None
    sampler_name: Word | None = None
    sampler_index: Word | None = None
    scheduler: Word | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = Field(default=None, ge=1)
    n_iter: int | None = Field(default=None, ge=1)
    clip_skip: int | None = None
    eta: float | None = None
    denoising_strength: float | None = None
    tiling: bool | None = None
    restore_faces: bool | None = None
    script_name: Word | None = None
    refiner_checkpoint: Word | None = None
    alwayson_scripts: dict[str, Any] | None = None
    s_churn: float | None = None
    seed_resize_from_w: int | None = None
    seed_resize_from_h: int | None = None
    override_settings: Override | None = None
    send_images: bool = True
    force_task_id: Word | None = None


class Txt2Img(Asked):
    """POST txt2img."""

    enable_hr: bool | None = None
    hr_scale: float | None = None
    hr_upscaler: Word | None = None
    hr_second_pass_steps: float | None = None
    hr_resize_x: int | None = None
    hr_resize_y: int | None = None
    hr_checkpoint_name: Word | None = None
    hr_sampler_name: Word | None = None
    hr_scheduler: Word | None = None
    hr_prompt: Prompt | None = None
    hr_negative_prompt: Prompt | None = None


class Img2Img(Asked):
    """POST img2img."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str | None = None
    mask_blur: int | None = None
    mask_blur_x: int | None = None
    mask_blur_y: int | None = None
    inpainting_fill: int | None = Field(default=None, ge=0, lt=len(CONTENTS))
    inpaint_full_res: bool | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: int | None = Field(default=None, ge=0, lt=len(MASKS))
    resize_mode: int | None = Field(default=None, ge=0, lt=len(RESIZES))
    initial_noise_multiplier: float | None = None
    include_init_images: bool = False


def settings_of(asked: Asked, usual: Mapping[str, Any], megapixels: float) -> GenerateSettings:
    """`usual` is what stands where nothing is said. Raises SettingsError for what can't be drawn."""
    if left := [name for name, without in UNSUPPORTED.items() if getattr(asked, name, None) not in without]:
        raise SettingsError(f"{left[0]} is asked for, which AID has not", "a request without it")
    for resized, own in (("seed_resize_from_w", asked.width), ("seed_resize_from_h", asked.height)):
        if (edge := getattr(asked, resized)) not in (None, 0, -1, own):
            raise SettingsError(f"{resized} is {edge}, and AID resizes no noise", "the picture's own size")
    override = asked.override_settings or Override()
    told = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "comments": override.enable_prompt_comments,
        "styles": tuple(asked.styles or ()),
        "seed": _seed(asked.seed),
        "variation_seed": _seed(asked.subseed) if asked.subseed_strength else None,
        "variation_strength": asked.subseed_strength,
        "sampler": asked.sampler_name or asked.sampler_index,
        "schedule": asked.scheduler or None,
        "clip_skip": override.CLIP_stop_at_last_layers if asked.clip_skip is None else asked.clip_skip,
        "clip_l_skip": override.sdxl_clip_l_skip,
        "emphasis": override.emphasis or None,
        "noise_source": _noise_source(override.randn_source),
        "seed_delta": override.eta_noise_seed_delta,
        "old_editing": override.use_old_scheduling,
        "downcast_alphas": override.use_downcasted_alpha_bar,
        "mask_weight": override.inpainting_mask_weight,
        "count": (asked.batch_size or 1) * (asked.n_iter or 1),
        **{name: getattr(asked, name) for name in ("steps", "cfg_scale", "width", "height", "eta")},
        **(_hires(asked) if isinstance(asked, Txt2Img) else {}),
        **(_source(asked) if isinstance(asked, Img2Img) else {}),
    }
    given = {name: value for name, value in told.items() if value is not None}
    given["clip_skip"] = max(1, given.get("clip_skip", usual.get("clip_skip", 1)))
    try:
        settings = GenerateSettings.model_validate({**usual, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{where} = {first['input']!r}: {first['msg']}") from error
    _require_bearable(settings, megapixels)
    return settings


def _noise_source(name: str | None) -> str | None:
    """Where there is no GPU, A1111's "GPU", which is its default, is the CPU."""
    return "CPU" if name == "GPU" and not torch.cuda.is_available() else name or None


def answer_json(asked: Asked, answer: Answer, job: Job) -> dict[str, Any]:
    """The body of the answer."""
    images = packed(answer) if asked.send_images else []
    hidden = {"init_images": None, "mask": None}
    parameters = asked.model_dump(mode="json")
    if not getattr(asked, "include_init_images", True):
        parameters |= hidden
    return {"images": images, "parameters": parameters, "info": json.dumps(_info(answer, job))}


def packed(answer: Answer) -> list[str]:
    """Its pictures as PNG files in base64."""
    files = (picture_bytes(one.picture, one.infotext, answer.lineage) for one in answer.drawn)
    return [base64.b64encode(file).decode() for file in files]


def _info(answer: Answer, job: Job) -> dict[str, Any]:
    settings, shots = job.settings, [one.shot for one in answer.drawn]
    first = shots[0] if shots else None
    prompt = first.prompt if first else settings.prompt
    negative = first.negative_prompt if first else settings.negative_prompt
    source = first.source.denoising_strength if first and first.source else None
    return {
        "prompt": prompt,
        "all_prompts": [shot.prompt for shot in shots],
        "negative_prompt": negative,
        "all_negative_prompts": [shot.negative_prompt for shot in shots],
        "seed": settings.seed,
        "all_seeds": [shot.seed for shot in shots],
        "subseed": settings.variation_seed,
        "all_subseeds": [settings.variation_seed + index for index in range(len(shots))],
        "subseed_strength": settings.variation_strength,
        "width": first.drawn_size[0] if first else settings.width or 0,
        "height": first.drawn_size[1] if first else settings.height or 0,
        "sampler_name": first.sampler if first else settings.sampler,
        "cfg_scale": settings.cfg_scale,
        "steps": settings.steps,
        "batch_size": len(shots),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": answer.weights.model,
        "sd_model_hash": answer.weights.model_hash,
        "sd_vae_name": answer.weights.vae or None,
        "sd_vae_hash": answer.weights.vae_hash or None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": settings.hires.denoising_strength if settings.hires else source,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [one.infotext for one in answer.drawn],
        "styles": list(settings.styles),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.began)),
        "clip_skip": settings.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
    }


def progress_json(job: Job | None, waiting: int, now: float) -> dict[str, Any]:
    """What three clients wait for when idle: progress 0, job_count 0, job ""."""
    share = job.share if job else 0.0
    left = (now - job.began) * (1 - share) / share if job and share else 0.0
    return {
        "progress": round(share, 4),
        "eta_relative": round(left, 2),
        "current_image": None,
        "textinfo": f"{waiting} waiting" if waiting else None,
        "state": {
            "skipped": False,
            "interrupted": bool(job and job.interrupted),
            "stopping_generation": False,
            "job": job.name if job else "",
            "job_count": 1 + waiting if job else 0,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.began)) if job else "0",
            "job_no": 0,
            "sampling_step": job.step if job else 0,
            "sampling_steps": job.steps if job else 0,
        },
    }


def _seed(seed: int | None) -> int:
    return secrets.randbelow(2**32) if seed is None or seed == RANDOM else seed


def _hires(asked: Txt2Img) -> dict[str, Any]:
    if not asked.enable_hr:
        return {}
    if asked.hr_checkpoint_name and asked.hr_checkpoint_name not in SAME:
        raise SettingsError("another model is asked for in the hires pass", "the same one")
    upscaler = "Lanczos" if asked.hr_upscaler == "None" else asked.hr_upscaler
    told = {
        "scale": asked.hr_scale,
        "upscaler": upscaler,
        "steps": asked.hr_second_pass_steps and int(asked.hr_second_pass_steps),
        "width": asked.hr_resize_x,
        "height": asked.hr_resize_y,
        "sampler": asked.hr_sampler_name,
        "schedule": asked.hr_scheduler,
        "prompt": asked.hr_prompt,
        "negative_prompt": asked.hr_negative_prompt,
        "denoising_strength": asked.denoising_strength,
    }
    return {"hires": {name: value for name, value in told.items() if value not in (None, *SAME)}}


def _source(asked: Img2Img) -> dict[str, Any]:
    return {
        "denoising_strength": asked.denoising_strength,
        "mask_blur_px": _blur(asked) if asked.mask else None,
        "masked_content": None if asked.inpainting_fill is None else CONTENTS[asked.inpainting_fill],
        "mask_area": None if asked.inpaint_full_res is None else AREAS[asked.inpaint_full_res],
        "mask_padding_px": asked.inpaint_full_res_padding,
        "mask_mode": None if asked.inpainting_mask_invert is None else MASKS[asked.inpainting_mask_invert],
        "resize": None if asked.resize_mode is None else RESIZES[asked.resize_mode],
    }


def _blur(asked: Img2Img) -> int | None:
    """Raises SettingsError for a blur that isn't the same both ways."""
    both = asked.mask_blur_x, asked.mask_blur_y
    if asked.mask_blur is not None or both == (None, None):
        return asked.mask_blur
    across, down = (USUAL_BLUR if one is None else one for one in both)
    if across != down:
        raise SettingsError(
            f"mask_blur_x is {across} and mask_blur_y {down}", "the same, as AID has one blur"
        )
    return across


def _require_bearable(settings: GenerateSettings, megapixels: float) -> None:
    if settings.count > MOST_PICTURES:
        raise SettingsError(f"{settings.count} pictures are asked for at once", f"{MOST_PICTURES} at most")
    width, height = settings.width or LARGEST_NATIVE, settings.height or LARGEST_NATIVE
    if settings.hires:
        width, height = settings.hires.size(width, height)
    if width * height > megapixels * 1e6:
        raise SettingsError(f"{width}x{height} pixels are asked for", f"{megapixels:g} megapixels at most")
