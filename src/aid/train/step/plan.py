"""What every step of a run trains on. A pure function of the settings and the step's number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from aid.core.dataset import Dataset, Record, count_tags
from aid.errors import SettingsError
from aid.sd.model.detection import require_scale
from aid.train.settings import CommonSettings, TrainingSettings
from aid.train.step.batch import read_latents, read_masks, step_generator, token_windows
from aid.train.step.caption import Captions
from aid.train.step.noising import Noised, draw_noise
from aid.train.step.order import Order, Replay, Size, size_of, steps_of
from aid.train.step.share import repeated, shares_of

Write = Callable[[Sequence[Record], int], list[str]]  # the captions of a step's records


@dataclass(frozen=True)
class Step:
    """One optimiser step: b records, their captions, d noised latents a record, weights [b]."""

    index: int
    records: tuple[Record, ...]
    captions: tuple[str, ...]
    noised: Noised
    weights: Tensor
    beside: tuple[Step, ...] = ()
    """Its replayed records of other sizes, which are computed by themselves."""

    @property
    def whole(self) -> tuple[Record, ...]:
        """All its records, of whatever size."""
        return self.records + tuple(record for one in self.beside for record in one.records)

    def parts(self, size: int) -> Iterator[Step]:
        """The step cut into pieces of one size and of at most `size` records; 0 leaves them whole."""
        for one in (replace(self, beside=()), *self.beside):
            yield from one._pieces(size)

    def _pieces(self, size: int) -> Iterator[Step]:
        if not 0 < size < len(self.records):
            yield self
            return
        draws = len(self.noised.t) // len(self.records)
        for start in range(0, len(self.records), size):
            rows = slice(start, start + size)
            noised = self.noised.rows(slice(start * draws, (start + size) * draws))
            cut = replace(self, records=self.records[rows], captions=self.captions[rows], noised=noised)
            yield replace(cut, weights=self.weights[rows])


@dataclass(frozen=True)
class Plan:
    """A run laid out: how many steps, and what each holds. `scale` multiplies latents."""

    dataset: Dataset
    settings: CommonSettings
    scale: float
    steps: int
    order: Order
    replay: Replay | None
    write: Write
    weight: float = 1.0
    """Of a replayed picture in the loss."""
    measured_every: int = 0
    """Steps from one measurement of the styles to the next; 0 measures nothing."""

    def step(self, index: int) -> Step:
        settings, records = self.settings, self.order.batch(index)
        if self.replay is not None:
            records += self.replay.batch(index, size_of(records[0]))
        mirrored = self._mirrored(index, len(records))
        turned = [one.mirrored if flag else one for one, flag in zip(records, mirrored, strict=True)]
        captions, generator = self.write(turned, index), step_generator(settings.seed, index)
        alike: dict[Size, list[int]] = {}
        for row, record in enumerate(records):
            alike.setdefault(size_of(record), []).append(row)
        first, *beside = (
            Step(
                index,
                own := tuple(records[row] for row in rows),
                tuple(captions[row] for row in rows),
                self._noised(own, [mirrored[row] for row in rows], generator),
                torch.tensor([self.weight if record.regularisation else 1.0 for record in own]),
            )
            for rows in alike.values()
        )
        return replace(first, beside=tuple(beside))

    def _noised(
        self, records: Sequence[Record], mirrored: Sequence[bool], generator: torch.Generator
    ) -> Noised:
        """Records of one size."""
        settings = self.settings
        latents = read_latents(self.dataset, records, mirrored, self.scale, generator)
        noised = draw_noise(latents, settings.noise_draws, settings, generator)
        mask = read_masks(self.dataset, records, mirrored) if settings.masked else None
        return (
            noised if mask is None else replace(noised, mask=mask.repeat_interleave(settings.noise_draws, 0))
        )

    def _mirrored(self, index: int, count: int) -> list[bool]:
        """Which of a step's pictures are taken mirrored."""
        share = self.settings.mirrored_share
        if share and not self.dataset.has_mirrored:
            raise SettingsError(
                "mirrored_share is given, and the dataset has no mirrored latents",
                "a dataset prepared with them",
            )
        chance = random.Random(f"{self.settings.seed}/mirror/{index}")
        return [chance.random() < share for _ in range(count)]

    @property
    def pictures(self) -> int:
        """New ones, seen once an epoch."""
        return self.order.pictures


def plan_styles(dataset: Dataset, settings: TrainingSettings, scale: float) -> Plan:
    """Train on every picture with its caption, and replay those of regularisation beside them.

    Raises SettingsError for a dataset without pictures to train on, and for regularisation pictures that
    would silently go unused.
    """
    trained = dataset.split("train")
    replayed = [record for record in trained if record.regularisation]
    new = [record for record in trained if not record.regularisation]
    replays = min(round(settings.batch_size * settings.regularisation_share), settings.batch_size - 1)
    batch_size = settings.batch_size - replays
    steps = settings.steps or max(1, round(settings.epochs * steps_of(new, batch_size)))
    every = settings.balance.interval(steps)
    order = order_styles(new, settings, batch_size, every)
    check_replay(len(replayed), replays)
    replay = Replay(replayed, replays, settings.seed, order.sizes) if replays else None
    if settings.fused_backward and replay is not None and not replay.fits:
        raise SettingsError(
            "with `fused_backward` a step is of one size, and regularisation pictures differ from the others",
            "`fused_backward` = false, or pictures in the same buckets, as without `buckets`",
        )
    captions = Captions(settings.caption, count_tags(trained))

    def write(records: Sequence[Record], index: int) -> list[str]:
        chance = random.Random(f"{settings.seed}/caption/{index}")
        epoch = index // order.steps_per_epoch
        written = [captions.write(record, index, epoch, chance) for record in records]
        if not settings.caption.weighted:
            token_windows(written, settings.caption.windows)  # here, beside the step before, for `encode`
        return written

    require_latents(dataset, scale)
    return Plan(dataset, settings, scale, steps, order, replay, write, settings.regularisation_weight, every)


def require_latents(dataset: Dataset, scale: float) -> None:
    """Raises ArtifactError unless the latents are there, and ModelError for a VAE of another scale."""
    name, next_step = f"the VAE of {dataset.folder}", "Prepare it with the model as its --vae."
    require_scale(dataset.latent_scale, scale, name, next_step)
    dataset.require_latents()


def order_styles(records: Sequence[Record], settings: TrainingSettings, batch_size: int, every: int) -> Order:
    """The order by the rule of `settings.balance`: in epochs, or from measurement to measurement."""
    balance = settings.balance
    passed = repeated(records, balance.rule)
    places = every * batch_size if balance.live else len(records)
    return Order(passed, batch_size, settings.seed, shares_of(passed, balance.rule), places, balance.live)


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


class Ahead:
    """A plan's steps, each made by a second thread while the one before it is computed."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.made = plan, dict[int, Future[Step]]()
        self.thread = ThreadPoolExecutor(1, "step")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def step(self, index: int) -> Step:
        for wanted in (index, index + 1):
            if wanted not in self.made and wanted < self.plan.steps and self.plan.order.known(wanted):
                self.made[wanted] = self.thread.submit(self.plan.step, wanted)
        return self.made.pop(index).result()
