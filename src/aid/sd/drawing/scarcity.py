"""What a GPU's memory doesn't suffice for at once, done in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def or_in_parts(whole: Callable[[], Result], parts: Callable[[], Result], told: str) -> Result:
    """`whole`, or where memory doesn't suffice for that `parts`, of which a warning tells."""
    try:
        return whole()
    except torch.OutOfMemoryError:
        pass  # as long as it is handled it keeps alive what was computed
    torch.cuda.empty_cache()
    warnings.warn(f"the GPU's memory is short: {told}", stacklevel=2)
    return parts()
