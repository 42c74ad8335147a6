"""What a file's metadata says in ModelSpec's and in kohya's words, as typed values.

Reading is lenient: what can't be meant as its type stays text in `rest`. Source: Stability-AI/ModelSpec
1.0.1; kohya-ss/sd-scripts library/train_util.py and train_network.py for `ss_*`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from aid.sd.model.architecture import Architecture, Family, Prediction

MODELSPEC, TRAINING = "modelspec.", "ss_"
STALE = ("sshs_model_hash", "sshs_legacy_hash", f"{MODELSPEC}hash_sha256")  # of the tensors: untrue of others
PREDICTION_KEY, ARCHITECTURE_KEY = f"{MODELSPEC}prediction_type", f"{MODELSPEC}architecture"
NAMES: dict[tuple[Family, Prediction], str] = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v"): "stable-diffusion-xl-v1-base",
}
VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
Size = tuple[int, int]


class _Words(BaseModel):
    """Fields that are written as text under a prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    rest: dict[str, str] = {}
    """What is under the prefix and no known field, or can't be read as its type; without the prefix."""

    @classmethod
    def _read(cls, metadata: Mapping[str, str], prefix: str) -> Self | None:
        """None if the metadata holds nothing under the prefix."""
        values: dict[str, Any] = {}
        rest: dict[str, str] = {}
        for key, text in metadata.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                found, value = cls._parsed(name, text)
                (values if found else rest)[name] = value
        return cls(**values, rest=rest) if values or rest else None

    @classmethod
    def _parsed(cls, name: str, text: str) -> tuple[bool, Any]:
        field = cls.model_fields.get(name)
        if field is None or name == "rest":
            return False, text
        try:
            annotation: Any = field.annotation
            return True, TypeAdapter(annotation).validate_python(cls._value(name, text))
        except (ValidationError, ValueError, RecursionError):
            return False, text

    @classmethod
    def _value(cls, name: str, text: str) -> Any:
        """The text as something that the field's type can be made of."""
        raise NotImplementedError


class ModelSpec(_Words):
    """`modelspec.*`: what a model is. Empty and None fields are not written."""

    sai_model_spec: str = "1.0.1"
    architecture: str = ""
    implementation: str = "https://github.com/Stability-AI/generative-models"
    title: str = ""
    resolution: Size | None = None
    """Width and height it was trained at, pixels."""
    description: str = ""
    author: str = ""
    date: str = ""
    hash_sha256: str = ""
    """Of the tensors, 64 digits; written with `0x` before them."""
    implementation_version: str = ""
    license: str = ""
    usage_hint: str = ""
    thumbnail: str = ""
    """A data URL of 256 x 256 pixels."""
    tags: tuple[str, ...] = ()
    merged_from: tuple[str, ...] = ()
    """Titles."""
    trigger_phrase: str = ""
    prediction_type: Literal["epsilon", "v"] | None = None
    timestep_range: tuple[int, int] | None = None
    encoder_layer: int | None = None
    """Clip skip."""
    preprocessor: str = ""
    is_negative_embedding: bool | None = None
    unet_dtype: str = ""
    vae_dtype: str = ""

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Self | None:
        return cls._read(metadata, MODELSPEC)

    @classmethod
    def _value(cls, name: str, text: str) -> Any:
        if name == "resolution":
            return tuple(text.lower().split("x"))
        if name in ("tags", "merged_from", "timestep_range"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return text.removeprefix("0x") if name == "hash_sha256" else text

    def written(self) -> dict[str, str]:
        """As metadata, prefixed."""
        fields = {name: value for name, value in self if name != "rest" and value not in ("", (), None)}
        told = {name: _modelspec_text(name, value) for name, value in fields.items()}
        return {f"{MODELSPEC}{name}": text for name, text in {**self.rest, **told}.items()}


def _modelspec_text(name: str, value: Any) -> str:
    if name == "resolution":
        return f"{value[0]}x{value[1]}"
    if name == "hash_sha256":
        return f"0x{value}"
    if isinstance(value, tuple):
        return ("," if name == "timestep_range" else ", ").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


class Training(_Words):
    """`ss_*`: how kohya's scripts trained a file. What is None was written as "None" or not at all."""

    output_name: str | None = None
    session_id: int | None = None
    training_started_at: float | None = None
    """Seconds since 1970."""
    training_finished_at: float | None = None
    base_model_version: str | None = None
    v2: bool | None = None
    network_module: str | None = None
    network_dim: int | None = None
    """The rank. A resized file's says "Dynamic", which stays in `rest`."""
    network_alpha: float | None = None
    network_args: dict[str, Any] | None = None
    learning_rate: float | None = None
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    optimizer: str | None = None
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    max_grad_norm: float | None = None
    num_train_images: int | None = None
    num_reg_images: int | None = None
    num_batches_per_epoch: int | None = None
    num_epochs: int | None = None
    epoch: int | None = None
    steps: int | None = None
    max_train_steps: int | None = None
    batch_size_per_device: int | None = None
    total_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    mixed_precision: str | None = None
    full_fp16: bool | None = None
    cache_latents: bool | None = None
    clip_skip: int | None = None
    max_token_length: int | None = None
    seed: int | None = None
    lowram: bool | None = None
    noise_offset: float | None = None
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float | None = None
    zero_terminal_snr: bool | None = None
    min_snr_gamma: float | None = None
    debiased_estimation: bool | None = None
    loss_type: str | None = None
    prior_loss_weight: float | None = None
    caption_dropout_rate: float | None = None
    caption_dropout_every_n_epochs: int | None = None
    caption_tag_dropout_rate: float | None = None
    resolution: str | None = None
    enable_bucket: bool | None = None
    bucket_no_upscale: bool | None = None
    min_bucket_reso: int | None = None
    max_bucket_reso: int | None = None
    keep_tokens: int | None = None
    shuffle_caption: bool | None = None
    color_aug: bool | None = None
    flip_aug: bool | None = None
    random_crop: bool | None = None
    face_crop_aug_range: str | None = None
    datasets: list[Any] | None = None
    dataset_dirs: dict[str, Any] | None = None
    reg_dataset_dirs: dict[str, Any] | None = None
    tag_frequency: dict[str, Any] | None = None
    bucket_info: dict[str, Any] | None = None
    sd_model_name: str | None = None
    sd_model_hash: str | None = None
    """A1111's first hash of the model trained on; `new_`: its sha256."""
    new_sd_model_hash: str | None = None
    vae_name: str | None = None
    vae_hash: str | None = None
    new_vae_hash: str | None = None
    sd_scripts_commit_hash: str | None = None
    training_comment: str | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Self | None:
        return cls._read(metadata, TRAINING)

    @classmethod
    def _value(cls, name: str, text: str) -> Any:
        if text == "None":
            return None
        return json.loads(text) if name in JSON else text

    def written(self) -> dict[str, str]:
        """As metadata, prefixed; fields that were set to None are written as "None"."""
        told = {name: _training_text(getattr(self, name)) for name in self.model_fields_set - {"rest"}}
        return {f"{TRAINING}{name}": text for name, text in {**self.rest, **told}.items()}


JSON = ("network_args", "datasets", "dataset_dirs", "reg_dataset_dirs", "tag_frequency", "bucket_info")


def _training_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def architecture_name(architecture: Architecture) -> str:
    """ModelSpec's. A model of other widths than its family's calls itself `.../narrow`, so that no tool takes
    it for one that it can open."""
    if architecture.inpaints:
        return f"{architecture_name(architecture.model_copy(update={'unet_inputs': 4}))}-inpainting"
    name = NAMES[architecture.family, architecture.prediction]
    return f"{name}/narrow" if architecture.is_narrow else name


def base_version(architecture: Architecture) -> str:
    """kohya's `ss_base_model_version`, by which A1111 tells a LoRA's family."""
    version = VERSIONS[architecture.family]
    return f"{version}_v" if architecture.family == "sd2" and architecture.prediction == "v" else version
