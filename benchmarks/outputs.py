"""What diffusers computes with AID's files, and AID with diffusers': an SD1.5 of real size and random
weights, or the starter where there isn't memory for that.

    python benchmarks/outputs.py [--starter] [--folder FOLDER] [--json FILE]

Text, the U-Net's noise, and the VAE both ways, in fp32: of a single file and of a diffusers folder; then with
an embedding and with a LoRA, in AID's files and in diffusers'. A figure is a difference's norm over that of
what diffusers gives; beside it, how far the embedding and the LoRA change this. Each side is a process of its
own. `files.py` runs this at its end.
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
NEEDED_BYTES = 10 << 30  # about as much as the largest of the processes takes, and a quarter more
PROMPT = "by a learned cat, red hair"
WORD, STYLE = "learned", "style"
EDGE = 32  # of the latents
MADE, FOLDER, THEIR_FOLDER = "model.safetensors", "folder", "theirs"
THEIR_LORA, THEIR_WORD = "pytorch_lora_weights.safetensors", "theirs-word.safetensors"


def random(*shape: int, seed: int) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


# The jobs, each in a process of its own


def make(folder: Path, architecture_of: str) -> None:
    """The model, as a file and as a folder, an embedding, and a LoRA of kohya's usual modules."""
    import torch

    from aid import starter
    from aid.sd.adapter.file import save_adapter
    from aid.sd.adapter.target import kohya_targets, targets_of
    from aid.sd.conversion import Conversion, convert
    from aid.sd.embedding.file import Embedding, save_embedding
    from aid.sd.model.architecture import SD1
    from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint

    if architecture_of == "starter":
        model = load_checkpoint(starter.BASE)
    else:
        model = create_checkpoint(SD1, seed=1)
        enliven(model)
    save_checkpoint(model, folder / MADE, {}, torch.float16)
    convert(folder / MADE, folder / FOLDER, Conversion())
    width = model.architecture.text_width
    save_embedding(Embedding(WORD, random(3, width, seed=7)), folder, {})
    tensors = {}
    for seed, (name, target) in enumerate(kohya_targets(targets_of(model), False).items()):
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
        found = outputs(model, encode_prompts(model, [PROMPT]).context)
        found["text with the embedding"] = encode_prompts(model, [PROMPT], embeddings=known).context
        with applied(model, [Use(style, 1.0, 1.0)]) as matches:
            assert not matches[0].unmatched, matches[0].unmatched[:3]
            found["text with the LoRA"] = encode_prompts(model, [PROMPT]).context
            found["noise with the LoRA"] = noise(model, model.architecture.context_width)
    save(found, folder / f"ours-{source}.pt")


def theirs(folder: Path, _source: str) -> None:
    """diffusers' outputs with AID's files, which it then writes in its own way."""
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    from aid.sd.model.tokenizer import load_tokenizer

    pipe: Any = StableDiffusionPipeline.from_single_file(
        str(folder / MADE), config=str(folder / FOLDER), local_files_only=True, torch_dtype=torch.float32,
        tokenizer=load_tokenizer(), safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    pipe.save_pretrained(folder / THEIR_FOLDER)

    def text() -> Tensor:
        made = pipe.encode_prompt(PROMPT, "cpu", 1, False)
        context: Tensor = made[0]
        return context

    with torch.no_grad():
        found = outputs(pipe, text())
        pipe.load_lora_weights(str(folder), weight_name=f"{STYLE}.safetensors", adapter_name=STYLE)
        found["text with the LoRA"] = text()
        found["noise with the LoRA"] = noise(pipe, pipe.unet.config.cross_attention_dim)
        states = [
            get_peft_model_state_dict(part, adapter_name=STYLE) for part in (pipe.unet, pipe.text_encoder)
        ]
        configs = [dict(part.peft_config[STYLE].to_dict()) for part in (pipe.unet, pipe.text_encoder)]
        pipe.save_lora_weights(
            str(folder), *states, unet_lora_adapter_metadata=configs[0],
            text_encoder_lora_adapter_metadata=configs[1],
        )  # fmt: skip
        pipe.unload_lora_weights()
        pipe.load_textual_inversion(str(folder / f"{WORD}.safetensors"), WORD)
        found["text with the embedding"] = text()
        save_file({WORD: load_file(folder / f"{WORD}.safetensors")["emb_params"]}, folder / THEIR_WORD)
    save(found, folder / "theirs-made.pt")


JOBS: dict[str, Callable[[Path, str], None]] = {job.__name__: job for job in (make, ours, theirs)}


def outputs(model: Any, text: Tensor) -> dict[str, Tensor]:
    """Of a model of AID's or a pipeline of diffusers'; only `text` is made by each in its own way."""
    latents = random(1, 4, EDGE, EDGE, seed=2)
    decoded = model.vae.decode(latents).sample
    picture = random(1, 3, 8 * EDGE, 8 * EDGE, seed=3).clamp(-1, 1)
    return {
        "text": text,
        "noise": noise(model, text.shape[-1]),
        "decoded": decoded,
        "encoded": model.vae.encode(picture).latent_dist.mean,
    }


def noise(model: Any, width: int) -> Tensor:
    """The U-Net's, on a text that no text encoder made."""
    import torch

    sample: Tensor = model.unet(
        random(1, 4, EDGE, EDGE, seed=4), torch.tensor([600]), random(1, 77, width, seed=5)
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


def measure(folder: Path, starter: bool = False) -> list[Row]:
    """The greatest difference of each kind, of AID's files in diffusers and of diffusers' in AID."""
    import torch

    real = not starter and available_bytes() > NEEDED_BYTES
    name = "SD1.5" if real else "starter"
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
    parser.add_argument("--starter", action="store_true", help="at the starter's size")
    parser.add_argument("--folder", type=Path, help="where the files go (11 GB), and are removed again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        name, folder, source = chosen.job
        JOBS[name](Path(folder), source)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        rows = measure(Path(folder), chosen.starter)
    report(rows, chosen.json)
    require_close(rows)


if __name__ == "__main__":
    main()
