"""The card's ways to draw with a release: AID's command, the web UI's folders, diffusers' code."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from aid.core.release import EMBEDDING_FOLDER, MODEL_FILE
from aid.core.shot import Shot
from aid.release.facts import Facts
from aid.release.language import Wording
from aid.release.markdown import fenced, section
from aid.sd.model.architecture import Architecture
from aid.sd.prompt.prompt import escape

PAIRS = (("clip_l", ""), ("clip_g", "_2"))  # an SDXL embedding's halves, and the parts of a pipeline


def use(facts: Facts, words: Wording) -> str:
    """The ways to draw with the release; tools that can't open a narrow model aren't named for one."""
    trigger = escape(next(iter(facts.catalogue.triggers()), ""))
    prompt = facts.catalogue.parameters.positive(trigger)
    parts = [words.say("use_aid"), fenced(command(facts, prompt), "sh")]
    if not facts.architecture.is_narrow:
        file = f"{facts.settings.name}-{facts.settings.version}.safetensors"
        embeddings = words.say("use_webui_embeddings") if facts.embeddings else ""
        parts += [words.say("use_webui", file=file, embeddings=embeddings)]
        parts += [words.say("use_diffusers"), fenced("\n".join(script(facts, prompt)), "python")]
    return section(words.say("use"), *parts)


def command(facts: Facts, prompt: str) -> str:
    """A command line that draws as recommended; what AID does unasked is left out."""
    advice, usual = facts.catalogue.parameters, Shot(prompt="")
    (width, height), native = advice.sizes[0], facts.architecture.native_edge_px
    skips = facts.architecture.has_clip_skip
    flags = {
        "checkpoint": ".",
        "embeddings": EMBEDDING_FOLDER if facts.embeddings else "",
        "negative-prompt": advice.negative(),
        "sampler": "" if advice.sampler == usual.sampler else advice.sampler,
        "steps": "" if advice.steps[0] == usual.steps else str(advice.steps[0]),
        "clip-skip": str(advice.clip_skip) if skips and advice.clip_skip != usual.clip_skip else "",
        "cfg-scale": "" if advice.cfg_scale in (None, usual.cfg_scale) else f"{advice.cfg_scale:g}",
        "width": "" if width == native else str(width),
        "height": "" if height == native else str(height),
    }
    given = [f"--{flag} {shlex.quote(value)}" for flag, value in flags.items() if value]
    return " ".join(["aid generate", shlex.quote(prompt), *given])


def script(facts: Facts, prompt: str) -> Iterator[str]:
    """Lines of Python that draw the same with diffusers."""
    advice, architecture = facts.catalogue.parameters, facts.architecture
    is_xl, predicted = architecture.family == "sdxl", _predicted(architecture)
    pipeline = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    usual = "EulerDiscreteScheduler" if predicted else ""  # diffusers' usual one can't be told all
    scheduler = "EulerAncestralDiscreteScheduler" if advice.sampler == "Euler a" else usual
    yield f"from diffusers import {', '.join(filter(None, (scheduler, pipeline)))}"
    if is_xl and facts.embeddings:
        yield "from safetensors.torch import load_file"
    yield ""
    yield f'pipe = {pipeline}.from_single_file("{MODEL_FILE}")'
    if scheduler:
        yield f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config{predicted})"
    for one in facts.embeddings:
        yield from _loading(one.name, is_xl)
    guidance = "" if advice.cfg_scale is None else f"guidance_scale={advice.cfg_scale:g}, "
    size = f"width={advice.sizes[0][0]}, height={advice.sizes[0][1]}"
    yield f"prompt = {json.dumps(prompt, ensure_ascii=False)}"
    yield f"negative = {json.dumps(advice.negative(), ensure_ascii=False)}"
    yield "picture = pipe("
    yield f"    prompt, negative_prompt=negative, num_inference_steps={advice.steps[0]}, {guidance}{size}"
    yield ").images[0]"


def _predicted(architecture: Architecture) -> str:
    """What a scheduler is told that can't see it from the file."""
    told = ', prediction_type="v_prediction"' if architecture.prediction == "v" else ""
    if architecture.zero_terminal_snr:
        told += ', rescale_betas_zero_snr=True, timestep_spacing="trailing"'
    return told


def _loading(name: str, is_xl: bool) -> Iterator[str]:
    """An embedding, by its stem; each half of SDXL's to the encoder that it is for."""
    file = f"{EMBEDDING_FOLDER}/{name}.safetensors"
    if not is_xl:
        yield f'pipe.load_textual_inversion("{file}", token="{name}")'
        return
    yield f'vectors = load_file("{file}")'
    for half, which in PAIRS:
        parts = f"tokenizer=pipe.tokenizer{which}, text_encoder=pipe.text_encoder{which}"
        yield f'pipe.load_textual_inversion(vectors["{half}"], token="{name}", {parts})'
