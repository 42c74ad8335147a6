"""The two passes of a step, forward and backward; on a GPU recorded as CUDA graphs.

They are some six thousand kernels. Launching them one by one takes longer than a fast GPU needs for them.
Source: PyTorch's notes on CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Adds the gradients of a loss to those that are there, and returns the loss. Recorded, weights and their
    gradients are written and read where they are: they may change, but not move."""

    def __init__(self, loss: Loss, recorded: bool) -> None:
        self.loss, self.recorded = loss, recorded
        self.recordings: dict[object, Recording | None] = {}
        """By the shapes of what is given; None where such was seen once."""

    def __call__(self, given: Given) -> Tensor:
        if not self.recorded:
            return self._plainly(given)
        key = tuple((one.shape, one.stride(), one.dtype, one.requires_grad) for one in given.tensors())
        if key not in self.recordings:  # a first time: libraries choose kernels and take memory
            self.recordings[key] = None
            return self._plainly(given)
        recording = self.recordings[key]
        if recording is None:
            try:
                recording = self.recordings[key] = self._record(given)
            except torch.cuda.OutOfMemoryError:  # recordings keep their memory; the bare passes fit
                self.recorded = False
                self.forget()
                return self._plainly(given)
            self._limit()
        return recording.play(given)

    def forget(self) -> None:
        """Free the memory of what was recorded."""
        if any(self.recordings.values()):
            self.recordings = dict.fromkeys(self.recordings)
            torch.cuda.empty_cache()

    def _limit(self) -> None:
        kept = [key for key, recording in self.recordings.items() if recording is not None]
        for key in kept[:-SHAPES_KEPT]:
            self.recordings[key] = None

    def _plainly(self, given: Given) -> Tensor:
        loss = self.loss(given)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _record(self, given: Given) -> Recording:
        kept = given.each(lambda one: one.detach().clone().requires_grad_(one.requires_grad))
        graph, device = torch.cuda.CUDAGraph(), kept.weights.device
        pool = next((one.graph.pool() for one in self.recordings.values() if one is not None), None)
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool, stream_beside(device), capture_error_mode="thread_local"),
        ):
            loss = self._plainly(kept)
        return Recording(graph, kept, loss)
