"""The state of an unfinished training on disk: written whole, newest wins, damaged ones are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from aid.core.artifact import SCRATCH
from aid.errors import FileError
from aid.sd.file.tensorfile import Header, read_header, write_tensors

STATES = f"{SCRATCH}/state-*.safetensors"


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], keep: int) -> None:
    """Write `scratch/state-STEP.safetensors` atomically and delete all but the newest `keep`."""
    write_tensors(folder / SCRATCH / f"state-{step:08d}.safetensors", tensors, {})
    for stale in _states(folder)[keep:]:
        stale.unlink()


def load_state(folder: Path) -> tuple[int, Header] | None:
    """The newest whole state: its step, and its file, from which tensors are read one at a time."""
    for path in _states(folder):
        try:
            return int(path.stem.partition("-")[2]), read_header(path)
        except (FileError, ValueError):
            continue
    return None


def has_states(folder: Path) -> bool:
    """Whether there are states, whole or not."""
    return bool(_states(folder))


@contextmanager
def fitting(saved: Header) -> Iterator[None]:
    """Around putting a state back. Raises FileError, naming its file, for one of another training or of none;
    what was put back until then is of no use."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise FileError(
            f"{saved.path} is no state of this training ({type(error).__name__})",
            "what an earlier run of it saved",
            "Delete that file: training goes on from the state before it, or from the start.",
        ) from error


def module_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers as flat tensors, `module.NAME`."""
    return {f"module.{name}": tensor for name, tensor in module.state_dict().items()}


def restore_module(module: torch.nn.Module, saved: Header) -> None:
    """Put a saved state back, each tensor into the memory that the module has for it."""
    module.load_state_dict({name: saved.read(f"module.{name}") for name in module.state_dict()})


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, `optimiser.GROUPINDEX.NAME`."""
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: Header) -> None:
    """Put a saved state back. Moments take their parameter's memory layout: the fused optimiser walks
    raw memory and would mix up channels_last weights with row-major moments."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key in saved.tensors:
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            like, value = parameters[int(index)], saved.read(key)
            value.expand(like.shape)  # a number, or a factor's row or column; raises for any other shape
            laid = laid_like(value, like) if value.shape == like.shape else value
            state.setdefault(int(index), {})[name] = laid
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def laid_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole saved tensor in the memory layout of `like`, or its share of what processes hold. Raises
    ValueError for one of another shape."""
    if value.shape != like.shape:
        raise ValueError(f"{list(value.shape)} where {list(like.shape)} was saved")
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob(STATES), reverse=True)
