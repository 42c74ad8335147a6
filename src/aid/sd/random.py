"""The noise of each picture, from its own seed on the CPU, whatever it is drawn together with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PictureNoise:
    """One generator a picture. The first draw is its initial noise, then one an ancestral step: A1111's
    order, its `RNG: CPU`."""

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        """The next standard normal noise, float32 [pictures, *shape]."""
        drawn = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)
