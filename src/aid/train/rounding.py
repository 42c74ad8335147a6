"""AdamW whose weights and moments are bfloat16, rounded at random so that small changes are not lost.

A bfloat16 has 8 bits of precision: a step below 1/512 of its weight would be rounded away every time. Rounded
up or down with the chances that make the expected value exact, such steps add up (Gupta et al. 2015, "Deep
Learning with Limited Numerical Precision"; Zamirai et al. 2020, "Revisiting BFloat16 Training"). The bits are
those of torchastic and OneTrainer: 16 random ones are added below the kept ones, and the sum is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOW_BITS = 16  # of a float32, those that a bfloat16 has not
PIECE_NUMBERS = 1 << 22  # changed at once, so that little beside the weights is in memory


def random_bits(seed: int, step: int, index: int, device: torch.device) -> torch.Generator:
    """The generator of one tensor's rounding at one step: nothing has to be stored to continue."""
    mixed = np.random.SeedSequence([seed & 0xFFFFFFFF, step, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))


def round_stochastically(values: Tensor, chance: torch.Generator) -> Tensor:
    """float32 to one of the two nearest bfloat16, whose expectation is the value; what isn't finite stays."""
    noise = torch.randint(
        0, 1 << LOW_BITS, values.shape, generator=chance, dtype=torch.int32, device=values.device
    )
    cut = (values.view(torch.int32) + noise).bitwise_and_(-(1 << LOW_BITS)).view(torch.float32)
    return torch.where(values.isfinite(), cut, values).bfloat16()


def store(into: Tensor, values: Tensor, chance: torch.Generator) -> None:
    """Put float32 `values` into a tensor, rounded at random where it is bfloat16."""
    into.copy_(round_stochastically(values, chance) if into.dtype == torch.bfloat16 else values)


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2017), computed in float32, stored in the type of each weight."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed
        everything = [parameter for group in self.param_groups for parameter in group["params"]]
        self.places = {parameter: index for index, parameter in enumerate(everything)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        state["step"] += 1
        chance = random_bits(self.seed, state["step"], self.places[weight], weight.device)
        rows = max(1, PIECE_NUMBERS * len(weight) // max(1, weight.numel()))
        whole = (weight, gradient, state["mean"], state["square"])
        for start in range(0, len(weight), rows):
            w, g, m, v = (tensor[start : start + rows] for tensor in whole)
            change(w, g, m, v, state["step"], group, chance)


def change(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    group: dict[str, Any],
    chance: torch.Generator,
) -> None:
    """AdamW's `step`-th step, from 1, in place."""
    first, second = group["betas"]
    gradient = gradient.float()
    store(mean, m := mean.float().lerp_(gradient, 1 - first), chance)
    store(square, v := square.float().lerp_(gradient.square(), 1 - second), chance)
    size = v.div_(1 - second**step).sqrt_().add_(group["eps"])
    moved = m.div_(size).mul_(-group["lr"] / (1 - first**step))
    store(weight, moved.add_(weight.float(), alpha=1 - group["lr"] * group["weight_decay"]), chance)
