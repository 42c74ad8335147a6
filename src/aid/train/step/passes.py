"""The two passes of a step, forward and backward; on a GPU recorded as CUDA graphs.

They are some six thousand kernels. Launching them one by one takes longer than a fast GPU needs for them.
Source: PyTorch's notes on CUDA graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aid.sd.drawing.recording import stream_beside
from aid.train.step.condition import Told
from aid.train.step.noising import Noised

SHAPES_KEPT = 16  # of batches; buckets are a dozen or fewer


@dataclass(frozen=True)
class Given:
    """What the passes are given: noised latents, what the U-Net is told, and weights in the loss [b*d]."""

    noised: Noised
    told: Told
    weights: Tensor

    def tensors(self) -> list[Tensor]:
        return [*self.noised.tensors(), *self.told.tensors(), self.weights]

    def each(self, change: Callable[[Tensor], Tensor]) -> Given:
        return Given(self.noised.each(change), self.told.each(change), change(self.weights))


Loss = Callable[[Given], Tensor]


@dataclass(frozen=True)
class Recording:
    """A graph with where it reads and where it writes; the inputs' gradients are written too."""

    graph: torch.cuda.CUDAGraph
    given: Given
    loss: Tensor

    def play(self, given: Given) -> Tensor:
        kept, new = self.given.tensors(), given.tensors()
        with torch.no_grad():
            torch._foreach_copy_(kept, new)
        self.graph.replay()
        learning = [(one, own.grad) for one, own in zip(new, kept, strict=True) if own.requires_grad]
        if learning:  # captions were encoded before, by what learns
            ends, gradients = zip(*learning, strict=True)
            torch.autograd.backward(ends, gradients)
        return self.loss.clone()


class Passes:
    """Adds the gradients of a loss to those of `parameters`, and returns the loss. Recorded, weights and
    their gradients are read and written where they are: they may change, but not move."""

    def __init__(self, loss: Loss, parameters: Sequence[Tensor], recorded: bool) -> None:
        self.loss, self.parameters, self.recorded = loss, parameters, recorded
        self.recordings: dict[object, Recording] = {}
        """By the shapes of what is given."""

    def __call__(self, given: Given) -> Tensor:
        if not self.recorded:
            return self._plainly(given)
        key = tuple((one.shape, one.stride(), one.dtype, one.requires_grad) for one in given.tensors())
        if key not in self.recordings:
            try:
                self.recordings[key] = self._record(given)
            except (
                RuntimeError
            ) as error:  # of memory, say: recordings keep theirs, and the bare passes may fit
                warnings.warn(
                    f"steps aren't recorded, and slower ({str(error).splitlines()[0]})", stacklevel=2
                )
                self.recorded = False
                self.forget()
                return self._plainly(given)
            if len(self.recordings) > SHAPES_KEPT:
                self.recordings.pop(next(iter(self.recordings)))
        return self.recordings[key].play(given)

    def forget(self) -> None:
        """Free the memory of what was recorded."""
        if self.recordings:
            self.recordings.clear()
            torch.cuda.empty_cache()

    def _plainly(self, given: Given) -> Tensor:
        loss = self.loss(given)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _record(self, given: Given) -> Recording:
        kept = given.each(lambda one: one.detach().clone().requires_grad_(one.requires_grad))
        self._rehearse(kept)
        graph, device = torch.cuda.CUDAGraph(), kept.weights.device
        pool = next((one.graph.pool() for one in self.recordings.values()), None)
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool, stream_beside(device), capture_error_mode="thread_local"),
        ):
            loss = self._plainly(kept)
        return Recording(graph, kept, loss)

    def _rehearse(self, given: Given) -> None:
        """A first time, in which libraries choose kernels and take memory. It only makes room for gradients
        where there are none: what is given and what kernels are chosen may differ while recording, and a
        training that resumes must not."""
        known = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        try:
            self._plainly(given)
        finally:
            for parameter, gradient in zip(self.parameters, known, strict=True):
                if gradient is None and parameter.grad is not None:
                    parameter.grad.zero_()
                else:
                    parameter.grad = gradient
            for one in given.tensors():
                one.grad = None
