"""Which of the 26 blocks an LDM key belongs to, under the Merge Block Weighted convention."""

from __future__ import annotations

import re

from aid.sd.layouts import UNET

PLACES = (
    (re.compile(r"^input_blocks\.(\d+)\."), "IN"),
    (re.compile(r"^output_blocks\.(\d+)\."), "OUT"),
)


def block_of(key: str) -> str:
    """`BASE`, `IN00`..`IN11`, `M00` or `OUT00`..`OUT11`. time_embed counts as IN00 and `out.` as OUT11;
    text encoder, VAE and all else are BASE (bbc-mc's sdweb-merge-block-weighted-gui)."""
    if not key.startswith(UNET):
        return "BASE"
    inner = key[len(UNET) :]
    if inner.startswith("time_embed."):
        return "IN00"
    if inner.startswith("out."):
        return "OUT11"
    if inner.startswith("middle_block."):
        return "M00"
    for pattern, family in PLACES:
        if match := pattern.match(inner):
            return f"{family}{int(match[1]):02d}"
    return "BASE"
