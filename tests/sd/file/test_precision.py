"""What drawing holds its weights in."""

from __future__ import annotations

import pytest
import torch

from aid.core.shot import DrawingPrecision
from aid.sd.file.precision import drawing_type


@pytest.mark.parametrize(
    ("precision", "on_cpu", "on_gpu"),
    [
        ("auto", torch.float32, torch.float16),
        ("fp32", torch.float32, torch.float32),
        ("fp16", torch.float16, torch.float16),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_gpu_draws_in_half_precision_unless_it_is_told_otherwise(
    precision: DrawingPrecision, on_cpu: torch.dtype, on_gpu: torch.dtype
) -> None:
    devices = torch.device("cpu"), torch.device("cuda", 1)
    assert [drawing_type(precision, device) for device in devices] == [on_cpu, on_gpu]
