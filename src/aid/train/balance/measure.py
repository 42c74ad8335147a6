"""How well a model denoises each style: some of its pictures, held out or trained on, at fixed noise levels
with fixed noise, so that whatever changes is the model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aid.core.dataset import Dataset, Record
from aid.train.settings import TrainingSettings
from aid.train.step.batch import step_generator
from aid.train.step.caption import Captions
from aid.train.step.condition import tell
from aid.train.step.loss import Diffusion
from aid.train.step.noising import LAWS, Noised
from aid.train.tables import TimestepSettings
from aid.train.training import Training

SPLITS = ("held", "train", "wordless")
Losses = dict[str, list[float]]  # by style, one for each noise level
DIGITS = 7


@dataclass(frozen=True)
class Probe:
    """One picture to measure. `number` counts within its style: the same number has the same noise in all."""

    record: Record
    number: int
    caption: str


class Meter:
    """The pictures of `styles` that are measured, from first to last the same."""

    def __init__(
        self, dataset: Dataset, styles: Sequence[str], settings: TrainingSettings, scale: float
    ) -> None:
        self.dataset, self.settings, self.scale = dataset, settings, scale
        self.t = fixed_timesteps(settings.balance.timesteps, settings.timesteps)
        self.probes = {split: list(self._chosen(split, styles)) for split in ("held", "train")}
        self.probes["wordless"] = list(self._wordless()) if settings.balance.by_word else []

    def _chosen(self, split: str, styles: Sequence[str]) -> Iterator[Probe]:
        found = [one for one in self.dataset.records if one.split == split and not one.regularisation]
        write = fixed_captions(self.settings)
        for style in styles:
            own = [record for record in found if record.style == style]
            chance = random.Random(f"{self.settings.seed}/measured/{split}/{style}")
            drawn = chance.sample(own, min(self.settings.balance.pictures, len(own)))
            yield from (Probe(record, number, write(record)) for number, record in enumerate(drawn))

    def _wordless(self) -> Iterator[Probe]:
        """The held-out pictures again, without the word of their style, if it has one."""
        write = fixed_captions(self.settings)
        for probe in self.probes["held"]:
            if probe.record.trigger:
                yield replace(probe, caption=write(probe.record.model_copy(update={"style": ""})))

    @property
    def held_styles(self) -> set[str]:
        """The styles that have pictures held out."""
        return {probe.record.style for probe in self.probes["held"]}

    @torch.no_grad()
    def losses(self, training: Training, split: str) -> Losses:
        """Mean squared errors by style and noise level, of the weights as they are."""
        plain = self.settings.model_copy(update={"weighting": "uniform", "distance": "l2"})
        diffusion = Diffusion(training.device, training.model.architecture, plain)
        found: dict[str, list[Tensor]] = {}
        for part in self._parts(self.probes[split]):
            for probe, row in zip(part, self._measured(training, diffusion, part), strict=True):
                found.setdefault(probe.record.style, []).append(row)
        means = {style: torch.stack(rows).mean(0).tolist() for style, rows in found.items()}
        return {style: [float(f"{loss:.{DIGITS}g}") for loss in row] for style, row in means.items()}

    def _parts(self, probes: Sequence[Probe]) -> Iterator[list[Probe]]:
        """Pieces of one size, no larger than what is trained at once."""
        settings = self.settings
        most = max(1, (settings.part_size or settings.batch_size) * settings.noise_draws // len(self.t))
        for size in self.dataset.sizes():
            fit = [probe for probe in probes if (probe.record.width, probe.record.height) == size]
            yield from (fit[start : start + most] for start in range(0, len(fit), most))

    def _measured(self, training: Training, diffusion: Diffusion, part: Sequence[Probe]) -> Tensor:
        """[b, levels], on the CPU."""
        records, draws = [probe.record for probe in part], len(self.t)
        mean = torch.from_numpy(self.dataset.fetch(records)[:, 0]).float() * self.scale
        noise = torch.cat([self._noise(probe.number, mean.shape[1:]) for probe in part])
        noised = Noised(mean.repeat_interleave(draws, 0), noise, noise, self.t.repeat(len(part)))
        with torch.autocast(training.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            with training.learning:  # what is remembered of captions must not hang on who asked first
                captions = training.encode([probe.caption for probe in part], 0)
                told = tell(training.model, captions, records, draws).condition()
            losses = diffusion.losses(training.model.unet, noised.to(training.device), told)
        return losses.float().cpu().reshape(len(part), draws)

    def _noise(self, number: int, shape: torch.Size) -> Tensor:
        return torch.randn(len(self.t), *shape, generator=step_generator(self.settings.seed + 1, number))


def fixed_timesteps(count: int, settings: TimestepSettings) -> Tensor:
    """`count` timesteps at even shares of the law's probability: uniformly 125, 375, 625 and 875 of four."""
    u = (torch.arange(count) + 0.5) / count
    width = settings.highest - settings.lowest
    return (settings.lowest + (LAWS[settings.law](u, settings) * width).long()).clamp(
        max=settings.highest - 1
    )


def fixed_captions(settings: TrainingSettings) -> Callable[[Record], str]:
    """Captions with all that they have, in its order."""
    plain = {"dropout": 0.0, "dropout_every": 0, "shuffle": False, "tag_dropout": 0.0, "frequent_count": 0}
    whole = settings.caption.model_copy(update={**plain, "warmup_steps": 0})
    captions = Captions(whole, {})
    return lambda record: captions.write(record, 0, 0, random.Random(f"{settings.seed}/{record.sha256}"))
