"""What every step of a run trains on. A pure function of the settings and the step's number."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aid.core.dataset import Dataset, Record
from aid.errors import SettingsError
from aid.train.batch import Noised, draw_noise, read_latents, step_generator, token_windows
from aid.train.caption import caption
from aid.train.order import Order, Replay
from aid.train.settings import FinetuneSettings


@dataclass(frozen=True)
class Step:
    """One optimiser step: b records, tokens [b, windows, 77], d noised latents a record, weights [b]."""

    index: int
    records: tuple[Record, ...]
    ids: Tensor
    noised: Noised
    weights: Tensor

    def parts(self, size: int) -> Iterator[Step]:
        """The step cut into pieces of at most `size` records; 0 leaves it whole."""
        size = size or len(self.records)
        draws = len(self.noised.t) // len(self.records)
        for start in range(0, len(self.records), size):
            rows = slice(start, start + size)
            drawn = slice(start * draws, (start + size) * draws)
            noised = Noised(self.noised.latents[drawn], self.noised.noise[drawn], self.noised.t[drawn])
            yield Step(self.index, self.records[rows], self.ids[rows], noised, self.weights[rows])


class Plan:
    """A run laid out: how many steps, and what each holds."""

    def __init__(self, dataset: Dataset, tokenizer: Any, settings: FinetuneSettings) -> None:
        self.dataset, self.tokenizer, self.settings = dataset, tokenizer, settings
        trained = dataset.split("train")
        replayed = [record for record in trained if record.regularisation]
        new = [record for record in trained if not record.regularisation]
        replays = min(round(settings.batch_size * settings.regularisation_share), settings.batch_size - 1)
        self.order = Order(new, settings.batch_size - replays, settings.seed)
        check_replay(len(replayed), replays)
        self.replay = Replay(replayed, replays, settings.seed) if replays else None
        self.steps = settings.steps or max(1, round(settings.epochs * self.order.steps_per_epoch))
        self.pictures = len(new)

    def step(self, index: int) -> Step:
        batch = self.order.batch(index)
        if self.replay is not None:
            batch += self.replay.batch(index, (batch[0].width, batch[0].height))
        chance = random.Random(f"{self.settings.seed}/caption/{index}")
        captions = [caption(record, self.settings.caption, chance) for record in batch]
        generator = step_generator(self.settings.seed, index)
        latents = read_latents(self.dataset, batch, generator)
        noised = draw_noise(latents, self.settings.noise_draws, self.settings.noise_offset, generator)
        ids = token_windows(self.tokenizer, captions, self.settings.caption.windows)
        weights = [self.settings.regularisation_weight if record.regularisation else 1.0 for record in batch]
        return Step(index, batch, ids, noised, torch.tensor(weights))


def check_replay(pictures: int, replays: int) -> None:
    """Refuse regularisation pictures that would silently go unused, and a share of none."""
    if pictures and not replays:
        raise SettingsError(
            f"the dataset has {pictures} regularisation pictures, and none would be used",
            "a regularisation_share that gives each batch at least one",
            "Raise regularisation_share or batch_size, or prepare the dataset without them.",
        )
    if replays and not pictures:
        raise SettingsError(
            "regularisation_share is given, and the dataset has no regularisation pictures",
            "pictures given to `aid prepare --regularisation`",
        )
