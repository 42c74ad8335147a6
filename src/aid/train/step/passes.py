"""The two passes of a step, forward and backward; on a GPU recorded as CUDA graphs.

They are some six thousand kernels. Launching them one by one takes longer than a fast GPU needs for them.
Source: PyTorch's notes on CUDA graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from aid.sd.drawing.recording import stream_beside
from aid.train.step.condition import Told
from aid.train.step.noising import Noised

SHAPES_KEPT = 64  # of batches: a dozen buckets, with what is left over of each, in some sizes


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


class Graph(Protocol):
    """What was recorded, and can be done again."""

    def replay(self) -> None: ...
    def pool(self) -> Any: ...


Capture = Callable[[Callable[[], Tensor], torch.device, Any], tuple[Graph, Tensor]]
"""Records what some work does on a device, in the memory of other graphs if there are any; and where its
result will be."""


def captured(work: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Graph, Tensor]:
    """By CUDA. Raises RuntimeError; most likely there is too little memory."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    beside = stream_beside(device)
    try:
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool, beside, capture_error_mode="thread_local"),
        ):
            result = work()
    except RuntimeError:
        torch.cuda.set_stream(stream)
        raise
    return graph, result


@dataclass(frozen=True)
class Recording:
    """A graph with where it reads and where it writes; the inputs' gradients are written too."""

    graph: Graph
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
    gradients are read and written where they are: they may change, but not move."""

    def __init__(self, loss: Loss, recorded: bool, capture: Capture = captured) -> None:
        self.loss, self.recorded, self.capture = loss, recorded, capture
        self.recordings: dict[object, Recording] = {}
        """By the shapes of what is given."""
        self.rehearsed: set[object] = set()

    def __call__(self, given: Given) -> Tensor:
        recording = self._recording(given) if self.recorded else None
        return self._plainly(given) if recording is None else recording.play(given)

    def forget(self) -> None:
        """Free the memory of what was recorded. What learns, and where its gradients are, may change then."""
        self.rehearsed.clear()
        self._free()

    def _recording(self, given: Given) -> Recording | None:
        """Of passes of such shapes, if need be in place of all others. None where even that fails: nothing is
        recorded then."""
        key = tuple((one.shape, one.stride(), one.dtype, one.requires_grad) for one in given.tensors())
        why = "" if key in self.recordings else self._try_to_record(key, given)
        if why:
            self._free()  # only here, as an error that is being handled keeps alive what was
            why = self._try_to_record(key, given)
        if not why:
            return self.recordings[key]
        warnings.warn(f"steps aren't recorded, and slower ({why})", stacklevel=3)
        self.forget()
        self.recorded = False
        return None

    def _try_to_record(self, key: object, given: Given) -> str:
        """What went wrong; the bare passes take less memory."""
        try:
            self.recordings[key] = self._record(key, given)
        except RuntimeError as error:
            return str(error).partition("\n")[0] or type(error).__name__
        if len(self.recordings) > SHAPES_KEPT:
            self.recordings.pop(next(iter(self.recordings)))
        return ""

    def _free(self) -> None:
        self.recordings.clear()
        if self.recorded:
            torch.cuda.empty_cache()

    def _plainly(self, given: Given) -> Tensor:
        loss = self.loss(given)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _record(self, key: object, given: Given) -> Recording:
        kept = given.each(lambda one: one.detach().clone().requires_grad_(one.requires_grad))
        if key not in self.rehearsed:
            self._rehearse(kept)
            self.rehearsed.add(key)
        pool = next((one.graph.pool() for one in self.recordings.values()), None)
        graph, loss = self.capture(lambda: self._afresh(kept), kept.weights.device, pool)
        return Recording(graph, kept, loss)

    def _afresh(self, given: Given) -> Tensor:
        """The inputs' own gradients aren't added up."""
        for one in given.tensors():
            one.grad = None
        return self._plainly(given)

    def _rehearse(self, given: Given) -> None:
        """A first time, in which libraries choose kernels and take memory, and gradients get their places.
        The loss weighs nothing, so that they stay what they are: other kernels may be chosen while recording,
        and a training that resumes must not differ."""
        given.weights.zero_()
        self._plainly(given)
