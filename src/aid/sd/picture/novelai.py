"""What NovelAI writes into its pictures, told as A1111 tells it.

Its emphasis in braces stays as it is: A1111 takes it for text. Source: A1111 modules/images.py
(read_info_from_image); it takes samplers that it has under another name for Euler a too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from aid.sd.picture.infotext import NEGATIVE, encodable

SOFTWARE = "NovelAI"
SAMPLERS = {
    "k_euler": "Euler", "k_lms": "LMS", "k_heun": "Heun", "k_dpm_2": "DPM2", "k_dpm_2_ancestral": "DPM2 a",
    "k_dpmpp_2s_ancestral": "DPM++ 2S a", "k_dpmpp_2m": "DPM++ 2M", "k_dpmpp_sde": "DPM++ SDE",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE", "k_dpmpp_3m_sde": "DPM++ 3M SDE", "k_dpm_fast": "DPM fast",
    "k_dpm_adaptive": "DPM adaptive", "ddim": "DDIM", "ddim_v3": "DDIM", "plms": "PLMS",
}  # fmt: skip
OTHER_SAMPLER = "Euler a"
ALWAYS = "Clip skip: 2, ENSD: 31337"  # of NovelAI's first models


def novelai_infotext(texts: Mapping[str, str], size: tuple[int, int]) -> str:
    """A1111's text for a picture's texts by name; empty where they aren't NovelAI's, or not whole."""
    if texts.get("Software") != SOFTWARE:
        return ""
    try:
        told = json.loads(texts["Comment"])
        steps, scale, seed = (told[name] for name in ("steps", "scale", "seed"))
        prompt, negative = texts["Description"], told["uc"] or ""
        sampler = SAMPLERS.get(told["sampler"], OTHER_SAMPLER)
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""
    numbers = all(isinstance(number, int | float) for number in (steps, scale, seed))
    if not (numbers and isinstance(negative, str)):
        return ""
    fields = f"Steps: {steps}, Sampler: {sampler}, CFG scale: {scale}, Seed: {seed}"
    return f"{prompt}\n{NEGATIVE} {encodable(negative)}\n{fields}, Size: {size[0]}x{size[1]}, {ALWAYS}"
