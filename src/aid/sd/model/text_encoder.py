"""Token ids to hidden states: clip skip as A1111 counts it, and learned vectors in place of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aid.sd.model.tokenizer import EOS

Fix = tuple[int, int, Tensor]  # row of the batch, first position (BOS is 0), vectors [n, width]
PENULTIMATE = -2


def encode_ids(text_encoder: Any, ids: Tensor, clip_skip: int = 1, fixes: Sequence[Fix] = ()) -> Tensor:
    """Encode windows of 77 token ids, [b, 77] -> [b, 77, width].

    `clip_skip` 1 is the last hidden state, n > 1 is hidden_states[-n]; the final layer norm follows
    either way. `fixes` replace token embeddings before positions are added, and gradients flow to them.
    Source: A1111 sd_hijack_clip.py.
    """
    core = getattr(text_encoder, "text_model", text_encoder)
    with _ReplacedRows(core.embeddings.token_embedding, fixes):
        if clip_skip == 1:
            last: Tensor = core(input_ids=ids).last_hidden_state
            return last
        hidden = core(input_ids=ids, output_hidden_states=True).hidden_states
    normed: Tensor = core.final_layer_norm(hidden[-clip_skip])
    return normed


def encode_penultimate(
    text_encoder: Any, ids: Tensor, fixes: Sequence[Fix] = (), layer: int = PENULTIMATE
) -> tuple[Tensor, Tensor]:
    """hidden_states[`layer`] as it is, without the final layer norm, and the last state with it; both
    [b, 77, width]. Source: Podell et al. 2023 (SDXL)."""
    core = getattr(text_encoder, "text_model", text_encoder)
    with _ReplacedRows(core.embeddings.token_embedding, fixes):
        output = core(input_ids=ids, output_hidden_states=True)
    return output.hidden_states[layer], output.last_hidden_state


def pool(text_encoder: Any, last: Tensor, ids: Tensor) -> Tensor:
    """The first EOS of each row through the text projection, [b, 77, width] -> [b, projection]."""
    rows = torch.arange(len(ids), device=last.device)
    pooled: Tensor = text_encoder.text_projection(last[rows, first_eos(ids)])
    return pooled


def first_eos(ids: Tensor) -> Tensor:
    """Where the words of each row end, [b, 77] -> [b]."""
    return (ids == EOS).int().argmax(dim=1)


def pad_with_zeros(ids: Tensor) -> Tensor:
    """The same ids with 0 behind the first EOS, as OpenCLIP's text encoders were trained."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(places > first_eos(ids).unsqueeze(1), 0, ids)


class _ReplacedRows:
    """While open, the embedding's output carries the fixes; the embedding itself is untouched."""

    def __init__(self, embedding: torch.nn.Module, fixes: Sequence[Fix]) -> None:
        self.embedding, self.fixes = embedding, fixes

    def __enter__(self) -> None:
        self.hook = self.embedding.register_forward_hook(self._replace) if self.fixes else None

    def __exit__(self, *_: object) -> None:
        if self.hook is not None:
            self.hook.remove()

    def _replace(self, _module: torch.nn.Module, _inputs: Any, rows: Tensor) -> Tensor:
        rows = rows.clone()
        for row, position, vectors in self.fixes:
            rows[row, position : position + len(vectors)] = vectors.to(rows)
        return rows


def token_embeddings(text_encoder: Any) -> Tensor:
    """The vocabulary's vectors, [49408, width], without gradients."""
    weight: Tensor = getattr(text_encoder, "text_model", text_encoder).embeddings.token_embedding.weight
    return weight.detach()
