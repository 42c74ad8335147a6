"""States saved while training goes on: copied in memory at once, written by a second thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from aid.sd.file.state import save_state


class Saver:
    """Writes states into a folder under construction, one at a time, each whole before it is named. The
    newest `keep` stay. An error in writing is raised by the next call or at the end. Where processes train
    together, one `writes`."""

    def __init__(self, folder: Path, keep: int, behind: bool = True, writes: bool = True) -> None:
        self.folder, self.keep, self.behind, self.writes = folder, keep, behind, writes
        self.thread = ThreadPoolExecutor(1, "save")
        self.copies: dict[str, Tensor] = {}
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, step: int, tensors: Mapping[str, Tensor], also: Callable[[], None] | None = None) -> None:
        """Take a copy and return; it is written, and then `also` called, while training goes on."""
        self.wait()
        if not self.writes:
            return
        if not self.behind:
            self._write(step, dict(tensors), also)
            return
        self.pending = self.thread.submit(self._write, step, self._copy(tensors), also)

    def wait(self) -> None:
        """Until what was taken is on disk. Raises what went wrong there."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, tensors: dict[str, Tensor], also: Callable[[], None] | None) -> None:
        save_state(self.folder, step, tensors, self.keep)
        if also is not None:
            also()

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies into memory that the save before used too: new memory is slower than copying."""
        self.copies = {name: self._room(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self.copies[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return self.copies

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        held = self.copies.get(name)
        if held is not None and (held.shape, held.dtype) == (tensor.shape, tensor.dtype):
            return held
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
