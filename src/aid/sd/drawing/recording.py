"""The U-Net's calls recorded as CUDA graphs: the same kernels, launched at once.

A call is about a thousand kernels. Launching them one by one takes longer than a fast GPU needs for a batch
of one or two. Source: PyTorch's notes on CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

SHAPES_KEPT = 4  # of the inputs of one U-Net


@dataclass(frozen=True)
class Recording:
    """A graph with where it reads and where it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor

    def play(self, given: tuple[Tensor, ...]) -> Tensor:
        for kept, new in zip(self.inputs, given, strict=True):
            if new.numel() == 1 and new.device.type == "cpu":
                kept.fill_(new.item())  # a copy from the CPU would wait for the GPU
            else:
                kept.copy_(new)
        self.graph.replay()
        return self.output.clone()


class Recorder:
    """The forward of a U-Net on a GPU, recorded once for each shape of its inputs. Weights are read where
    they are: they may change between calls, but not move."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places
        """Addresses of the weights."""
        self.pool = torch.cuda.graph_pool_handle()
        self.recordings: dict[tuple[object, ...], Recording] = {}

    def forward(
        self,
        unet: Any,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The U-Net's prediction, as its own `forward` returns it with `return_dict=False`."""
        added = added_cond_kwargs or {}
        given = (sample, timestep, encoder_hidden_states, *added.values())
        key = tuple(added), *((one.shape, one.stride(), one.dtype) for one in given)
        if key not in self.recordings and not self._try_to_record(key, unet, given, tuple(added)):
            self.recordings.clear()  # only here, as an error that is being handled keeps alive what was
            torch.cuda.empty_cache()
            return (bare(unet, given, tuple(added)),)
        return (self.recordings[key].play(given),)

    def _try_to_record(
        self, key: tuple[object, ...], unet: Any, given: Sequence[Tensor], names: Sequence[str]
    ) -> bool:
        """Whether there was the memory, which a recording keeps; the bare call may fit all the same."""
        if len(self.recordings) == SHAPES_KEPT:
            self.recordings.pop(next(iter(self.recordings)))
        stream = torch.cuda.current_stream(unet.device)
        try:
            self.recordings[key] = self._record(unet, given, names)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.set_stream(stream)
            return False
        return True

    def _record(self, unet: Any, given: Sequence[Tensor], names: Sequence[str]) -> Recording:
        inputs = tuple(one.to(unet.device, copy=True) for one in given)
        graph, beside = torch.cuda.CUDAGraph(), stream_beside(unet.device)
        with torch.cuda.device(unet.device):
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                bare(unet, inputs, names)  # a first call: libraries choose kernels and take memory
            torch.cuda.current_stream().wait_stream(beside)
            with torch.cuda.graph(graph, self.pool, beside, capture_error_mode="thread_local"):
                output = bare(unet, inputs, names)
        return Recording(graph, inputs, output)


def bare(unet: Any, inputs: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """The U-Net's own forward; what comes after its three inputs goes by these names."""
    added = dict(zip(names, inputs[3:], strict=True)) or None
    made: Tensor = type(unet).forward(unet, *inputs[:3], added_cond_kwargs=added, return_dict=False)[0]
    return made


@cache
def stream_beside(device: torch.device) -> Any:
    """One for all recordings on a device: libraries keep memory for each stream that they have worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


_RECORDERS: WeakKeyDictionary[Any, Recorder] = WeakKeyDictionary()


def recorder(unet: Any) -> Recorder:
    """The recorder of a U-Net on a GPU; a new one if its weights have moved."""
    places = [parameter.data_ptr() for parameter in unet.parameters()]
    known = _RECORDERS.get(unet)
    if known is None or known.places != places:
        known = _RECORDERS[unet] = Recorder(places)
    return known


def forget(unet: Any) -> None:
    """Free the memory of a U-Net's recordings, if it has any."""
    _RECORDERS.pop(unet, None)
