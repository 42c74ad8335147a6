"""The many names that files have for one module, brought to one: `lora_unet_`, `lora_te1_` or `lora_te2_`
and the module's path with `_` for dots.

Known: kohya's names (diffusers' paths; for SDXL the SGM's), diffusers' and PEFT's of every age, LyCORIS's
own, LDM's paths and ComfyUI's. Source: kohya-ss/sd-scripts networks/lora.py, diffusers loaders, A1111
extensions-builtin/Lora, ComfyUI comfy/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from aid.sd.adapter.kind import BIASES, KINDS
from aid.sd.model.metadata import ARCHITECTURE_KEY

UNET, TEXT, TEXT_2 = "lora_unet_", "lora_te1_", "lora_te2_"
ALPHA, MAGNITUDE, PEFT_MAGNITUDE = "alpha", "dora_scale", "lora_magnitude_vector"
MAGNITUDES = (MAGNITUDE, PEFT_MAGNITUDE)  # DoRA's
BUNDLED = re.compile(r"^bundle_emb\.(?P<name>.+)\.(?P<part>string_to_param\.\*|clip_l|clip_g)$")

# kohya's and LyCORIS's own last words of a key, the longest first
_OWN = {name for kind in KINDS.values() for name in kind.names} | {*BIASES, ALPHA, MAGNITUDE}
_SUFFIXES = sorted(_OWN, key=lambda name: (-len(name), name))
_FOREIGN = (
    (re.compile(r"\.lora_A(?:\.[^.]+)??(?:\.weight)?$"), "lora_down.weight"),
    (re.compile(r"\.lora_B(?:\.[^.]+)??(?:\.weight)?$"), "lora_up.weight"),
    (re.compile(r"\.lora_magnitude_vector(?:\.[^.]+)??(?:\.weight)?$"), PEFT_MAGNITUDE),
    (re.compile(r"[._]lora(?:_linear_layer)?\.down\.weight$"), "lora_down.weight"),
    (re.compile(r"[._]lora(?:_linear_layer)?\.up\.weight$"), "lora_up.weight"),
)
_WORDS = {  # the first of a path whose dots are _
    "lora_unet_": UNET,
    "lora_te1_": TEXT,
    "lora_te2_": TEXT_2,
    "lora_te_": TEXT,
    "lycoris_": UNET,  # LyCORIS by itself, as SimpleTuner trains with it
}
_PEFT = "base_model.model."  # with or without the part before it
_PARTS = {  # the first words of a dotted path
    "unet.": UNET,
    "text_encoder.": TEXT,
    "text_encoder_2.": TEXT_2,
    "model.diffusion_model.": UNET,
    "diffusion_model.": UNET,
    "text_encoders.clip_l.transformer.": TEXT,  # ComfyUI's extracted LoRA
    "text_encoders.clip_h.transformer.": TEXT,
    "text_encoders.clip_g.transformer.": TEXT_2,
    "lora_unet.": UNET,
    "lora_te.": TEXT,
    "lora_te1.": TEXT,
    "lora_te2.": TEXT_2,
}

_FAMILY_WORDS = {  # in kohya's or ModelSpec's metadata
    "sdxl": "SDXL", "xl-v1": "SDXL", "sd_v2": "SD2", "diffusion-v2": "SD2",
    "flux": "FLUX", "sd3": "SD3", "sd_v1": "SD1", "diffusion-v1": "SD1",
}  # fmt: skip


def split_key(key: str) -> tuple[str, str] | None:
    """A key's module, as the file calls it, and kohya's word for what the tensor is; None if the key is
    no adapter's."""
    for suffix in _SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key[: -len(suffix) - 1], suffix
    for pattern, suffix in _FOREIGN:
        if match := pattern.search(key):
            return key[: match.start()], suffix
    return None


class Keys(NamedTuple):
    """A file's keys: of each module, as the file calls it, by kohya's word for the tensor; of each bundled
    embedding by the part's name; and those that are no adapter's."""

    modules: dict[str, dict[str, str]]
    bundled: dict[str, dict[str, str]]
    unread: list[str]


def group_keys(keys: Iterable[str]) -> Keys:
    found = Keys({}, {}, [])
    for key in keys:
        if match := BUNDLED.match(key):
            part = match["part"].removeprefix("string_to_param.")
            found.bundled.setdefault(match["name"], {})[part] = key
        elif split := split_key(key):
            found.modules.setdefault(split[0], {})[split[1]] = key
        else:
            found.unread.append(key)
    return found


def module_name(raw: str) -> str:
    """The one name of a module that a file calls `raw`."""
    if word := next((word for word in _WORDS if raw.startswith(word)), None):
        return _flat(_WORDS[word], raw.removeprefix(word))
    path = raw.removeprefix(_PEFT)
    part = next((word for word in _PARTS if path.startswith(word)), None)
    prefix = _PARTS[part] if part else TEXT if path.startswith("text_model.") else UNET
    return _flat(prefix, _modern_path(path.removeprefix(part or "").removeprefix(_PEFT)))


def _modern_path(path: str) -> str:
    """A diffusers path without what its first LoRA files, named after attention processors, added."""
    path = path.replace(".processor.", ".").removesuffix("_lora")
    path = re.sub(r"\.to_out$", ".to_out.0", path)
    path = re.sub(r"self_attn\.to_([qkv])$", r"self_attn.\1_proj", path)
    return path.replace("self_attn.to_out.0", "self_attn.out_proj")


def _flat(prefix: str, path: str) -> str:
    flat = path.replace(".", "_")
    return prefix + (flat if prefix == UNET else flat.removeprefix("text_model_"))


def kohya_name(name: str, xl: bool) -> str:
    """What kohya's tools call a text encoder's module of the one name `name`; `xl`: of SDXL."""
    for prefix in (TEXT, TEXT_2):
        if name.startswith(prefix):
            inner = name[len(prefix) :]
            inner = inner if inner == "text_projection" else f"text_model_{inner}"
            return (prefix if xl else "lora_te_") + inner
    return name


def family_of(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> str:
    """The family an adapter is for, such as SDXL; empty if nothing tells.

    By its modules' names, by their widths (`shapes` of what is added: [out, in, ...]), by its metadata.
    """
    return _family_by_names(shapes) or _family_by_width(shapes) or _family_by_metadata(metadata)


def _family_by_names(names: Iterable[str]) -> str:
    whole = "\n".join(names)
    for pattern, family in (
        (r"double_blocks|single_blocks|single_transformer_blocks", "FLUX"),
        (r"joint_blocks|lora_te3_|joint_transformer", "SD3"),
        (r"lora_prior_", "Stable Cascade"),
        (r"^lora_te2_|transformer_blocks_[2-9]_|add_embedding|label_emb", "SDXL"),
    ):
        if re.search(pattern, whole, re.MULTILINE):
            return family
    return ""


def _family_by_width(shapes: Mapping[str, Sequence[int]]) -> str:
    """What the U-Net's attention to the text reads, and the text encoder's own, is as wide as the text."""
    for pattern, families in (
        (r"attn2_to_[kv]$", {768: "SD1", 1024: "SD2", 2048: "SDXL"}),
        (r"^lora_te1_.*self_attn_[qkv]_proj$", {768: "SD1 or SDXL", 1024: "SD2"}),
    ):
        widths = (shape[1] for name, shape in shapes.items() if len(shape) > 1 and re.search(pattern, name))
        if (width := next(widths, None)) is not None:
            return families.get(width, "")
    return ""


def _family_by_metadata(metadata: Mapping[str, str]) -> str:
    version = metadata.get("ss_base_model_version", "") + metadata.get(ARCHITECTURE_KEY, "")
    for word, family in _FAMILY_WORDS.items():
        if word in version.lower():
            return family
    return "SD2" if metadata.get("ss_v2") == "True" else ""
