"""Which of diffusers' layers do only what their usual form does, and can be computed otherwise."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_plain_residual(block: Any) -> bool:
    """Two norms with SiLU and a convolution each, a share of the step, and a sum."""
    sized = block.upsample is not None or block.downsample is not None or block.output_scale_factor != 1
    timed = block.time_emb_proj is not None and block.time_embedding_norm == "default"
    quiet = type(block.nonlinearity) is nn.SiLU and not block.dropout.p
    return timed and quiet and not (sized or block.skip_time_act)
