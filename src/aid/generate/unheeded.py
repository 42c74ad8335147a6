"""Settings that are given and change no picture, as something that they need is not given."""

from __future__ import annotations

from collections.abc import Iterator

from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.sampling.course import split_name
from aid.sd.sampling.samplers import TRAITS

OF_MASK = ("mask_blur_px", "masked_content", "mask_mode", "mask_area", "mask_padding_px")
OF_PICTURE = ("denoising_strength", "resize", "mask_weight")


def unheeded(settings: GenerateSettings, inputs: GenerateInputs) -> Iterator[str]:
    """A sentence for each reason, such as `resize says nothing without --init`."""
    usual = type(settings).model_fields
    given = {name for name in settings.model_fields_set if getattr(settings, name) != usual[name].default}
    if inputs.shots is not None:
        return  # they decide
    for reason, names in _reasons(settings, inputs):
        if idle := [name for name in names if name in given]:
            yield f"{' and '.join(idle)} {'says' if len(idle) == 1 else 'say'} nothing {reason}"


def _reasons(settings: GenerateSettings, inputs: GenerateInputs) -> Iterator[tuple[str, tuple[str, ...]]]:
    if inputs.init is None:
        yield "without --init", OF_PICTURE
    if inputs.mask is None:
        yield "without --mask", OF_MASK
    elif settings.mask_area == "Whole picture":
        yield "where the whole picture is drawn", ("mask_padding_px",)
    if settings.format == "png":
        yield "of a PNG", ("quality",)
    if not settings.variation_strength:
        yield "at a variation_strength of 0", ("variation_seed",)
    if "template" not in settings.model_fields_set:
        yield "without --template", ("prompt_template", "negative_template")
    if settings.plan is not None:
        yield "beside a plan", ("count", "styles")
    second = settings.hires.sampler if settings.hires else ""
    samplers = [split_name(name)[0] for name in (settings.sampler, second or settings.sampler)]
    traits = [TRAITS[name] for name in samplers if name in TRAITS]
    if all(trait.eta is None for trait in traits):
        yield f"to {samplers[0]}, which has none", ("eta",)
    if all(trait.own_levels for trait in traits):
        yield f"to {samplers[0]}, which has a schedule of its own", ("schedule",)
