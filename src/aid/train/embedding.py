"""The verb `train embedding`: pictures and a frozen Checkpoint in, an Embedding out.

By default the pictures are bad ones that the model itself drew, and the embedding is for the
negative prompt: it learns the model's own faults, a little overtrained on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from aid.core.artifact import under_construction, verb
from aid.core.dataset import Dataset, Record
from aid.core.lineage import content_sha256
from aid.core.rate import rate_factor, read_rates, stepped_rate
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.drawing import pipeline
from aid.sd.embedding.file import Embedding, embedding_metadata, save_embedding
from aid.sd.file.state import STATES
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint, resolve_checkpoint
from aid.sd.model.device import torch_device
from aid.sd.model.metadata import architecture_name
from aid.sd.model.text_encoder import token_embeddings
from aid.sd.prompt.prompt import escape
from aid.sd.prompt.text import Conditioning, encode_prompts
from aid.train.loop import kept_for_states, train
from aid.train.optimiser.group import Group
from aid.train.settings import EmbeddingInputs, EmbeddingSettings
from aid.train.step.order import Order
from aid.train.step.plan import Plan, require_latents
from aid.train.team import Team, join
from aid.train.training import Factor, Training, make_ready
from aid.train.weight_types import frozen_types


@verb("train embedding", resumable=True, together=True, precious=STATES)
def embedding(settings: EmbeddingSettings, inputs: EmbeddingInputs, out: Path, bench: Workbench) -> None:
    """Textual inversion: freeze the model, train only the vectors of one new word."""
    model = load_checkpoint(inputs.checkpoint, torch_device(bench), frozen_types(settings))
    plan = plan_word(Dataset(inputs.pictures), settings, model.architecture.vae_scale)
    word = Word(model, settings)
    team = join(replace(bench, sharded=False))  # what is trained is small
    training = word_training(word, plan.steps, team)
    title = f"{settings.name}: {settings.vectors} vectors"

    def save(_: StableDiffusion, folder: Path, ending: str, done: int) -> None:
        named = replace(word.embedding(), name=f"{settings.name}{ending}")
        lineage, family = under_construction(out).embedded(), architecture_name(model.architecture)
        metadata = embedding_metadata(named.name, lineage, settings.negative, family)
        checkpoint = resolve_checkpoint(inputs.checkpoint)
        digest = content_sha256(checkpoint)[:10] if checkpoint.is_file() else None
        save_embedding(named, folder, metadata, done, digest, checkpoint.stem)

    with kept_for_states(out, team):
        train(training, plan, save, out, bench, "train embedding", title, word.draw)


class Word:
    """The vectors of one word, [n, width] for each text encoder (Gal et al. 2022)."""

    def __init__(self, model: StableDiffusion, settings: EmbeddingSettings) -> None:
        self.model, self.settings = model, settings
        encoders = [encoder for encoder in (model.text_encoder, model.text_encoder_2) if encoder is not None]
        norms = [token_embeddings(encoder).norm(dim=1).median() for encoder in encoders]
        self.limits = [settings.norm_limit * norm for norm in norms]
        self.vectors = [
            initial_vectors(model, settings.initial_text, settings.vectors, encoder) for encoder in encoders
        ]

    def embedding(self) -> Embedding:
        return Embedding(self.settings.name, *self.vectors)

    def encode(self, captions: Sequence[str], _index: int) -> Conditioning:
        """Captions with the word in them; gradients reach the vectors."""
        known = {self.settings.name: self.embedding()}
        return encode_prompts(self.model, captions, self.settings.clip_skip, known)

    def draw(self, model: StableDiffusion, shots: list[Shot]) -> Sequence[object]:
        """Pictures whose prompts, or negative prompts, may name the word."""
        return pipeline.draw(model, shots, {self.settings.name: self.embedding()})

    @torch.no_grad()
    def limit_norms(self) -> None:
        """Keep each vector near the vocabulary's norms, so that it still acts as a word."""
        for vectors, limit in zip(self.vectors, self.limits, strict=True) if self.settings.norm_limit else ():
            vectors.mul_((limit / vectors.norm(dim=1, keepdim=True)).clamp(max=1.0))


def word_training(word: Word, steps: int, team: Team) -> Training:
    """The training of a word's vectors and of nothing else."""
    settings = word.settings
    make_ready(word.model, settings, team)
    return Training(
        word.model,
        [Group(word.vectors, settings.rate)],
        torch.optim.AdamW(word.vectors, lr=settings.rate, weight_decay=0.0, fused=True),
        settings,
        encode=word.encode,
        factor=rate_course(settings, steps),
        after=word.limit_norms,
        team=team,
    )


def rate_course(settings: EmbeddingSettings, steps: int) -> Factor:
    """What `rate` is multiplied by, from step to step."""
    if not settings.rates:
        return partial(rate_factor, steps=steps, warmup=0, schedule="cosine")
    rates = read_rates(settings.rates)
    return lambda index: stepped_rate(rates, index) / settings.rate


def plan_word(dataset: Dataset, settings: EmbeddingSettings, scale: float) -> Plan:
    """Every picture with one of the templates, but those of regularisation: the word isn't theirs."""
    records = [record for record in dataset.split("train") if not record.regularisation]
    order = Order(records, settings.batch_size, settings.seed)

    def write(records: Sequence[Record], index: int) -> list[str]:
        chance = random.Random(f"{settings.seed}/template/{index}")
        return [
            chance.choice(settings.templates)
            .replace("{name}", settings.name)
            .replace("{tags}", ", ".join(map(escape, varied(record.tags, settings, chance))))
            .strip(", ")
            for record in records
        ]

    require_latents(dataset, scale)
    return Plan(dataset, settings, scale, settings.steps, order, None, write)


def varied(tags: Sequence[str], settings: EmbeddingSettings, chance: random.Random) -> list[str]:
    """A picture's tags as one step sees them."""
    kept = [tag for tag in tags if not settings.tag_dropout or chance.random() >= settings.tag_dropout]
    if settings.shuffle:
        chance.shuffle(kept)
    return kept


def initial_vectors(
    model: StableDiffusion, text: str, count: int, encoder: torch.nn.Module | None = None
) -> Tensor:
    """`count` vectors of an encoder, the first if left out, that start as the text's tokens, each in turn
    (A1111's rule).

    Raises SettingsError if the text has no tokens.
    """
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if not ids:
        raise SettingsError("initial_text is empty", "a word or two to start from")
    rows = [ids[index * len(ids) // count] for index in range(count)]
    return token_embeddings(encoder or model.text_encoder)[rows].clone()
