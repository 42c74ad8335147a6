"""Files that lie beside models and that AID doesn't draw with, told by a piece of a name that only they have.

Source: the key lists of the released files; ComfyUI's and spandrel's detection of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aid.sd.model.architecture import FAMILY_NAMES, REAL

IP_ADAPTER, TEXT_ENCODER = "IP-Adapter", "text encoder"
MARKS: dict[str, tuple[str, ...]] = {
    "ControlNet": ("zero_convs.0.0.", "controlnet_cond_embedding.", "lora_controlnet", "lllite_unet"),
    IP_ADAPTER: ("ip_adapter.",),
    "T2I-Adapter": ("body.0.block1.", "body.0.body.0.block1.", "body.0.resnets.0.block1.", "style_embedding"),
    "motion module": (".motion_modules.",),
    "upscaler": ("0.RDB1.conv1", "body.0.rdb1.conv1.", "layers.0.residual_group."),  # ESRGAN, SwinIR, HAT
    TEXT_ENCODER: ("token_embedding.weight", ".SelfAttention.q.weight"),
    "image encoder": ("vision_model.", "visual.transformer.resblocks."),
}
TOKENS = "token_embedding.weight"
TEXT_WIDTHS = {
    768: "CLIP ViT-L, SD1's and SDXL's first",
    1024: "OpenCLIP ViT-H, SD2's",
    1280: "OpenCLIP ViT-bigG, SDXL's second",
}
READS_TEXT = ("attn2.to_k.weight", "to_k_ip.weight")  # [width, that of the text]
CONTEXTS = {REAL[family].context_width: name for family, name in FAMILY_NAMES.items()}

Shapes = Mapping[str, Sequence[int]]


def relative_of(shapes: Shapes) -> str:
    """Its kind, in words; empty for what isn't known."""
    return next(
        (kind for kind, marks in MARKS.items() if any(mark in key for key in shapes for mark in marks)), ""
    )


def made_for(kind: str, shapes: Shapes) -> str:
    """What such a file belongs to; empty where nothing tells."""
    ends, known = (TOKENS, TEXT_WIDTHS) if kind == TEXT_ENCODER else (READS_TEXT, CONTEXTS)
    widths = (shape[1] for key, shape in shapes.items() if key.endswith(ends) and len(shape) > 1)
    return known.get(next(widths, 0), "")
