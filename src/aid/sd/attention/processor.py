"""Our attention in diffusers' blocks, where gradients are wanted and others hang on their layers."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from aid.sd.attention.attention import attention
from aid.sd.attention.kernel import find_kernel


class LearningAttention(AttnProcessor2_0):  # type: ignore[misc]
    """What diffusers' own computes, of a plain block."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            made: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return made
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        seen = attention(attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text), attn.heads)
        projection, dropout = attn.to_out
        found: Tensor = dropout(projection(seen))
        return found


def set_attention(unet: nn.Module) -> None:
    """In every plain block; nowhere if there is no kernel, and torch's is as quick as it gets."""
    blocks: list[Any] = [*unet.modules()] if find_kernel() else []
    for block in blocks:
        if type(block) is Attention and type(block.processor) is AttnProcessor2_0 and is_plain(block):
            block.set_processor(LearningAttention())


def is_plain(block: Any) -> bool:
    """Whether it is projections, attention and a projection, and nothing else."""
    norms = (block.spatial_norm, block.group_norm, block.norm_q, block.norm_k, block.norm_cross)
    usual = block.scale_qk and block.inner_kv_dim == block.inner_dim and block.to_out is not None
    return usual and not any(norms) and not block.residual_connection and block.rescale_output_factor == 1
