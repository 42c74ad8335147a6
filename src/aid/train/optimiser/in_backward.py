"""Weights changed within the backward pass, so that gradients are never all in memory (LOMO's order, Lv et
al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

TOGETHER = 1 << 24  # numbers whose gradients wait for each other: launching costs a GPU's host by the tensor


class InBackward:
    """Lets gradients change their weights as soon as some are whole, and frees them. Only for optimisers that
    keep nothing across parameters; `groups` are the optimiser's."""

    def __init__(self, optimiser: Optimizer, groups: Iterable[Iterable[Tensor]]) -> None:
        self.optimiser = optimiser
        self.held: dict[int, list[Tensor]] = {}  # by their group
        self.numbers = 0
        self.norms: list[Tensor] = []
        for index, parameters in enumerate(groups):
            for parameter in parameters:
                parameter.requires_grad_()
                hold = partial(self._hold, index)
                parameter.register_post_accumulate_grad_hook(hold)  # type: ignore[no-untyped-call]

    def settle(self) -> float:
        """Let those change that still wait, at a pass's end; the norm of all its gradients."""
        self._change()
        norms, self.norms = self.norms, []
        return float(torch.stack(norms).norm()) if norms else 0.0

    def _hold(self, group: int, parameter: Tensor) -> None:
        self.held.setdefault(group, []).append(parameter)
        self.numbers += parameter.numel()
        if self.numbers >= TOGETHER:
            self._change()

    def _change(self) -> None:
        held, self.held, self.numbers = self.held, {}, 0
        parameters = [parameter for some in held.values() for parameter in some]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        self.norms += [norm.float() for norm in torch._foreach_norm(gradients)]
        groups = self.optimiser.param_groups
        self.optimiser.param_groups = [{**groups[index], "params": some} for index, some in held.items()]
        try:
            self.optimiser.step()
        finally:
            self.optimiser.param_groups = groups
        for parameter in parameters:
            parameter.grad = None
