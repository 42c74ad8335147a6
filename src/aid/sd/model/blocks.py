"""Which block an LDM key belongs to. Tools agree on the numbered blocks and differ on what lies between them:
the same weights then mean different models, so the convention has a name.

Sources: bbc-mc's sdweb-merge-block-weighted-gui, hako-mikan's sd-webui-supermerger, ljleb's sd-mecha 1.1.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from aid.core.blocks import BLOCKS, VAE_BLOCK
from aid.sd.model.architecture import Family
from aid.sd.model.layouts import POSITIONS, UNET, VAE

Convention = Literal["mbw", "supermerger", "mecha"]
PLACES = (
    (re.compile(r"^input_blocks\.(\d+)\."), "IN"),
    (re.compile(r"^output_blocks\.(\d+)\."), "OUT"),
)
FIRST: dict[Convention, tuple[str, ...]] = {  # what counts as IN00
    "mbw": ("time_embed.",),
    "supermerger": ("time_embed.", "label_emb."),
    "mecha": (),
}


@lru_cache(maxsize=8192)
def block_of(key: str, family: Family = "sd1", convention: Convention = "mbw") -> str:
    """`BASE`, `IN00`..`IN11`, `M00` or `OUT00`..`OUT11`; SDXL has nine of each, and `VAE` under `mecha`.

    `out.` counts as the last OUT block everywhere; of SDXL, MBW itself has OUT11 there, which is none of its
    blocks. time_embed is IN00 under `mbw` and `supermerger`, under
    this SDXL's label_emb too; text encoders, VAE and all else are BASE.
    """
    if not key.startswith(UNET):
        own = key.startswith(VAE) and VAE_BLOCK in extra_blocks(family, convention)
        return VAE_BLOCK if own else "BASE"
    inner = key[len(UNET) :]
    if inner.startswith(FIRST[convention]):
        return "IN00"
    if inner.startswith("out."):
        return BLOCKS[family][-1]
    if inner.startswith("middle_block."):
        return "M00"
    for pattern, place in PLACES:
        if match := pattern.match(inner):
            return f"{place}{int(match[1]):02d}"
    return "BASE"


def extra_blocks(family: Family, convention: Convention) -> tuple[str, ...]:
    """Blocks that a convention has beyond the numbered ones and BASE."""
    return (VAE_BLOCK,) if convention == "mecha" and family == "sdxl" else ()


def is_merged(key: str, convention: Convention = "mbw") -> bool:
    """Whether a tensor of floats is averaged at all: what isn't stays as the first model has it.

    MBW averages what has "model" in its name, supermerger of that only weights and biases, so that SDXL's
    text projection and logit scale stay. No tool's averages of position ids are of use.
    """
    if key in POSITIONS.values() or "model" not in key:
        return False
    return convention != "supermerger" or "weight" in key or "bias" in key
