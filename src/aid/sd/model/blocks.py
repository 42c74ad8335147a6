"""Which block an LDM key belongs to, under the Merge Block Weighted convention."""

from __future__ import annotations

import re

from aid.sd.model.architecture import Family
from aid.sd.model.layouts import UNET

PLACES = (
    (re.compile(r"^input_blocks\.(\d+)\."), "IN"),
    (re.compile(r"^output_blocks\.(\d+)\."), "OUT"),
)


def block_of(key: str, family: Family = "sd1") -> str:
    """`BASE`, `IN00`..`IN11`, `M00` or `OUT00`..`OUT11`; SDXL has nine of each. time_embed counts as IN00 and
    `out.` as the last; text encoders, VAE and all else (SDXL's label_emb) are BASE
    (bbc-mc's sdweb-merge-block-weighted-gui)."""
    if not key.startswith(UNET):
        return "BASE"
    inner = key[len(UNET) :]
    if inner.startswith("time_embed."):
        return "IN00"
    if inner.startswith("out."):
        return "OUT08" if family == "sdxl" else "OUT11"
    if inner.startswith("middle_block."):
        return "M00"
    for pattern, place in PLACES:
        if match := pattern.match(inner):
            return f"{place}{int(match[1]):02d}"
    return "BASE"
