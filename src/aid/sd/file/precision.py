"""What settings call the number formats of weights."""

from __future__ import annotations

import torch

from aid.core.shot import DrawingPrecision

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def drawing_type(precision: DrawingPrecision, device: torch.device) -> torch.dtype:
    """Of the weights while drawing; `auto` is what a device is quick with."""
    quick = "fp32" if device.type == "cpu" else "fp16"
    return PRECISIONS[quick if precision == "auto" else precision]
