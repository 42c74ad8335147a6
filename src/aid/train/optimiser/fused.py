"""AdamW and the norm of gradients for a thousand small weights: on a CPU by a kernel of our own where it was
compiled with the package, elsewhere torch's with less around them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aid.sd.file.state import laid_like
from aid.train.optimiser.kernel import Rule, find_kernel, places_of

STATE = ("exp_avg", "exp_avg_sq", "step")  # of a weight, as torch names it
TINY = 1e-6  # beside a norm that is divided by


class Lain(NamedTuple):
    """Weights and what belongs to them, and where that lies: found once for many steps."""

    tensors: tuple[list[Tensor], ...]  # weights, means, squares, counts of steps
    places: list[array[int]]  # theirs
    alike: bool
    strides: list[tuple[int, ...]]
    state: object  # the optimiser's, while these are in it


class FusedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2017) as torch's fused kernel has it. torch asks at every step of what kind,
    type and device each tensor is; that is known here if all are alike, `plain`. `scale` is then what a step
    multiplies its gradients by."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        alike = len({(type(weight), weight.dtype, weight.device) for weight in weights}) == 1
        self.plain = alike and not hasattr(weights[0], "device_mesh")
        self.kernel = find_kernel() if self.plain and _is_known(weights[0]) else None
        self.scale = 1.0
        self.lain: dict[tuple[int, ...], Lain] = {}  # by their ids

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if not self.plain:
            super().step()
            return
        for group in self.param_groups:
            pairs = [(weight, one) for weight in group["params"] if (one := weight.grad) is not None]
            if pairs:
                weights, gradients = zip(*pairs, strict=True)
                self._move([*weights], [*gradients], group)

    def _move(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        lain = self._lain(weights)
        first, second = group["betas"]
        if self.kernel and lain.alike:
            if lain.strides != [*map(Tensor.stride, gradients)]:
                gradients = [laid_like(one, weight) for one, weight in zip(gradients, weights, strict=True)]
            rule = Rule(group["lr"], first, second, group["eps"], group["weight_decay"], self.scale)
            self.kernel.move(gradients, lain.places, rule)
            return
        _, means, squares, counts = lain.tensors
        divisor = torch.full((), 1 / self.scale, device=weights[0].device) if self.scale != 1 else None
        torch._foreach_add_(counts, 1)
        torch._fused_adamw_(
            weights,
            gradients,
            means,
            squares,
            [],
            counts,
            lr=group["lr"],
            beta1=first,
            beta2=second,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )

    def _lain(self, weights: list[Tensor]) -> Lain:
        """Looked up again where another state was loaded or weights have moved."""
        key, at = tuple(map(id, weights)), places_of(weights)
        lain = self.lain.get(key)
        if lain is None or lain.state is not self.state or lain.places[0] != at:
            states = [self.state[weight] or self._begin(weight) for weight in weights]
            tensors = weights, *([state[name] for state in states] for name in STATE)
            places, strides = [*map(places_of, tensors)], [*map(Tensor.stride, weights)]
            lain = Lain(tensors, places, are_laid_alike(*tensors[:3]), strides, self.state)
            self.lain[key] = lain
        return lain

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        state["step"] = torch.zeros((), device=weight.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all their numbers together."""
    kernel = find_kernel() if all(map(_is_known, gradients)) else None
    if kernel is None or not all(map(_is_dense, gradients)):
        return torch.nn.utils.get_total_norm(gradients)
    return torch.tensor(kernel.norm(gradients))


def clip_factor(norm: float, limit: float) -> float:
    """What brings gradients of this norm to `limit` at most, as torch has it; a limit of 0 is none."""
    return min(1.0, limit / (norm + TINY)) if limit else 1.0


def are_laid_alike(first: Sequence[Tensor], *others: Sequence[Tensor]) -> bool:
    """Whether in each sequence the tensors lie in memory as those of the first."""
    counts, strides = [*map(Tensor.numel, first)], [*map(Tensor.stride, first)]
    return all(
        counts == [*map(Tensor.numel, other)] and strides == [*map(Tensor.stride, other)] for other in others
    )


def _is_known(tensor: Tensor) -> bool:
    """Whether the kernel knows its format."""
    return tensor.is_cpu and tensor.dtype == torch.float32


def _is_dense(tensor: Tensor) -> bool:
    """Whether there is nothing between its numbers, laid out as weights are."""
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
