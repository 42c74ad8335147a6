"""Fused layers, where they can be had."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

Forward = Callable[..., Any]


@cache
def find_fusion() -> Callable[[Any], Forward | None] | None:
    """What fuses layers on a GPU; None where Triton, which comes with torch for one, is missing or of no use:
    it knows GPUs from Ampere on, and needs a C compiler."""
    if find_spec("triton") is None or torch.cuda.get_device_capability() < (8, 0):
        return None
    from aid.sd.fusion.layers import fused_forward
    from aid.sd.fusion.rows import dense

    rows = torch.zeros(2, 32, device="cuda")[:, :16]
    return fused_forward if works(lambda: dense(rows), "layers aren't fused on the GPU, and slower") else None


def works(call: Callable[[], object], otherwise: str) -> bool:
    """Whether a kernel can be had here, by trying it; a warning says what happens otherwise."""
    try:
        call()
    except Exception as error:  # whatever a compiler can say
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(f"{otherwise}: Triton fails ({reason})", stacklevel=2)
        return False
    return True
