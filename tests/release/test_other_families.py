"""Releases of SDXL and of models that predict v: cards, metadata and code are those of their family."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from aid.release.card import write_card
from aid.release.facts import Facts
from aid.release.language import wording
from aid.release.run import release
from aid.release.settings import ReleaseInputs, ReleaseSettings
from aid.release.usage import use
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.model.architecture import SD1, SD2, SDXL, TINY, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

QUICK = {
    'from_single_file("model.safetensors")': 'from_pretrained("folder")',
    "num_inference_steps=32": "num_inference_steps=2",
    "width=512, height=768": "width=64, height=64",
}
NOISY = {"prediction": "v", "zero_terminal_snr": True}


@pytest.fixture(scope="module")
def xl(inputs: ReleaseInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of a narrow SDXL model with an embedding, whose settings name no size."""
    folder = tmp_path_factory.mktemp("xl")
    save_checkpoint(create_checkpoint(TINY_SDXL, seed=1), folder / "xl.safetensors", {})
    save_embedding(pair("xlneg"), folder, {})
    given = ReleaseInputs(
        checkpoint=folder / "xl.safetensors",
        dataset=inputs.dataset,
        embeddings=[folder / "xlneg.safetensors"],
    )
    named = {"negative_embedding": "xlneg", "clip_skip": 2}
    settings = ReleaseSettings.model_validate({"precision": "fp32", "parameters": named})
    return release(settings, given, folder / "out")


def pair(name: str) -> Embedding:
    return Embedding(name, torch.randn(2, TINY_SDXL.text_width), torch.randn(2, TINY_SDXL.text_2_width))


def test_an_sdxl_releases_card_and_file_are_sdxls(xl: Path) -> None:
    card = (xl / "card.md").read_text()
    assert "layout of Stable Diffusion XL, but narrower layers (a U-Net of 8 channels" in card
    assert "clip skip" not in card.lower() and "--clip-skip" not in card, "SDXL has none"
    assert "- Sizes: 64x64" in card, "what it was trained at"
    assert '"stable-diffusion-xl"' in (xl / "README.md").read_text()
    with safe_open(xl / "model.safetensors", "pt") as file:
        told = file.metadata()
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/narrow"
    assert "modelspec.encoder_layer" not in told and "clip skip" not in told["modelspec.usage_hint"]


def test_a_card_says_what_a_model_predicts(facts: Facts) -> None:
    zero = SDXL.model_copy(update={"zero_terminal_snr": True})
    for language, v, noise in (("en", "predicts v, not noise", "pure noise"), ("zh", "预测的是 v", "纯噪声")):
        said = {
            name: write_card(replace(facts, architecture=architecture), language)
            for name, architecture in (("usual", SDXL), ("v", SD2), ("zero", zero))
        }
        assert v in said["v"] and v not in said["usual"] + said["zero"]
        assert noise in said["zero"] and noise not in said["usual"] + said["v"]


@pytest.mark.parametrize(("architecture", "told"), [(SD1, True), (SD2, False), (SDXL, False)])
def test_clip_skip_is_told_of_models_that_mind_it(
    facts: Facts, architecture: Architecture, told: bool
) -> None:
    assert ("clip skip" in full_size(facts, architecture).lower()) == told


def full_size(facts: Facts, architecture: Architecture) -> str:
    return write_card(replace(facts, architecture=architecture), "en")


@pytest.mark.parametrize("architecture", [SDXL, SD2, SD1.model_copy(update=NOISY)])
def test_a_model_of_real_widths_is_not_called_narrow(facts: Facts, architecture: Architecture) -> None:
    card = full_size(facts, architecture)
    assert "narrower layers" not in card and "With diffusers:" in card and "web UI" in card


@pytest.mark.parametrize(
    ("full", "tiny", "sampler"),
    [
        (SD1, TINY, "Euler a"),
        (SD1.model_copy(update=NOISY), TINY.model_copy(update=NOISY), "Euler a"),
        (SD1.model_copy(update=NOISY), TINY.model_copy(update=NOISY), "DPM++ 2M Karras"),
        (SDXL, TINY_SDXL, "Euler a"),
    ],
)
def test_the_cards_code_draws_with_diffusers(
    facts: Facts,
    full: Architecture,
    tiny: Architecture,
    sampler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it stands, but that the model comes from a folder: diffusers reads single files by the internet."""
    folder = tmp_path / "folder"
    save_checkpoint(create_checkpoint(tiny, seed=1), folder, {}, torch.float32, "diffusers")
    (tmp_path / "embeddings").mkdir()
    one = pair("aidbad") if tiny.text_2_width else Embedding("aidbad", torch.randn(2, tiny.text_width))
    save_embedding(one, tmp_path / "embeddings", {})
    catalogue = facts.catalogue
    advice = catalogue.parameters.model_copy(update={"sampler": sampler})
    told = replace(facts, architecture=full, catalogue=catalogue.model_copy(update={"parameters": advice}))
    text = use(told, wording("en"))
    code = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert code is not None
    quick = code[1]
    for words, instead in QUICK.items():
        assert words in quick
        quick = quick.replace(words, instead)
    monkeypatch.chdir(tmp_path)
    drawn: dict[str, Any] = {}
    exec(quick, drawn)
    assert drawn["picture"].size == (64, 64)
    config = drawn["pipe"].scheduler.config
    assert config.prediction_type == ("v_prediction" if full.prediction == "v" else "epsilon")
    assert bool(config.get("rescale_betas_zero_snr")) == full.zero_terminal_snr
    assert "aidbad_1" in drawn["pipe"].tokenizer.get_vocab(), "both vectors"
