"""States saved while training goes on: copied in memory while the next step is computed, written by the same
second thread. Where there is no memory for a copy, training stands still meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from aid.core.memory import free_bytes
from aid.sd.file.state import save_state

State = dict[str, Tensor]


class Saver:
    """Writes states into a folder under construction, one at a time, each whole before it is named. The
    newest `keep` stay. An error in writing is raised by the next call or at the end. Where processes train
    together, one `writes`. `say` hears once that memory is short."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        behind: bool = True,
        writes: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.keep, self.behind, self.writes, self.say = folder, keep, behind, writes, say
        self.thread = ThreadPoolExecutor(1, "save")
        self.copies: State = {}
        self.copying: Future[State] | None = None
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, step: int, tensors: Mapping[str, Tensor], also: Callable[[], None] | None = None) -> None:
        """Return at once: a copy is taken and written, and then `also` called, while training goes on. None
        of `tensors` may change before `taken` has returned."""
        self.wait()
        if not self.writes:
            return
        if not (self.behind and self._has_room(tensors)):
            self._write(step, dict(tensors), also)
            return
        self.copying = self.thread.submit(self._copy, dict(tensors), stream_of(tensors))
        self.pending = self.thread.submit(self._write_copy, step, self.copying, also)

    def taken(self) -> None:
        """Until nothing that was to be saved is needed any more but its copy."""
        copying, self.copying = self.copying, None
        if copying is not None:
            copying.result()

    def wait(self) -> None:
        """Until what was taken is on disk. Raises what went wrong there."""
        pending, self.pending, self.copying = self.pending, None, None
        if pending is not None:
            pending.result()

    def _write_copy(self, step: int, copying: Future[State], also: Callable[[], None] | None) -> None:
        self._write(step, copying.result(), also)

    def _write(self, step: int, tensors: State, also: Callable[[], None] | None) -> None:
        save_state(self.folder, step, tensors, self.keep)
        if also is not None:
            also()

    def _has_room(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether there is memory for a copy, or one already."""
        if self.copies:
            return True
        needed, free = sum(map(copy_bytes, tensors.values())), free_bytes()
        if needed > free:
            gigabytes = f"{needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"
            self.say(f"  a copy of a state takes {gigabytes}: training stands still while states are written")
            self.say = lambda _: None
        return needed <= free

    @torch.no_grad()
    def _copy(self, tensors: State, stream: torch.cuda.Stream | None) -> State:
        """Copies into memory that the save before used too: new memory is slower than copying."""
        self.copies = {name: self._room(name, tensor) for name, tensor in tensors.items()}
        with torch.cuda.stream(stream):
            torch._foreach_copy_([*self.copies.values()], [*tensors.values()], non_blocking=True)
        if stream is not None:
            stream.synchronize()
        return self.copies

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        held = self.copies.get(name)
        if held is not None and (held.shape, held.dtype) == (tensor.shape, tensor.dtype):
            return held
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def copy_bytes(tensor: Tensor) -> int:
    """What its copy takes: torch hands out memory from which a GPU reads in powers of two."""
    return 1 << (tensor.nbytes - 1).bit_length() if tensor.is_cuda and tensor.nbytes else tensor.nbytes


def stream_of(tensors: Mapping[str, Tensor]) -> torch.cuda.Stream | None:
    """Where a GPU that holds tensors copies them beside what it computes, once it has done all that it was
    told until now; None where they are in the CPU's memory."""
    device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
    if device is None:
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream
