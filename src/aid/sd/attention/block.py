"""Our attention in diffusers' blocks, where gradients are wanted and others hang on their layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from aid.sd.attention.attention import attention

See = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def attend(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    seen: See = attention,
    **words: Any,
) -> Tensor:
    """What a plain block computes, without what diffusers looks up at every call; `seen` is the attention."""
    made: Tensor
    if attention_mask is not None:
        made = Attention.forward(block, hidden_states, encoder_hidden_states, attention_mask, **words)
        return made
    text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    found = seen(block.to_q(hidden_states), block.to_k(text), block.to_v(text), block.heads)
    projection, dropout = block.to_out
    made = dropout(projection(found))
    return made


def is_plain(block: Any) -> bool:
    """Whether it is projections, attention and a projection, and nothing else."""
    norms = (block.spatial_norm, block.group_norm, block.norm_q, block.norm_k, block.norm_cross)
    usual = block.scale_qk and block.inner_kv_dim == block.inner_dim and block.to_out is not None
    alone = not any(norms) and not block.residual_connection and block.rescale_output_factor == 1
    return usual and alone and type(block.processor) is AttnProcessor2_0
