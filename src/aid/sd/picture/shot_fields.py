"""A shot as the fields of A1111's text, and back. Fields without a name in A1111 have AID's own.

Source: A1111 modules/processing.py (names and order), infotext_utils.py and infotext_versions.py (what a
missing field means, by version). What ComfyUI and Fooocus do: comfy/sample.py (prepare_noise).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from aid.core.shot import Hires, Shot, Source
from aid.errors import SettingsError

SIZE = re.compile(r"^(\d+)x(\d+)$")
MOST_DIGITS = 5  # of a side
VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-(\d{1,9}))?")
EDITING_CHANGED, ALPHAS_CHANGED = (1, 6, 0, 0), (1, 7, 0, 225)
EMBEDDINGS_LISTED = (1, 6)  # at the latest
SAMPLER_ETA = "Eta DDIM"  # A1111's name for it where the sampler is DDIM
FIRST = ("Denoising strength", "Conditional mask weight")  # of a second pass's fields
FIRST_SIZE = "First pass size"
SCHEDULER = "Scheduler"  # some tools' name for the schedule's type
CPU_NOISE = ("ComfyUI", "Fooocus")  # tools that write A1111's fields, but draw noise on the CPU
NOISE_SCHEDULE = "Noise Schedule"  # of the model, or in place of its own
HIRES = ("Hires upscale", "Hires resize", "Hires upscaler")
HIRES_LAST = ("Hires steps", "Hires upscaler")

Fields = dict[str, str]

PLAIN = {
    "steps": "Steps",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "clip_skip": "Clip skip",
    "clip_l_skip": "Clip skip SDXL",
    "variation_seed": "Variation seed",
    "variation_strength": "Variation seed strength",
    "seed_delta": "ENSD",
    "noise_source": "RNG",
    "emphasis": "Emphasis",
    "old_editing": "Old prompt editing timelines",
    "downcast_alphas": "Downcast alphas_cumprod",
    "cfg_rescale": "CFG rescale",
}
"""Field of a shot -> its name, where the value is written as it is."""
OF_SOURCE = {
    "denoising_strength": "Denoising strength",
    "mask_weight": "Conditional mask weight",
    "sha256": "Init image sha256",
    "mask_sha256": "Mask sha256",
    "mask_mode": "Mask mode",
    "mask_blur_px": "Mask blur",
    "mask_area": "Inpaint area",
    "mask_padding_px": "Masked area padding",
    "masked_content": "Masked content",
    "resize": "Resize mode",
}
OF_HIRES = {
    "denoising_strength": "Denoising strength",
    "sampler": "Hires sampler",
    "prompt": "Hires prompt",
    "negative_prompt": "Hires negative prompt",
    "schedule": "Hires schedule type",
    "scale": "Hires upscale",
    "steps": "Hires steps",
    "upscaler": "Hires upscaler",
}


OTHERS = {
    "Size", "Eta", SAMPLER_ETA, "CFG sigmas", "Init image", "Mask", *HIRES, "Model hash", "Model", "VAE hash",
    "VAE", "Lora hashes", "TI hashes", "Version", "User", "Hashes", "Init image hash", "Civitai resources",
    "Civitai metadata", "Created Date", FIRST_SIZE, "Template", "Negative Template", "Batch size",
    "Batch pos", "Batch index", "Time taken", "Raw prompt", "Raw negative prompt", SCHEDULER, NOISE_SCHEDULE,
}  # fmt: skip
"""Fields that are read elsewhere, or decide no pixel."""


def unread_fields(fields: Mapping[str, str]) -> Fields:
    """Those that may decide how a picture looks, and that AID can't draw with."""
    known = {*PLAIN.values(), *OF_SOURCE.values(), *OF_HIRES.values(), *OTHERS}
    return {key: value for key, value in fields.items() if key not in known and value not in ("", "False")}


def written_fields(shot: Shot) -> tuple[Fields, Fields, Fields]:
    """The fields before those of the model, between them and the other weights', and after these. Empty ones
    are not to be written."""
    before = {
        **_named(shot, "steps", "sampler", "schedule", "cfg_scale", "seed"),
        "Size": f"{shot.width}x{shot.height}",
    }
    second = _fields_of_source(shot.source) if shot.source else {}
    second |= _fields_of_hires(shot.hires) if shot.hires else {}
    first = {key: second.pop(key) for key in FIRST if key in second}
    between = {
        **_changed(shot, "variation_seed", "variation_strength"),
        **first,
        **_changed(shot, "clip_skip", "clip_l_skip", "seed_delta"),
        "RNG": "" if shot.noise_source == "GPU" else shot.noise_source,
        **second,
    }
    after = {
        **_changed(shot, "emphasis", "old_editing"),
        SAMPLER_ETA if shot.sampler == "DDIM" else "Eta": "" if shot.eta is None else _number(shot.eta),
        **_changed(shot, "downcast_alphas", "cfg_rescale"),
        "CFG sigmas": " ".join(map(_number, shot.cfg_sigmas or ())),
    }
    return before, between, after


def read_fields(prompt: str, negative_prompt: str, fields: Mapping[str, str]) -> Shot:
    """The shot that a text's fields describe. Raises SettingsError for a value that no picture can have."""
    fields = _with_second_pass(fields)
    if SCHEDULER in fields:
        fields = {PLAIN["schedule"]: fields[SCHEDULER], **fields}
    given: dict[str, Any] = {name: fields[key] for name, key in PLAIN.items() if key in fields}
    given |= _implied(fields, prompt + negative_prompt)
    if skip := given.get("clip_skip"):  # ComfyUI counts from -1; for A1111, too, 0 is the last layer
        given["clip_skip"] = "1" if skip == "0" else skip.removeprefix("-")
    if size := SIZE.match(fields.get("Size", "")):
        given |= {"width": size[1], "height": size[2]}
    if eta := fields.get("Eta") or fields.get(SAMPLER_ETA):
        given["eta"] = eta
    if sigmas := fields.get("CFG sigmas"):
        given["cfg_sigmas"] = sigmas.split()
    if any(key in fields for key in HIRES):
        given["hires"] = _read_hires(fields)
    elif "Denoising strength" in fields:
        given["source"] = _read_source(fields)
    try:
        shot = Shot.model_validate({"prompt": prompt, "negative_prompt": negative_prompt, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "something"
        told = f" = {first['input']!r}" if first["loc"] else " else"
        expected = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"the picture's text says {name}{told}", expected) from error
    from aid.sd.sampling.course import AUTOMATIC, well_named

    shot = well_named(shot)
    if _tool(fields) == "ComfyUI" and shot.schedule == AUTOMATIC:
        return shot.model_copy(update={"schedule": "Normal"})  # its savers leave that one out
    return shot


def _named(part: Shot | Source | Hires, *names: str) -> Fields:
    return {PLAIN[name]: _text(getattr(part, name)) for name in names}


def _changed(shot: Shot, *names: str) -> Fields:
    """Those that are not the default. (A variation's seed is written with its strength.)"""
    usual = type(shot).model_fields
    return _named(shot, *(name for name in names if getattr(shot, name) != usual[name].default))


def _fields_of_source(source: Source) -> Fields:
    """Those that are not the default, and those that A1111 always writes."""
    usual = type(source).model_fields
    told = {"denoising_strength", *(("mask_blur_px",) if source.mask or source.mask_sha256 else ())}
    told |= {name for name in OF_SOURCE if getattr(source, name) != usual[name].default}
    return {
        "Init image": PurePath(source.picture).name,
        "Mask": PurePath(source.mask).name,
        **{key: _text(getattr(source, name)) for name, key in OF_SOURCE.items() if name in told},
    }


def _fields_of_hires(hires: Hires) -> Fields:
    fields = {key: _text(getattr(hires, name)) for name, key in OF_HIRES.items()}
    if hires.width or hires.height:
        last = {key: fields.pop(key) for key in HIRES_LAST}
        fields |= {"Hires resize": f"{hires.width}x{hires.height}", **last}
        if hires.scale == type(hires).model_fields["scale"].default:
            fields["Hires upscale"] = ""
    if not hires.steps:
        fields["Hires steps"] = ""
    return fields


def _read_source(fields: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {name: fields[key] for name, key in OF_SOURCE.items() if key in fields}
    return {**given, "picture": fields.get("Init image", ""), "mask": fields.get("Mask", "")}


def _read_hires(fields: Mapping[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {name: fields[key] for name, key in OF_HIRES.items() if key in fields}
    if given.get("schedule") == "Use same scheduler":
        del given["schedule"]
    if given.get("sampler") == "Use same sampler":
        del given["sampler"]
    if given.get("upscaler") == "None":
        given["upscaler"] = "Lanczos"  # what A1111 resizes with where no upscaler is chosen
    if size := SIZE.match(fields.get("Hires resize", "")):
        given |= {"width": size[1], "height": size[2]}
    return given


def _implied(fields: Mapping[str, str], prompts: str) -> dict[str, Any]:
    """What A1111 means by the fields that are not there: noise of the GPU; by its version, old rules. What
    other tools do that write them too. Nothing for a text without fields."""
    if "Steps" not in fields:
        return {}
    if tool := _tool(fields):
        emphasis = {"emphasis": "ComfyUI"} if tool == "ComfyUI" and "Emphasis" not in fields else {}
        return emphasis | ({} if "RNG" in fields else {"noise_source": "CPU"})
    implied: dict[str, Any] = {} if "RNG" in fields else {"noise_source": "GPU"}
    if made := _version(fields):
        implied |= {"old_editing": True} if made < EDITING_CHANGED and "[" in prompts else {}
        implied |= {"downcast_alphas": True} if made < ALPHAS_CHANGED else {}
    return implied


def _with_second_pass(fields: Mapping[str, str]) -> Mapping[str, str]:
    """A text of 2022 as A1111 reads it now: it had the first pass's size (0x0: chosen by A1111) beside the
    finished picture's. That was enlarged as a picture, unless one had set otherwise, which no field told."""
    first, whole = (SIZE.match(fields.get(key, "")) for key in (FIRST_SIZE, "Size"))
    if not (first and whole):
        return fields
    width, height = _sides(first)
    if not (width and height):
        width, height = _first_size(*_sides(whole))
    return {"Hires upscaler": "Lanczos", **fields, "Size": f"{width}x{height}", "Hires resize": whole[0]}


def _sides(size: re.Match[str]) -> tuple[int, int]:
    width, height = size.groups()
    if max(len(width), len(height)) > MOST_DIGITS:
        raise SettingsError(f"the picture's text says a size of {size[0]}", "8192 pixels a side at most")
    return int(width), int(height)


def _first_size(width: int, height: int) -> tuple[int, int]:
    """In the same proportions about as many pixels as 512x512 has, in multiples of 64."""
    scale = 512 / math.sqrt(max(1, width * height))
    return math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64


def tells_no_embeddings(fields: Mapping[str, str]) -> bool:
    """Whether it is a text of the time when A1111 didn't list the embeddings that prompts use."""
    made = () if "Version" not in fields else _version(fields) or (math.inf,)
    return "TI hashes" not in fields and made < EMBEDDINGS_LISTED


def _tool(fields: Mapping[str, str]) -> str:
    """The one of CPU_NOISE that wrote the text, if one did."""
    return next((tool for tool in CPU_NOISE if fields.get("Version", "").startswith(tool)), "")


def _version(fields: Mapping[str, str]) -> tuple[int, ...]:
    """A1111's; empty for any other tool's, and for none."""
    found = VERSION.match(fields.get("Version", ""))
    return tuple(int(number or 0) for number in found.groups()) if found else ()


def _text(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
