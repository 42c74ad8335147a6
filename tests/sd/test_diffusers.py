"""What AID writes beside a model, loaded by diffusers' own functions into the same model of each family: an
embedding, and a LoRA under kohya's names. What the text encoders and the U-Net then give is ours too.

Whole models, both ways, stand in `model/test_family.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor

from aid.sd.adapter.file import load_adapter, save_adapter
from aid.sd.adapter.fitting import applied
from aid.sd.adapter.target import kohya_targets, targets_of
from aid.sd.adapter.use import Use
from aid.sd.embedding.file import Embedding, load_embedding, save_embedding
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.sd.model.tokenizer import load_tokenizer
from aid.sd.prompt.text import encode_prompts

FAMILIES = ("sd1", "sd2", "sdxl")
PROMPT = "by a learned cat, red hair"


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


def tokenizer(pad: str | None) -> Any:
    made = load_tokenizer.__wrapped__()  # its own, since diffusers adds words
    made.pad_token = pad or made.pad_token
    return made


def pipeline(model: StableDiffusion) -> Any:
    family, scheduler = model.architecture.family, EulerDiscreteScheduler()
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            model.vae, model.text_encoder, model.text_encoder_2, tokenizer(None), tokenizer("!"), model.unet,
            scheduler, add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        model.vae, model.text_encoder, tokenizer("!" if family == "sd2" else None), model.unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def their_context(pipe: Any) -> list[Tensor]:
    """And the pooled text of SDXL."""
    made = pipe.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return [one for one in made if one is not None]


def our_context(model: StableDiffusion, *embeddings: Embedding) -> list[Tensor]:
    made = encode_prompts(model, [PROMPT], embeddings={one.name: one for one in embeddings})
    return [one for one in (made.context, made.pooled) if one is not None]


def noise(model: Any, width: int, pooled: Tensor | None = None) -> Tensor:
    """The U-Net's, on a text that no text encoder made."""
    told = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0)} if pooled is not None else None
    text = random(2, 77, width, seed=1)
    made = model.unet(random(2, 4, 8, 8, seed=2), torch.tensor([10, 600]), text, added_cond_kwargs=told)
    sample: Tensor = made.sample
    return sample


def closest(ours: list[Tensor], theirs: list[Tensor], plain: list[Tensor]) -> None:
    """Within 1e-5 of each other, and far from what the model gives without the file."""
    for one, other, without in zip(ours, theirs, plain, strict=True):
        assert (one - other).norm() / other.norm() < 1e-5
        assert (one - without).norm() / without.norm() > 1e-3


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_embeddings(family: str, suffix: str, family_files: dict[str, Path], tmp_path: Path) -> None:
    ours, theirs = load_checkpoint(family_files[family]), load_checkpoint(family_files[family])
    widths = ours.architecture.text_width, ours.architecture.text_2_width or None
    vectors = [random(3, width, seed=7) for width in widths if width]
    save_embedding(Embedding("learned", *vectors), tmp_path, {})
    path, plain = tmp_path / f"learned.{suffix}", our_context(ours)
    pipe = pipeline(theirs)
    if family == "sdxl":  # diffusers wants to be told which tensor is whose
        stored = load_file(path) if suffix == "safetensors" else torch.load(path)
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            pipe.load_textual_inversion(
                stored[key], "learned", text_encoder=getattr(pipe, f"text_encoder{number}"),
                tokenizer=getattr(pipe, f"tokenizer{number}"),
            )  # fmt: skip
    else:
        pipe.load_textual_inversion(str(path), "learned")
    closest(our_context(ours, load_embedding(path, *widths)), their_context(pipe), plain)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_loras(family: str, family_files: dict[str, Path], tmp_path: Path) -> None:
    """On all that kohya trains, convolutions too, at a weight for each part; alpha is half the rank."""
    ours, theirs = load_checkpoint(family_files[family]), load_checkpoint(family_files[family])
    tensors = {}
    for seed, (name, target) in enumerate(kohya_targets(targets_of(ours), True).items()):
        out, into, *kernel = target.shape
        tensors[f"{name}.lora_down.weight"] = random(2, into, *kernel, seed=2 * seed)
        tensors[f"{name}.lora_up.weight"] = random(out, 2, *[1] * len(kernel), seed=2 * seed + 1)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_adapter(tmp_path / "style.safetensors", tensors, {})
    width, width_2 = ours.architecture.context_width, ours.architecture.text_2_width
    pooled = random(2, width_2, seed=3) if width_2 else None
    plain = [*our_context(ours), noise(ours, width, pooled)]
    pipe = pipeline(theirs)
    pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style")
    parts = {"unet": 0.8, "text_encoder": 0.3} | ({"text_encoder_2": 0.3} if width_2 else {})
    pipe.set_adapters("style", adapter_weights=parts)
    with applied(ours, [Use(load_adapter(tmp_path / "style.safetensors"), 0.3, 0.8)]) as matches:
        assert not matches[0].unmatched
        made = [*our_context(ours), noise(ours, width, pooled)]
        closest(made, [*their_context(pipe), noise(pipe, width, pooled)], plain)
