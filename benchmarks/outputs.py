"""What diffusers computes with AID's files, and AID with diffusers': an SD1.5 or SDXL of real size and random
weights, or a small one (the starter) where there isn't memory for that.

    python benchmarks/outputs.py [--family sdxl] [--small] [--folder FOLDER] [--json FILE]

Text, the U-Net's noise, and the VAE both ways, in fp32: of a single file and of a diffusers folder; then with
an embedding and with a LoRA, in AID's files and in diffusers'. A figure is a difference's norm over that of
what diffusers gives; beside it, how far the embedding and the LoRA change this. Each side is a process of its
own, and no more than one model is in memory. `files.py` runs this at its end for SD1.5.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting import Row, report

if TYPE_CHECKING:
    from torch import Tensor

    from aid.sd.model.checkpoint import StableDiffusion

LIMIT = 1e-5
LEAST_EFFECT = 1e-3  # of what is put on: a comparison without effect says nothing
NEEDED_BYTES = {"sd1": 10 << 30, "sdxl": 17 << 30}  # about what the largest of the processes takes, and more
REAL_NAMES, SMALL_NAMES = {"sd1": "SD1.5", "sdxl": "SDXL"}, {"sd1": "starter", "sdxl": "tiny SDXL"}
PROMPT = "by a learned cat, red hair"
WORD, STYLE = "learned", "style"
SDXL_EVERY = 7  # of the modules wears a LoRA: what they were is kept beside them meanwhile, 9 GB of all
EDGE = 32  # of the latents
MADE, FOLDER, THEIR_FOLDER = "model.safetensors", "folder", "theirs"
THEIR_LORA, THEIR_WORD = "pytorch_lora_weights.safetensors", "theirs-word.safetensors"


def random(*shape: int, seed: int) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


# The jobs, each in a process of its own


def make(folder: Path, name: str) -> None:
    """The model, as a file and as a folder, an embedding, and a LoRA of kohya's usual modules."""
    import torch

    from aid import starter
    from aid.sd.adapter.file import save_adapter
    from aid.sd.adapter.target import kohya_targets, targets_of
    from aid.sd.conversion import Conversion, convert
    from aid.sd.embedding.file import Embedding, save_embedding
    from aid.sd.model.architecture import SD1, SDXL, TINY_SDXL
    from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint

    if name == "starter":
        model = load_checkpoint(starter.BASE)
    else:
        torch.set_default_dtype(torch.float16)  # of what is made and saved: half the memory
        model = create_checkpoint({"SD1.5": SD1, "SDXL": SDXL, "tiny SDXL": TINY_SDXL}[name], seed=1)
        torch.set_default_dtype(torch.float32)
        enliven(model)
    save_checkpoint(model, folder / MADE, {}, torch.float16)
    convert(folder / MADE, folder / FOLDER, Conversion())
    width, width_2 = model.architecture.text_width, model.architecture.text_2_width
    second = random(3, width_2, seed=8) if width_2 else None
    save_embedding(Embedding(WORD, random(3, width, seed=7), second), folder, {})
    tensors = {}
    every = SDXL_EVERY if width_2 else 1
    for seed, (name, target) in list(enumerate(kohya_targets(targets_of(model), False).items()))[::every]:
        out, into, *kernel = target.shape
        tensors[f"{name}.lora_down.weight"] = random(4, into, *kernel, seed=2 * seed) / into**0.5
        tensors[f"{name}.lora_up.weight"] = random(out, 4, *[1] * len(kernel), seed=2 * seed + 1)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_adapter(folder / f"{STYLE}.safetensors", tensors, {})


def enliven(model: StableDiffusion) -> None:
    """Random values where a new model has zeros, so that no layer is silent."""
    for module in model.modules():
        for seed, parameter in enumerate(module.parameters()):
            if not parameter.any():
                parameter.data += random(*parameter.shape, seed=seed) / 10


def ours(folder: Path, source: str) -> None:
    """AID's outputs with its own files ("made"), or with those that diffusers wrote ("theirs")."""
    import torch

    from aid.sd.adapter.file import load_adapter
    from aid.sd.adapter.fitting import applied
    from aid.sd.adapter.use import Use
    from aid.sd.embedding.file import load_embedding
    from aid.sd.model.checkpoint import load_checkpoint
    from aid.sd.prompt.text import encode_prompts

    own = source == "made"
    model = load_checkpoint(folder / (MADE if own else THEIR_FOLDER))
    word = load_embedding(folder / (f"{WORD}.safetensors" if own else THEIR_WORD))
    known = {WORD: replace(word, name=WORD)}
    style = load_adapter(folder / (f"{STYLE}.safetensors" if own else THEIR_LORA))
    with torch.no_grad():
        plain, worded = encode_prompts(model, [PROMPT]), encode_prompts(model, [PROMPT], embeddings=known)
        found = outputs(model, texts(plain.context, plain.pooled))
        found |= texts(worded.context, worded.pooled, " with the embedding")
        with applied(model, [Use(style, 1.0, 1.0)]) as matches:
            assert not matches[0].unmatched, matches[0].unmatched[:3]
            styled = encode_prompts(model, [PROMPT])
            found |= texts(styled.context, styled.pooled, " with the LoRA")
            found["noise with the LoRA"] = noise(model)
    save(found, folder / f"ours-{source}.pt")


def theirs(folder: Path, _source: str) -> None:
    """diffusers' outputs with AID's files, which it then writes in its own way."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTokenizer

    from aid.sd.embedding.file import ONE, PAIR

    second = (folder / FOLDER / "text_encoder_2").is_dir()
    encoders = ["text_encoder", "text_encoder_2"][: 1 + second]
    tokenizers = [encoder.replace("text_encoder", "tokenizer") for encoder in encoders]
    read = {name: CLIPTokenizer.from_pretrained(folder / FOLDER / name) for name in tokenizers}
    others = {} if second else {"safety_checker": None, "feature_extractor": None}
    pipeline: Any = StableDiffusionXLPipeline if second else StableDiffusionPipeline
    pipe = pipeline.from_single_file(
        str(folder / MADE), config=str(folder / FOLDER), local_files_only=True, torch_dtype=torch.float16,
        **read, **others,
    )  # fmt: skip
    pipe.save_pretrained(folder / THEIR_FOLDER)
    pipe.to(torch.float32)

    def text(kind: str = "") -> dict[str, Tensor]:
        made = pipe.encode_prompt(
            PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return texts(made[0], made[2] if second else None, kind)

    with torch.no_grad():
        found = outputs(pipe, text())
        pipe.load_lora_weights(str(folder), weight_name=f"{STYLE}.safetensors", adapter_name=STYLE)
        found |= text(" with the LoRA")
        found["noise with the LoRA"] = noise(pipe)
        parts = {name: getattr(pipe, name) for name in ("unet", *encoders)}
        told: dict[str, Any] = {}
        for name, part in parts.items():
            told[f"{name}_lora_layers"] = get_peft_model_state_dict(part, adapter_name=STYLE)
            told[f"{name}_lora_adapter_metadata"] = dict(part.peft_config[STYLE].to_dict())
        pipe.save_lora_weights(str(folder), **told)
        pipe.unload_lora_weights()
        vectors = load_file(folder / f"{WORD}.safetensors")
        keys = PAIR if second else [ONE]
        for encoder, tokenizer, key in zip(encoders, tokenizers, keys, strict=True):
            given = {"text_encoder": getattr(pipe, encoder), "tokenizer": getattr(pipe, tokenizer)}
            pipe.load_textual_inversion(vectors[key], WORD, **given)
        found |= text(" with the embedding")
        save_file(vectors if second else {WORD: vectors[ONE]}, folder / THEIR_WORD)
    save(found, folder / "theirs-made.pt")


JOBS: dict[str, Callable[[Path, str], None]] = {job.__name__: job for job in (make, ours, theirs)}


def texts(context: Tensor, pooled: Tensor | None, kind: str = "") -> dict[str, Tensor]:
    """What a prompt is to the U-Net; SDXL's has a pooled vector too."""
    return {f"text{kind}": context} | ({} if pooled is None else {f"pooled text{kind}": pooled})


def outputs(model: Any, text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a model of AID's or a pipeline of diffusers'; only `text` is made by each in its own way."""
    latents = random(1, 4, EDGE, EDGE, seed=2)
    decoded = model.vae.decode(latents).sample
    picture = random(1, 3, 8 * EDGE, 8 * EDGE, seed=3).clamp(-1, 1)
    return {
        **text,
        "noise": noise(model),
        "decoded": decoded,
        "encoded": model.vae.encode(picture).latent_dist.mean,
    }


def noise(model: Any) -> Tensor:
    """The U-Net's, on a text that no text encoder made."""
    import torch

    second = getattr(model, "text_encoder_2", None)
    sizes = torch.tensor([[256.0, 256, 0, 0, 256, 256]])
    added = second and {"text_embeds": random(1, second.config.projection_dim, seed=6), "time_ids": sizes}
    context = random(1, 77, model.unet.config.cross_attention_dim, seed=5)
    sample: Tensor = model.unet(
        random(1, 4, EDGE, EDGE, seed=4), torch.tensor([600]), context, added_cond_kwargs=added
    ).sample
    return sample


def save(found: Mapping[str, Tensor], path: Path) -> None:
    import torch

    torch.save(dict(found), path)


# What is told


def run_job(name: str, folder: Path, source: str) -> None:
    words = [sys.executable, __file__, "--job", name, str(folder), source]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    print(f"{name} {source}: done", file=sys.stderr, flush=True)


def available_bytes() -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path, family: str = "sd1", small: bool = False) -> list[Row]:
    """The greatest difference of each kind, of AID's files in diffusers and of diffusers' in AID."""
    import torch

    real = not small and available_bytes() > NEEDED_BYTES[family]
    name = (REAL_NAMES if real else SMALL_NAMES)[family]
    run_job("make", folder, name)
    run_job("theirs", folder, "made")
    run_job("ours", folder, "made")
    run_job("ours", folder, "theirs")
    made, read, their = (
        torch.load(folder / f"{one}.pt") for one in ("ours-made", "ours-theirs", "theirs-made")
    )
    rows = []
    for kind, expected in their.items():
        rows.append(Row(f"{name}, {kind}: AID's files in diffusers", apart(made[kind], expected), "", LIMIT))
        rows.append(Row(f"{name}, {kind}: diffusers' files in AID", apart(read[kind], expected), "", LIMIT))
        if " with " in kind:
            effect = apart(expected, their[kind.partition(" with ")[0]])
            assert effect > LEAST_EFFECT, f"{kind} changes nothing: {effect}"
            rows.append(Row(f"{name}, {kind}: changes it by", effect, ""))
    return rows


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def require_close(rows: list[Row]) -> None:
    """Ends the program if a difference is above its limit."""
    if over := [row.name for row in rows if row.limit == LIMIT and not row.ours <= LIMIT]:
        raise SystemExit(f"not the same: {', '.join(over)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(REAL_NAMES), default="sd1")
    parser.add_argument("--small", action="store_true", help="the starter, or an SDXL as small")
    parser.add_argument(
        "--folder", type=Path, help="where the files go (SDXL's 21 GB), and are removed again"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        name, folder, source = chosen.job
        JOBS[name](Path(folder), source)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        rows = measure(Path(folder), chosen.family, chosen.small)
    report(rows, chosen.json)
    require_close(rows)


if __name__ == "__main__":
    main()
