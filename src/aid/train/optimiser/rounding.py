"""AdamW whose weights and moments can be bfloat16, rounded at random so that small changes are not lost.

A bfloat16 has 8 bits of precision: a step below 1/512 of its weight would be rounded away every time. Rounded
up or down with the chances that make the expected value exact, such steps add up (Gupta et al. 2015, "Deep
Learning with Limited Numerical Precision"; Zamirai et al. 2020, "Revisiting BFloat16 Training"). The bits are
those of torchastic and OneTrainer: 16 random ones are added below the kept ones, and the sum is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aid.sd.file.state import laid_like
from aid.sd.fusion.find import find_fusion, works

LOW_BITS = 16  # of a float32, those that a bfloat16 has not
PIECE_NUMBERS = 1 << 20  # changed at once, so that little beside the weights is in memory
GPU_PIECE_NUMBERS = 1 << 24  # there, launching forty kernels a piece takes longer than computing small ones


def random_bits(seed: int, step: int, index: int, device: torch.device) -> torch.Generator:
    """The generator of one tensor's rounding at one step: nothing has to be stored to continue."""
    return torch.Generator(device).manual_seed(mixed(seed, step, index))


def mixed(seed: int, step: int, index: int) -> int:
    """63 bits of three numbers."""
    bits = np.random.SeedSequence([seed & 0xFFFFFFFF, step, index]).generate_state(1, np.uint64)[0]
    return int(bits >> np.uint64(1))


def round_stochastically(values: Tensor, chance: torch.Generator) -> Tensor:
    """float32 to one of the two nearest bfloat16, whose expectation is the value; what isn't finite stays."""
    noise = torch.randint(
        0, 1 << LOW_BITS, values.shape, generator=chance, dtype=torch.int32, device=values.device
    )
    cut = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << LOW_BITS)).view(torch.float32)
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
        self.kernel: Any = None  # of a GPU, once it was asked for
        everything = [parameter for group in self.param_groups for parameter in group["params"]]
        self.places = {parameter: index for index, parameter in enumerate(everything)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[torch.dtype, int], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault((weight.dtype, self._count(weight)), []).append(weight)
            for (_, step), weights in alike.items():
                if weights[0].is_cuda and (kind := find_rounding()):
                    self.kernel = self.kernel or kind()
                    self._change_all(weights, step, group)
                else:
                    self._change_apart(weights, step, group)

    def _count(self, weight: Tensor) -> int:
        """Which of a weight's steps this is, from 1."""
        state = self.state[weight]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        state["step"] += 1
        count: int = state["step"]
        return count

    def _change_all(self, weights: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """By the kernel of a GPU."""
        gradients = [_laid_like(weight.grad, weight) for weight in weights if weight.grad is not None]
        means, squares = ([self.state[weight][name] for weight in weights] for name in ("mean", "square"))
        numbered = [self.places[weight] for weight in weights]
        seed = mixed(self.seed, step, 0)
        self.kernel.move(weights, (gradients, means, squares), numbered, seed, step, group)

    def _change_apart(self, weights: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """By torch, piece by piece."""
        for together in pieces(weights):
            chance = random_bits(self.seed, step, self.places[together[0]], together[0].device)
            self._change(together, step, group, chance)

    def _change(
        self, weights: list[Tensor], step: int, group: dict[str, Any], chance: torch.Generator
    ) -> None:
        means, squares = ([self.state[weight][name] for weight in weights] for name in ("mean", "square"))
        if len(weights) > 1:
            gradients = joined([weight.grad for weight in weights])  # type: ignore[misc]
            changed = joined(weights), joined(means), joined(squares)
            change(changed[0], gradients, *changed[1:], step, group, chance)
            for into, values in zip((weights, means, squares), changed, strict=True):
                put_back(into, values)
            return
        whole = (weights[0], weights[0].grad, means[0], squares[0])
        for w, g, m, v in strips(*whole):  # type: ignore[arg-type]
            change(w, g, m, v, step, group, chance)


@cache
def find_rounding() -> Any:
    """The kernel's class; None where there is no Triton for a GPU, or it fails."""
    if find_fusion() is None:
        return None
    from aid.train.optimiser.rounding_kernel import RoundingKernel

    one = [torch.zeros(8, device="cuda", dtype=torch.bfloat16)]
    group = {"betas": (0.9, 0.999), "lr": 0.0, "eps": 1.0, "weight_decay": 0.0}
    kernel = RoundingKernel()

    def trial() -> None:
        kernel.move(one, [one, one, one], [0], 0, 1, group)
        kernel.follow(one, one, [0], 0, 0.0)

    return RoundingKernel if works(trial, "`adamw_bf16` is slower on this GPU") else None


def _laid_like(gradient: Tensor, weight: Tensor) -> Tensor:
    """A gradient whose numbers lie in a weight's order; of a dimension of one the stride says nothing."""
    pairs = zip(weight.shape, gradient.stride(), weight.stride(), strict=True)
    return gradient if all(a == b for size, a, b in pairs if size > 1) else laid_like(gradient, weight)


def pieces(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Weights that are changed together, in their order: as many as make a piece, a larger one alone."""
    together: list[Tensor] = []
    numbers = 0
    for weight in weights:
        numbers += weight.numel()
        if together and numbers > most_numbers(weight.is_cuda):
            yield together
            together, numbers = [], weight.numel()
        together.append(weight)
    if together:
        yield together


def strips(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, as many of their first rows as make a piece, then the next."""
    first = tensors[0]
    rows = max(1, most_numbers(first.is_cuda) * len(first) // max(1, first.numel()))
    for start in range(0, len(first), rows):
        yield tuple(tensor[start : start + rows] for tensor in tensors)


def most_numbers(gpu: bool) -> int:
    """Of a piece."""
    return GPU_PIECE_NUMBERS if gpu else PIECE_NUMBERS


def joined(tensors: Iterable[Tensor]) -> Tensor:
    """All their numbers, one behind another."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def put_back(into: list[Tensor], numbers: Tensor) -> None:
    """What `joined` made, into tensors like those it was made of."""
    parts: Any = torch.split(numbers, [tensor.numel() for tensor in into])
    torch._foreach_copy_(into, [part.view(tensor.shape) for part, tensor in zip(parts, into, strict=True)])


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
    m, v = (moment.to(torch.float32, copy=True) for moment in (mean, square))
    store(mean, m.lerp_(gradient, 1 - first), chance)
    store(square, v.lerp_(gradient.square(), 1 - second), chance)
    size = v.div_(1 - second**step).sqrt_().add_(group["eps"])
    moved = m.div_(size).mul_(-group["lr"] / (1 - first**step))
    store(weight, moved.add_(weight.float(), alpha=1 - group["lr"] * group["weight_decay"]), chance)
