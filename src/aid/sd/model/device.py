"""Where tensors live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.model.allocation import keep_freed_memory


def torch_device(bench: Workbench) -> torch.device:
    """The bench's device, "auto" being a GPU if there is one. Of several processes on a machine each has one
    of its own, counted from "cuda:N" or from the first. Applies the bench's thread count, lets freed memory
    be used again on a CPU, and on a GPU asks for kernels whose results don't vary.

    Raises SettingsError for a device that torch can't use here.
    """
    if bench.threads > 0:
        torch.set_num_threads(bench.threads)
    name = bench.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and bench.ranks > 1:
        name = of_rank(name, bench.local_rank)
    if name.startswith("cuda"):
        same_bits_on_cuda()
    if name == "cpu":
        keep_freed_memory()
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device {name} can't be used ({reason})", "auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where kernels are launched that aren't torch's
    return torch.device(name)


def of_rank(name: str, rank: int) -> str:
    """The `rank`-th GPU from a named one, or from the first."""
    first = name.removeprefix("cuda").removeprefix(":") or "0"
    return f"cuda:{int(first) + rank}" if first.isdecimal() else name


def same_bits_on_cuda() -> None:
    """Ask cuBLAS, cuDNN and torch for deterministic kernels, wherever they have one.

    cuBLAS reads its variable when it starts, so this comes before the first use of the GPU.
    Source: PyTorch's notes on reproducibility.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # nothing here reads what it hasn't written
    torch.backends.cudnn.benchmark = False


@contextmanager
def strictly_same_bits(device: torch.device) -> Iterator[None]:
    """Inside, torch refuses on a GPU what has no deterministic kernel; merely asked, it takes the quicker
    gradients of attention, whose sums vary."""
    if device.type != "cuda":
        yield
        return
    asked = torch.are_deterministic_algorithms_enabled()
    merely = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=merely)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU it goes without waiting for what the GPU is at."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
