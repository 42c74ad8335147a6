"""Token ids to hidden states: clip skip as A1111 counts it, and learned vectors in place of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Fix = tuple[int, int, Tensor]  # row of the batch, first position (BOS is 0), vectors [n, width]


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
