"""The noise of each picture, from its own seed, whatever it is drawn together with: A1111's, to the bit.

Source: A1111 rng.py and rng_philox.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor

from aid.errors import SettingsError
from aid.sd.sampling.brownian import BrownianNoise
from aid.sd.sampling.philox import Philox

Source = Literal["CPU", "GPU", "NV"]
"""torch on the CPU; torch on the CUDA device (A1111's default); what CUDA draws, computed on the CPU."""
Shape = tuple[int, ...]
VECTOR = 16  # numbers that torch on the CPU draws together: whole ones are the same, however many
AHEAD = 1 << 14  # numbers of a picture drawn at once: between calls of the U-Net a few take ten times as long
PARALLEL = 0.9995  # two noises at a cosine above it are mixed on the chord, not the arc
STRAIGHT = 1 - 1e-6  # cosine, of either sign, beyond which an angle of float32 has no sine to divide by


class Generator(Protocol):
    """Successive draws from one seed."""

    def __call__(self, shape: Shape) -> Tensor: ...


class TorchGenerator:
    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator, self.device = torch.Generator(device).manual_seed(seed), device

    def __call__(self, shape: Shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)


def make_generator(seed: int, source: Source, device: torch.device) -> Generator:
    """A fresh generator. Raises SettingsError for noise of a GPU that isn't there."""
    if source == "NV":
        return Philox(seed)
    if source == "GPU" and device.type != "cuda":
        raise SettingsError(
            f"noise from the GPU, but the device is {device}",
            "a CUDA device, or NV: the same noise on the CPU",
        )
    return TorchGenerator(seed, device if source == "GPU" else torch.device("cpu"))


class PictureNoise:
    """One generator a picture. The first draw is its initial noise, then one for each step that asks.

    `variation_seeds` with `variation_strengths`, one each a picture, turn the first draw towards another
    seed's. `seed_delta` is A1111's ENSD: after the first draw, generators begin again at seed + delta.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Shape,
        device: torch.device | str = "cpu",
        source: Source = "CPU",
        variation_seeds: Sequence[int] | None = None,
        variation_strengths: Sequence[float] | None = None,
        seed_delta: int = 0,
    ) -> None:
        self.seeds, self.shape, self.source, self.seed_delta = list(seeds), shape, source, seed_delta
        self.device = torch.device(device)
        self.strengths = list(variation_strengths or [0.0] * len(self.seeds))
        self.variations = list(variation_seeds or self.seeds)
        self.generators = [self._generator(seed) for seed in self.seeds]
        self.is_first = True
        self.ahead: Iterator[Tensor] = iter(())
        """Drawn already, for the steps to come."""

    def __call__(self, sigma: Tensor | None = None, following: Tensor | None = None) -> Tensor:
        """The next standard normal noise, float32 [pictures, *shape], the same for whichever step."""
        noise = self._first() if self.is_first else self._following()
        if self.device.type == "cuda" and noise.device.type == "cpu":
            return noise.pin_memory().to(
                self.device, non_blocking=True
            )  # without waiting for the step before
        return noise.to(self.device)

    def _first(self) -> Tensor:
        drawn = [self._varied(index, draw(self.shape)) for index, draw in enumerate(self.generators)]
        if self.seed_delta:
            self.generators = [self._generator(seed + self.seed_delta) for seed in self.seeds]
        self.is_first = False
        return torch.stack(drawn)

    def _following(self) -> Tensor:
        noise = next(self.ahead, None)
        if noise is None:
            drawn = [generator((self._draws(), *self.shape)) for generator in self.generators]
            self.ahead = iter(torch.stack(drawn, 1))
            noise = next(self.ahead)
        return noise

    def _draws(self) -> int:
        """How many are made at once: more than one if they are the same numbers."""
        numbers = prod(self.shape)
        return max(1, AHEAD // numbers) if self.source == "CPU" and numbers % VECTOR == 0 else 1

    def brownian(self, lowest: Tensor, highest: Tensor) -> BrownianNoise:
        """Noise for SDE samplers between two levels: one tree a picture, from its seed (ENSD has no part)."""

        def draw(seed: int) -> Tensor:
            return self._generator(seed)(self.shape)

        return BrownianNoise(self.seeds, draw, lowest, highest, self.device)

    def _generator(self, seed: int) -> Generator:
        return make_generator(seed, self.source, self.device)

    def _varied(self, index: int, noise: Tensor) -> Tensor:
        strength = self.strengths[index]
        if strength == 0:
            return noise
        return slerp(strength, noise, self._generator(self.variations[index])(self.shape))


def slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """From `low` towards `high` on the arc between them (Shoemake 1985), column by column: A1111 takes the
    angle over the rows of [4, h, w]. Nearly parallel ones are mixed linearly, with the shares A1111 has; so
    are columns that have no angle between them, as all of one row."""
    unit_low, unit_high = (side / side.norm(dim=1, keepdim=True) for side in (low, high))
    cosine = (unit_low * unit_high).sum(1)
    if cosine.mean() > PARALLEL:
        return low * share + high * (1 - share)
    angle, straight = cosine.clamp(-1, 1).acos(), cosine.abs() > STRAIGHT
    near, far = (
        torch.where(straight, portion, (portion * angle).sin() / angle.sin())
        for portion in (1 - share, share)
    )
    mixed: Tensor = near.unsqueeze(1) * low + far.unsqueeze(1) * high
    return mixed
