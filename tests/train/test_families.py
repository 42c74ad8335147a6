"""SD2 and SDXL, v-prediction and zero terminal SNR, and parts that learn at their own rates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import QUICK
from tests.interrupting import Interrupting

from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import ModelError, SettingsError
from aid.sd.embedding.file import load_embedding
from aid.sd.file.tensorfile import read_tensors
from aid.sd.model.architecture import TINY_SD2, TINY_SDXL
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint
from aid.sd.prompt.text import encode_prompts
from aid.train.embedding import embedding
from aid.train.lora import lora
from aid.train.run import finetune
from aid.train.settings import (
    EmbeddingInputs,
    EmbeddingSettings,
    FinetuneInputs,
    LoraInputs,
    LoraSettings,
)
from aid.train.step.condition import encode_captions

FAMILIES = {"sd2": TINY_SD2, "sdxl": TINY_SDXL}
BENCH = Workbench(threads=1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, chance = tmp_path_factory.mktemp("bases"), torch.Generator().manual_seed(2)
    for name, architecture in FAMILIES.items():
        model = create_checkpoint(architecture, 1)
        for parameter in model.unet.parameters():  # no layer is silent, so that all learn from the first step
            spread = 0.0 if parameter.any() else 0.1
            parameter.data += spread * torch.randn(parameter.shape, generator=chance)
        save_checkpoint(model, folder / f"{name}.safetensors", {})
    return {name: folder / f"{name}.safetensors" for name in FAMILIES}


def changed(before: Path, after: Path) -> set[str]:
    old, new = read_tensors(before), read_tensors(after / "model.safetensors")
    assert set(old) <= set(new)
    return {key for key in old if not torch.equal(old[key], new[key])}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_it_learns_and_continues_to_the_bit(
    bases: Mapping[str, Path], dataset: Path, tmp_path: Path, family: str
) -> None:
    inputs = FinetuneInputs(checkpoint=bases[family], dataset=dataset)
    settings = QUICK.model_copy(update={"steps": 4, "output": "fp32"})
    straight = finetune(settings, inputs, tmp_path / "straight", BENCH)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(3)))
    again = finetune(settings, inputs, tmp_path / "out", BENCH)
    assert (again / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    keys = changed(bases[family], straight)
    first, second = ("embedders.0.", "embedders.1.") if family == "sdxl" else ("cond_stage", "cond_stage")
    for part in ("model.diffusion_model", first, second):
        assert any(part in key for key in keys), part
    assert load_checkpoint(straight).architecture == FAMILIES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_encoded_as_prompts_are(bases: Mapping[str, Path], family: str) -> None:
    model, captions = load_checkpoint(bases[family]), ["by alpha, red hair", ""]
    ours, theirs = encode_captions(model, captions, 1), encode_prompts(model, captions)
    torch.testing.assert_close(ours.context, theirs.context)
    assert (ours.pooled is None) == (theirs.pooled is None)
    if ours.pooled is not None and theirs.pooled is not None:
        torch.testing.assert_close(ours.pooled, theirs.pooled)


def test_sdxls_encoders_have_rates_and_stops_of_their_own(
    bases: Mapping[str, Path], dataset: Path, tmp_path: Path
) -> None:
    inputs = FinetuneInputs(checkpoint=bases["sdxl"], dataset=dataset)
    settings = QUICK.model_copy(update={"steps": 2, "output": "fp32", "ema": 0.0, "weight_decay": 0.0})
    made = finetune(settings.model_copy(update={"text_2_rate": 0.0}), inputs, tmp_path / "one", BENCH)
    keys = changed(bases["sdxl"], made)
    assert any("embedders.0" in key for key in keys) and not any("embedders.1" in key for key in keys)
    stopped = settings.model_copy(update={"steps": 3, "text_stop": 1, "schedule": "constant"})
    after = finetune(stopped, inputs, tmp_path / "stopped", BENCH)
    until = finetune(stopped.model_copy(update={"steps": 1}), inputs, tmp_path / "until", BENCH)
    ours, theirs = (read_tensors(path / "model.safetensors") for path in (after, until))
    for key in ours:
        if "embedders" in key:
            assert torch.equal(ours[key], theirs[key]), key
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours if "diffusion_model" in key)


@pytest.mark.parametrize(
    ("family", "change", "told"),
    [
        ("sdxl", {"clip_skip": 2}, "clip_skip is 2, and SDXL has none"),
        ("sd2", {"text_2_rate": 1e-3}, "text_2_rate is 0.001, and SD2 has one text encoder"),
        ("sd2", {"text_2_stop": 1}, "text_2_stop is 1, and SD2 has one text encoder"),
        ("sd2", {"unet_stop": 2, "text_stop": 1}, "stands still after step 2 of 3; expected 2 steps"),
        ("sdxl", {"text_rate": 0.0, "text_2_rate": 0.0, "unet_stop": 1}, "stands still after step 1 of 3"),
        ("sd2", {"samples": {"every": 2}}, "sheets of nothing; expected samples.prompts"),
        ("sd2", {"samples": {"every": 2, "prompts": ["a, <lora:b:1>"]}}, "calls a LoRA: a, <lora:b:1>"),
        ("sd2", {"optimiser": "adafactor", "betas": (0.9, 0.99)}, "adafactor has no option betas"),
    ],
)
def test_what_would_do_nothing_is_refused_before_the_first_step(
    bases: Mapping[str, Path], dataset: Path, tmp_path: Path, family: str, change: Any, told: str
) -> None:
    settings = LoraSettings(steps=3, batch_size=3, regularisation_share=0.34, **change)
    inputs = LoraInputs(checkpoint=bases[family], dataset=dataset)
    with pytest.raises(SettingsError, match=re.escape(told)):
        lora(settings, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(1)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_blocks_have_rates_of_their_own(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    rates = {"IN": 0.0, "IN04-05": 1.0, "BASE": 0.0}
    settings = QUICK.model_copy(update={"steps": 2, "block_rates": rates, "output": "fp32"})
    inputs = FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)
    keys = changed(tiny_checkpoint, finetune(settings, inputs, tmp_path / "out", BENCH))
    blocks = {block_of(key) for key in keys if "diffusion" in key}
    assert {block for block in blocks if block.startswith("IN")} <= {"IN04", "IN05"} and "OUT11" in blocks
    assert not any(key.startswith("cond_stage") and "position" not in key for key in keys)


def test_a_model_learns_to_predict_v_and_says_so(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"steps": 1, "prediction": "v", "zero_terminal_snr": True})
    inputs = FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)
    made = load_checkpoint(finetune(settings, inputs, tmp_path / "out", BENCH))
    assert made.architecture.prediction == "v" and made.architecture.zero_terminal_snr


def test_every_loss_option_at_once_trains(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    change: dict[str, Any] = {
        "steps": 3, "weighting": "debiased", "distance": "huber", "noise_offset": 0.05, "pyramid_levels": 4,
        "input_perturbation": 0.1, "masked": True,
    }  # fmt: skip
    timesteps = QUICK.timesteps.model_copy(update={"law": "logit_normal"})
    settings = QUICK.model_copy(update={**change, "timesteps": timesteps})
    inputs = FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)
    assert (finetune(settings, inputs, tmp_path / "out", BENCH) / "model.safetensors").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_is_learned(bases: Mapping[str, Path], dataset: Path, tmp_path: Path, family: str) -> None:
    settings = EmbeddingSettings(name="bad", vectors=2, steps=3, batch_size=2, save_every=1)
    inputs = EmbeddingInputs(checkpoint=bases[family], pictures=dataset)
    made = load_embedding(embedding(settings, inputs, tmp_path / "out", BENCH) / "bad.safetensors")
    assert made.vectors.shape == (2, 16)
    assert (made.vectors_g is not None) == (family == "sdxl")


def test_latents_of_another_familys_vae_are_refused_before_work_starts(
    bases: Mapping[str, Path], pictures: Path, tmp_path: Path
) -> None:
    held, whole = PrepareSettings(resolution_px=64, buckets=False), {"alpha": pictures / "alpha"}
    made = {
        name: prepare(held, PrepareInputs(pictures=whole, vae=bases[name]), tmp_path / name)
        for name in FAMILIES
    }
    settings = QUICK.model_copy(update={"steps": 1, "regularisation_share": 0.0})
    for name, other in (("sdxl", "sd2"), ("sd2", "sdxl")):
        inputs = FinetuneInputs(checkpoint=bases[name], dataset=made[other])
        with pytest.raises(ModelError, match=rf"{other} multiplies latents by .*; expected .* --vae"):
            finetune(settings, inputs, tmp_path / "refused", BENCH)
        word = EmbeddingInputs(checkpoint=bases[name], pictures=made[other])
        with pytest.raises(ModelError, match="multiplies latents by"):
            embedding(EmbeddingSettings(steps=1), word, tmp_path / "word", BENCH)
        finetune(settings, inputs.model_copy(update={"dataset": made[name]}), tmp_path / f"{name} own", BENCH)
