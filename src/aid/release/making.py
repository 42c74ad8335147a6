"""The card's account of how the model was made: data, training, merging, embeddings, all settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aid.core.lineage import flat
from aid.release.facts import Facts
from aid.release.language import Wording
from aid.release.markdown import bullets, folded, paragraphs, section, table
from aid.release.method import Step, block_text, link_text


def making(facts: Facts, words: Wording) -> str:
    trained = [step for step in facts.steps if step.verb != "merge"]
    merged = [step for step in facts.steps if step.verb == "merge"]
    training = bullets(_training(facts, step, words) for step in trained) or words.say("no_training")
    merging = paragraphs(*(_merging(step, words) for step in merged)) or words.say("no_merging")
    return section(
        words.say("method"),
        section(words.say("data"), _data(facts, words), level=3),
        section(words.say("training"), training, level=3),
        section(words.say("merging"), merging, level=3),
        section(words.say("embedding"), *_embeddings(facts, words), level=3),
        paragraphs(*map(words.pick, facts.settings.method_notes)),
        _all_settings(facts, words),
    )


def _data(facts: Facts, words: Wording) -> str:
    train = [record for record in facts.records if record.split == "train"]
    sizes = sorted({(record.width, record.height) for record in facts.records})
    replayed = sum(record.regularisation for record in train)
    text = words.say(
        "data_text",
        train=len(train),
        held=len(facts.records) - len(train),
        styles=len({record.style for record in facts.records if record.style}),
        sizes=words.together([f"{width}x{height}" for width, height in sizes]),
    )
    return paragraphs(text, words.say("data_replay", count=replayed) if replayed else "")


def _training(facts: Facts, step: Step, words: Wording) -> str:
    start = step.sources.get("checkpoint", "?")
    start = words.say("earlier") if start == "train finetune" else start
    if step.verb != "train finetune":
        return words.say("other_training", verb=step.verb, start=start) + words.say("stop")
    head = "finetune_as" if step.label else "finetune"
    clauses = [
        words.say(head, label=step.label, start=start),
        words.say("own_data") if step.is_own else "",
        _length(step.settings, words),
        _if(words, "batch", count=step.settings.get("batch_size")),
        _rate(step.settings, words, "unet"),
        _rate(step.settings, words, "text"),
        _rate(step.settings, words, "text_2"),
        _weighting(step.settings, words),
        _if(words, "noise_offset", offset=step.settings.get("noise_offset")),
        _skip(facts, step, words),
        _if(words, "ema", decay=step.settings.get("ema")),
        _replay(step.settings, words),
    ]
    return words.sentence(clauses)


def _merging(step: Step, words: Wording) -> str:
    models = {name.removeprefix("models."): text for name, text in step.sources.items() if "models." in name}
    if chain := step.settings.get("chain"):
        links = [f"`{link_text(link)}`" for link in chain]
        return paragraphs(words.say("merge_chain", count=len(models)), bullets(links))
    if step.shares is None:
        preset = step.settings.get("preset") or "?"
        return words.say(
            "merge_preset", count=len(models), preset=preset, models=words.together(list(models))
        )
    rows = []
    for model, source in models.items():
        blocks = block_text(step.shares.get(model, {}))
        start = words.say("merge_start", start=source) if source != model else ""
        given = words.say("merge_row", model=model, start=start, blocks=blocks)
        rows.append((given if blocks else words.say("merge_nothing", model=model)) + words.say("stop"))
    return paragraphs(words.say("merge", count=len(models)), bullets(rows))


def _embeddings(facts: Facts, words: Wording) -> list[str]:
    trained = {step.settings.get("name"): step for step in facts.embedding_steps}
    lines = []
    for one in facts.embeddings:
        step = trained.get(one.name)
        if step is None:
            lines.append(words.say("embedding_given", name=one.name, vectors=one.vectors))
            continue
        clauses = [
            words.say("embedding_training", name=one.name, vectors=one.vectors),
            _if(words, "embedding_initial", text=step.settings.get("initial_text")),
            _if(words, "step_count", count=step.settings.get("steps")),
            _if(words, "batch", count=step.settings.get("batch_size")),
            _if(words, "embedding_rates", rates=step.settings.get("rates"))
            or _if(words, "embedding_rate", rate=step.settings.get("rate")),
            _skip(facts, step, words),
        ]
        lines.append(words.sentence(clauses))
    drew_its_own = facts.drew_bad_pictures and any(one.negative for one in facts.embeddings)
    return [bullets(lines), words.say("embedding_idea") if drew_its_own else ""]


def _all_settings(facts: Facts, words: Wording) -> str:
    parts = []
    for step in (*facts.steps, *facts.embedding_steps):
        rows = [
            (f"`{name}`", f"`{json.dumps(value, ensure_ascii=False)}`") for name, value in flat(step.settings)
        ]
        name = step.label or (step.settings.get("name") if step.verb == "train embedding" else "")
        title = f"`{step.verb}`" + (f" ({name})" if name else "")
        parts.append(paragraphs(title, table([words.say("setting"), words.say("value")], rows)))
    return folded(words.say("all_settings"), paragraphs(*parts))


def _if(words: Wording, key: str, **fields: Any) -> str:
    """The phrase, unless what it would tell is missing, zero or empty."""
    return words.say(key, **fields) if all(fields.values()) else ""


def _skip(facts: Facts, step: Step, words: Wording) -> str:
    count = step.settings.get("clip_skip") if facts.architecture.has_clip_skip else None
    return _if(words, "trained_skip", count=count)


def _length(settings: Mapping[str, Any], words: Wording) -> str:
    return _if(words, "epochs", count=settings.get("epochs")) or _if(
        words, "step_count", count=settings.get("steps")
    )


def _rate(settings: Mapping[str, Any], words: Wording, part: str) -> str:
    rate = settings.get(f"{part}_rate")
    if rate is None:
        return ""
    return words.say(f"{part}_rate", rate=rate) if rate else words.say(f"{part}_frozen")


def _weighting(settings: Mapping[str, Any], words: Wording) -> str:
    gamma = settings.get("snr_gamma") if settings.get("weighting") == "min_snr" else None
    return _if(words, "min_snr", gamma=gamma)


def _replay(settings: Mapping[str, Any], words: Wording) -> str:
    share = settings.get("regularisation_share")
    if share is None:
        return ""
    return words.say("replay", share=share) if share else words.say("replay_none")
