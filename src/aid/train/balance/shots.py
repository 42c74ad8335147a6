"""What is drawn while training, with fixed seeds, so that whatever changes is the model."""

from __future__ import annotations

from collections.abc import Sequence

from aid.core.dataset import Dataset
from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.sd.prompt.adapter_call import extract_loras
from aid.sd.prompt.prompt import verbatim
from aid.train.settings import CommonSettings
from aid.train.tables import ALL_STYLES


def sample_shots(settings: CommonSettings, dataset: Dataset, edge_px: int) -> list[Shot]:
    """The sheets' shots, seeds 0, 1, 2, ...: the prompts given, then each chosen style's. `edge_px` is the
    size where the settings name none. Raises SettingsError where there is nothing to draw, and for a prompt
    that calls a LoRA: a sheet shows what is trained."""
    samples = settings.samples
    chosen = dataset.styles() if ALL_STYLES in samples.styles else samples.styles
    asked = [
        *(("", prompt) for prompt in samples.prompts),
        *style_prompts(dataset, chosen, samples.per_style),
    ]
    if not asked:
        raise SettingsError("samples.every asks for sheets of nothing", "samples.prompts or samples.styles")
    for _, prompt in asked:
        if extract_loras(prompt)[1]:
            raise SettingsError(f"a sheet's prompt calls a LoRA: {prompt}", "prompts without `<lora:...>`")
    return [sample_shot(*one, seed, settings, edge_px) for seed, one in enumerate(asked)]


def style_prompts(dataset: Dataset, styles: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Style and caption of at most `count` pictures of each style, held-out ones first. Raises SettingsError
    for a style that has no pictures."""
    asked = []
    for style in styles:
        own = [record for record in dataset.records if record.style == style]
        if not own:
            known = ", ".join(dataset.styles())
            raise SettingsError(f"samples.styles names {style}, of which there are no pictures", known)
        own.sort(key=lambda record: record.split != "held")
        words = ((record.trigger, *record.tags) for record in own[:count])
        asked += [(style, ", ".join(filter(None, map(verbatim, one)))) for one in words]
    return asked


def sample_shot(style: str, prompt: str, seed: int, settings: CommonSettings, edge_px: int) -> Shot:
    samples = settings.samples
    width, height = samples.size(edge_px)
    return Shot(
        prompt=prompt,
        style=style,
        negative_prompt=samples.negative_prompt,
        seed=seed,
        steps=samples.steps,
        cfg_scale=samples.cfg_scale,
        width=width,
        height=height,
        clip_skip=settings.clip_skip,
    )
