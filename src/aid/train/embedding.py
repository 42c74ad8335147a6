"""The verb `train embedding`: pictures and a frozen Checkpoint in, an Embedding out.

By default the pictures are bad ones that the model itself drew, and the embedding is for the
negative prompt: it learns the model's own faults, a little overtrained on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from aid.core.artifact import under_construction, verb
from aid.core.dataset import Dataset, Record
from aid.core.files import sha256_file
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.checkpoint import (
    StableDiffusion,
    load_checkpoint,
    require_noise_prediction,
    resolve_checkpoint,
)
from aid.sd.device import torch_device
from aid.sd.embedding import Embedding, embedding_metadata, save_embedding
from aid.sd.prompt import escape
from aid.sd.state import load_state, optimiser_tensors, restore_optimiser, save_state
from aid.sd.text import encode_prompts
from aid.sd.text_encoder import token_embeddings
from aid.train.batch import draw_noise, read_latents, step_generator
from aid.train.finetuning import rate_factor
from aid.train.log import Log, draw_curve
from aid.train.loss import Diffusion
from aid.train.order import Order
from aid.train.run import due, refuse_nan
from aid.train.settings import EmbeddingInputs, EmbeddingSettings


@verb("train embedding", resumable=True)
def embedding(settings: EmbeddingSettings, inputs: EmbeddingInputs, out: Path, bench: Workbench) -> None:
    """Textual inversion: freeze the model, train only the vectors of one new word."""
    device = torch_device(bench)
    model = load_checkpoint(inputs.checkpoint, device)
    require_noise_prediction(model, "training")
    for module in model.modules():
        module.requires_grad_(False)
    dataset = Dataset(inputs.pictures)
    order = Order(dataset.split("train"), settings.batch_size, settings.seed)
    run = Inversion(model, settings, device)
    done = run.resume(out)
    log = Log(out, done)
    with bench.progress.task("train embedding", settings.steps, "step", done) as tick:
        for index in range(done, settings.steps):
            records = order.batch(index)
            loss, norm = run.step(index, dataset, records)
            refuse_nan(loss, norm, index, records)
            log.add(step=index + 1, loss=round(loss, 6), rate=run.rate(index), norm=run.mean_norm())
            tick(1, f"loss {log.recent('loss'):.4f}")
            if due(index + 1, settings.save_every) and index + 1 < settings.steps:
                log.sync()
                save_state(out, index + 1, run.tensors(), keep=2)
    log.close()
    draw_curve(log.rows, out / "curve.png", f"{settings.name}: {settings.vectors} vectors")
    checkpoint = resolve_checkpoint(inputs.checkpoint)
    lineage = under_construction(out).embedded()
    save_embedding(
        Embedding(settings.name, run.vectors.detach().cpu()),
        out,
        embedding_metadata(settings.name, lineage, settings.negative),
        settings.steps,
        sha256_file(checkpoint)[:10],
        checkpoint.stem,
    )


class Inversion:
    """The vectors of one word [n, width], their optimiser, and the step (Gal et al. 2022)."""

    def __init__(self, model: StableDiffusion, settings: EmbeddingSettings, device: torch.device) -> None:
        self.model, self.settings, self.device = model, settings, device
        self.diffusion = Diffusion(device, settings.weighting, settings.snr_gamma)
        if settings.checkpointing:
            model.unet.train().enable_gradient_checkpointing()
        vocabulary = token_embeddings(model.text_encoder)
        initial = initial_vectors(model, settings.initial_text, settings.vectors)
        self.vectors = initial.to(device).requires_grad_(True)
        self.norm_limit = settings.norm_limit * vocabulary.norm(dim=1).median()
        self.optimiser = torch.optim.AdamW([self.vectors], lr=settings.rate, weight_decay=0.0)

    def step(self, index: int, dataset: Dataset, records: Sequence[Record]) -> tuple[float, float]:
        """One optimiser step; its loss and gradient norm."""
        settings = self.settings
        generator = step_generator(settings.seed, index)
        latents = read_latents(dataset, records, generator)
        noised = draw_noise(latents, settings.noise_draws, 0.0, generator).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            text = self.encode(index, records).repeat_interleave(settings.noise_draws, 0)
            losses = self.diffusion.losses(self.model.unet, noised.latents, noised.noise, noised.t, text)
        loss: Tensor = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.vectors.grad is not None
        norm = self.vectors.grad.norm().item()
        self.optimiser.param_groups[0]["lr"] = self.rate(index)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.limit_norms()
        return float(loss.item()), norm

    def encode(self, index: int, records: Sequence[Record]) -> Tensor:
        """The records' captions with the word in them, [b, 77, width]; gradients reach the vectors."""
        chance = random.Random(f"{self.settings.seed}/template/{index}")
        captions = [
            chance.choice(self.settings.templates)
            .replace("{name}", self.settings.name)
            .replace("{tags}", ", ".join(map(escape, record.tags)))
            for record in records
        ]
        known = {self.settings.name: Embedding(self.settings.name, self.vectors)}
        return encode_prompts(self.model, captions, self.settings.clip_skip, known).context

    @torch.no_grad()
    def limit_norms(self) -> None:
        """Keep each vector near the vocabulary's norms, so that it still acts as a word."""
        if self.settings.norm_limit:
            norms = self.vectors.norm(dim=1, keepdim=True)
            self.vectors.mul_((self.norm_limit / norms).clamp(max=1.0))

    def rate(self, index: int) -> float:
        factor = rate_factor(index, self.settings.steps, 0, "cosine")
        return float(f"{self.settings.rate * factor:.6g}")

    def mean_norm(self) -> float:
        return round(float(self.vectors.detach().norm(dim=1).mean().item()), 6)

    def tensors(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors.detach(), **optimiser_tensors(self.optimiser)}

    @torch.no_grad()
    def resume(self, out: Path) -> int:
        """Continue from the newest whole state; the number of steps already done."""
        state = load_state(out)
        if state is None:
            return 0
        done, saved = state
        self.vectors.copy_(saved.read("vectors"))
        restore_optimiser(self.optimiser, saved)
        return done


def initial_vectors(model: StableDiffusion, text: str, count: int) -> Tensor:
    """`count` vectors that start as the text's tokens, each in turn (A1111's rule).

    Raises SettingsError if the text has no tokens.
    """
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if not ids:
        raise SettingsError("initial_text is empty", "a word or two to start from")
    rows = [ids[index * len(ids) // count] for index in range(count)]
    return token_embeddings(model.text_encoder)[rows].clone()
