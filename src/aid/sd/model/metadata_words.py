"""What a file's metadata says of a model and of its training, in a person's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from aid.sd.model.metadata import ModelSpec, Training

MOST_TAGS = 10  # the most frequent ones are told
LARGEST_COUNT = 10**12


def metadata_words(metadata: Mapping[str, str]) -> dict[str, str]:
    """Subject -> what ModelSpec's and kohya's keys say on it; nothing for what they don't. Never raises."""
    spec, training = ModelSpec.read(metadata), Training.read(metadata)
    told = {**(_of_spec(spec) if spec else {}), **(_of_training(training) if training else {})}
    return {subject: text for subject, text in told.items() if text}


def _of_spec(spec: ModelSpec) -> dict[str, str]:
    return {
        "title": spec.title,
        "author": spec.author,
        "date": spec.date,
        "licence": spec.license,
        "description": spec.description,
        "called by": spec.trigger_phrase,
        "usage": spec.usage_hint,
        "made for": spec.architecture,
        "resolution": f"{spec.resolution[0]}x{spec.resolution[1]}" if spec.resolution else "",
        "merged from": ", ".join(spec.merged_from),
        "tags": ", ".join(spec.tags),
        "negative embedding": "yes" if spec.is_negative_embedding else "",
    }


def _of_training(told: Training) -> dict[str, str]:
    model, version = told.sd_model_name or "", told.base_model_version or ""
    counts = _tag_counts(told.tag_frequency or {})
    return {
        "trained as": told.output_name or "",
        "base model": f"{model} ({version})" if model and version else model or version,
        "network": _listed(
            module=told.network_module,
            rank=told.network_dim,
            alpha=told.network_alpha,
            conv_rank=(told.network_args or {}).get("conv_dim"),
            conv_alpha=(told.network_args or {}).get("conv_alpha"),
        ),
        "trained at": told.resolution or "",
        "trained on": _listed(
            pictures=told.num_train_images, regularisation_pictures=told.num_reg_images or None
        ),
        "training": _listed(
            epochs=told.num_epochs,
            steps=told.max_train_steps if told.steps is None else told.steps,
            batch=told.total_batch_size or told.batch_size_per_device,
            optimiser=told.optimizer,
            rate=told.learning_rate,
            unet_rate=told.unet_lr,
            text_rate=told.text_encoder_lr,
            clip_skip=told.clip_skip,
        ),
        "trained on the day": _day(told.training_started_at),
        "comment": told.training_comment or "",
        "most frequent tags": ", ".join(f"{tag} {count}" for tag, count in counts.most_common(MOST_TAGS))
        + (f" (of {len(counts)})" if len(counts) > MOST_TAGS else ""),
    }


def _listed(**facts: Any) -> str:
    """`rank 32, alpha 16`: what is known."""
    known = {name.replace("_", " "): value for name, value in facts.items() if value is not None}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in known.items()
    )


def _tag_counts(frequency: Mapping[str, Any]) -> Counter[str]:
    """Over all folders: `{folder: {tag: count}}`."""
    counts: Counter[str] = Counter()
    for tags in frequency.values():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and 0 < count < LARGEST_COUNT:
                counts[tag.strip()] += count
    return counts


def _day(seconds: float | None) -> str:
    with suppress(ValueError, OverflowError, OSError, TypeError):
        return datetime.fromtimestamp(seconds or 0, UTC).date().isoformat() if seconds else ""
    return ""
