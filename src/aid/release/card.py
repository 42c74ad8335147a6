"""The model card: parameters, trigger words, versions, making, declarations, credits, hashes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aid.core.catalogue import Language, Style
from aid.core.report import Score
from aid.release.facts import Facts
from aid.release.language import Wording, wording
from aid.release.listing import joined_unique
from aid.release.making import making
from aid.release.markdown import bullets, fenced, paragraphs, section, table
from aid.release.usage import use
from aid.sd.model.architecture import FAMILY_NAMES, Architecture
from aid.sd.prompt.prompt import escape

HUB_LICENCES = (  # names that model hubs know; others are written out
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "creativeml-openrail-m",
)  # fmt: skip
HUB_TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}


def write_card(facts: Facts, language: Language) -> str:
    """The card in one language, Markdown."""
    words = wording(language)
    sections = (introduction, parameters, use, triggers, versions, making, embedding_use, declarations)
    written = [part(facts, words) for part in (*sections, credits_by_style, file_hashes, references)]
    return paragraphs(heading(facts, words), *written) + "\n"


def hub_page(facts: Facts) -> str:
    """README.md as model hubs read it: their own fields, then the English card."""
    licence = facts.settings.licence.lower()
    known = {"license": licence} if licence in HUB_LICENCES else {"license": "other"}
    named = {"license_name": facts.settings.licence} if licence and licence not in HUB_LICENCES else {}
    fields = {
        **(known if licence else {}),
        **named,
        "language": ["en", "zh"],
        "pipeline_tag": "text-to-image",
        "tags": [*facts.settings.tags, HUB_TAGS[facts.architecture.family], "text-to-image"],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "---\n" + "\n".join(lines) + "\n---\n\n" + write_card(facts, "en")


def heading(facts: Facts, words: Wording) -> str:
    settings = facts.settings
    byline = [
        words.say("byline", author=settings.author) if settings.author else "",
        words.say("released", date=settings.date) if settings.date else "",
        words.say("licence", licence=settings.licence) if settings.licence else "",
        words.say("other_card"),
    ]
    overview = facts.sheets.overview
    return paragraphs(
        f"# {settings.title} {settings.version}",
        " · ".join(filter(None, byline)),
        f"![{words.say('all_styles')}]({overview})" if overview else "",
    )


def introduction(facts: Facts, words: Wording) -> str:
    negative = [f"`{name}`" for name in facts.negative_embeddings()]
    counts = words.together(_counts(facts, words))
    sentences = [
        words.say("knows", counts=counts) if counts else "",
        words.say("palette"),
        words.say("call_character") if facts.catalogue.characters else "",
        words.say("needs_negative", names=words.together(negative)) if negative else "",
    ]
    shape = facts.architecture
    generation = FAMILY_NAMES[shape.family].removeprefix("SD")
    widths = {"unet": shape.unet_widths[0], "text": shape.text_width}
    return section(
        words.say("introduction"),
        words.pick(facts.settings.description),
        words.say("space").join(filter(None, sentences)),
        words.say("narrow", generation=generation, **widths) if shape.is_narrow else "",
        _prediction(shape, words),
        bullets(map(words.pick, facts.settings.notes)),
    )


def _prediction(architecture: Architecture, words: Wording) -> str:
    """What a tool has to know that can't tell it from the file; nothing of a usual model."""
    told = [words.say("predicts_v")] if architecture.prediction == "v" else []
    told += [words.say("zero_terminal")] if architecture.zero_terminal_snr else []
    return words.say("space").join([*told, words.say("must_know")]) if told else ""


def parameters(facts: Facts, words: Wording) -> str:
    advice = facts.catalogue.parameters
    first, *others = map(str, advice.steps)
    steps = words.say("steps_also", first=first, others=words.together(others)) if others else first
    rows = {
        "sampler": advice.sampler,
        "steps": steps,
        "sizes": ", ".join(f"{width}x{height}" for width, height in advice.sizes),
        "clip_skip": str(advice.clip_skip) if facts.architecture.has_clip_skip else "",
        "cfg_scale": "" if advice.cfg_scale is None else f"{advice.cfg_scale:g}",
        "vae": advice.vae,
        "negative_embedding": advice.negative_embedding,
    }
    negative = advice.negative("{tags}")
    return section(
        words.say("parameters"),
        bullets(words.pair(key, value) for key, value in rows.items() if value),
        paragraphs(words.say("prompt_format"), fenced(advice.prompt)),
        paragraphs(words.say("negative_format"), fenced(negative)) if advice.negative() else "",
        words.say("placeholders", section=words.say("triggers")),
    )


def triggers(facts: Facts, words: Wording) -> str:
    catalogue, version = facts.catalogue, facts.settings.version
    categories = [one.trigger for one in catalogue.categories if version in one.versions]
    characters = [one.trigger for one in catalogue.characters if version in one.versions]
    retired = [one.trigger for one in catalogue.entries() if version not in one.versions]
    renames = [
        words.say("renamed", old=rename.old, new=rename.new, version=rename.version)
        for rename in catalogue.renames
    ]
    return section(
        words.say("triggers"),
        words.say("columns") if facts.report and facts.report.styles else "",
        _style_table(facts, words),
        words.say("category_words", words=words.code(categories)) if categories else "",
        words.say("characters", names=words.code(characters)) if characters else "",
        bullets(renames),
        words.say("retired", triggers=words.code(retired)) if retired else "",
    )


def versions(facts: Facts, words: Wording) -> str:
    catalogue, version = facts.catalogue, facts.settings.version
    has_past = len(catalogue.versions) > 1
    added, dropped = catalogue.added(version), catalogue.dropped(version)
    strengths = [
        words.pick(one.title) + words.say("colon") + ", ".join(one.versions) for one in catalogue.comparisons
    ]
    new = words.say("new_here", version=version, triggers=words.code(added))
    gone = words.say("gone_here", version=version, triggers=words.code(dropped))
    return section(
        words.say("versions"),
        words.say("own_strengths") if has_past else "",
        bullets(strengths),
        new if added and has_past else "",
        gone if dropped else "",
        *_measured(facts, words),
    )


def embedding_use(facts: Facts, words: Wording) -> str:
    if not facts.embeddings:
        return ""
    lines = [
        words.say("embedding_negative" if one.negative else "embedding_positive", name=one.name)
        for one in facts.embeddings
    ]
    put = "embedding_put_narrow" if facts.architecture.is_narrow else "embedding_put"
    return section(words.say("embedding_use"), words.say(put), bullets(lines))


def declarations(facts: Facts, words: Wording) -> str:
    return section(words.say("declarations"), bullets(map(words.pick, facts.settings.declarations)))


def credits_by_style(facts: Facts, words: Wording) -> str:
    pictures = {record.source: record for record in facts.records}.values()  # each once, at any resolution
    known = {style.name: (style.licence, style.credit) for style in facts.styles()}
    rows = []
    for name, (licence, credit) in {**known, "": ("", "")}.items():
        own = [record for record in pictures if record.style == name]
        if name or own:
            licence = _stated([record.licence for record in own], licence, words)
            credit = _stated([record.credit for record in own], credit, words)
            rows.append((name or "—", licence, credit))
    headings = [words.say(key) for key in ("style", "licence_of", "credit")]
    return section(words.say("credits"), words.say("credits_text"), table(headings, rows))


def _stated(values: Sequence[str], otherwise: str, words: Wording) -> str:
    """What pictures say, and of how many of them nothing is known."""
    known, missing = joined_unique(values) or otherwise, sum(not value for value in values)
    if not known:
        return words.say("unknown")
    return f"{known}; {words.say('unknown_of', count=missing)}" if missing else known


def file_hashes(facts: Facts, words: Wording) -> str:
    rows = [(f"`{one.name}`", _size(one.size_bytes), f"`{one.sha256}`") for one in facts.files]
    model = facts.files[0]
    return section(
        words.say("files"),
        table([words.say("file"), words.say("size"), "SHA-256"], rows),
        words.say("model_hash", autov2=model.sha256[:10], autov3=model.tensors[:12]),
        words.say("lineage"),
    )


def references(facts: Facts, words: Wording) -> str:
    return section(words.say("references"), bullets(facts.settings.references))


def share(score: Score) -> str:
    """`93.1 % (90.2–95.3)`."""
    return f"{100 * score.value:.1f} % ({100 * score.low:.1f}–{100 * score.high:.1f})"


def level(score: Score) -> str:
    """`0.12 (0.10–0.15)`."""
    return f"{score.value:.2f} ({score.low:.2f}–{score.high:.2f})"


def _counts(facts: Facts, words: Wording) -> list[str]:
    version = facts.settings.version
    catalogue = facts.catalogue
    named = {"style": catalogue.styles, "character": catalogue.characters, "category": catalogue.categories}
    plural = {"style": "styles", "character": "characters", "category": "categories"}
    counts = {kind: sum(version in one.versions for one in entries) for kind, entries in named.items()}
    return [
        words.say(f"count_{kind if count == 1 else plural[kind]}", count=count)
        for kind, count in counts.items()
        if count
    ]


def _style_table(facts: Facts, words: Wording) -> str:
    keys = (
        "trigger",
        "since",
        "category",
        "pictures",
        "recognised",
        "ceiling",
        "artefact",
        "confused",
        "sample",
    )
    return table(
        [words.say(key) for key in keys], [_style_row(facts, words, style) for style in facts.styles()]
    )


def _style_row(facts: Facts, words: Wording, style: Style) -> tuple[str, ...]:
    row, sheet = facts.row(style.name), facts.sheets.by_style.get(style.name, "")
    return (
        f"`{escape(style.trigger)}`",
        style.since,
        style.category,
        "" if style.pictures is None else str(style.pictures),
        share(row.score) if row else "",
        share(row.ceiling) if row and row.ceiling else "",
        level(row.artefact) if row else "",
        row.confused_with if row else "",
        f"[{words.say('see')}]({sheet})" if sheet else "",
    )


def _measured(facts: Facts, words: Wording) -> list[str]:
    """The report's table, and the styles that changed for sure; a line if there is no report."""
    report = facts.report
    if report is None:
        return [words.say("not_measured")]
    earlier = facts.previous_reports
    headings = [words.say("measure"), facts.settings.version, words.say("ceiling"), *earlier]
    rows = [
        (
            words.phrases.get(f"score_{name}", name),
            share(score),
            share(report.ceilings[name]) if name in report.ceilings else "",
            *(share(one.scores[name]) if name in one.scores else "" for one in earlier.values()),
        )
        for name, score in report.scores.items()
    ]
    artefacts = (level(one.artefact) for one in earlier.values())
    rows.append((words.say("score_artefact"), level(report.artefact), "", *artefacts))
    return [
        words.say("measured_on", count=report.pictures),
        table(headings, rows),
        words.say("earlier_reports") if earlier else "",
        *(_changes(facts, words, version) for version in earlier),
        bullets(report.notes),
    ]


def _changes(facts: Facts, words: Wording, version: str) -> str:
    """Styles whose interval lies wholly above or below that of an earlier version."""
    before = {row.style: row.score for row in facts.previous_reports[version].styles}
    now = {row.style: row.score for row in (facts.report.styles if facts.report else ())}
    both = sorted(now.keys() & before.keys())
    better = [style for style in both if now[style].low > before[style].high]
    worse = [style for style in both if now[style].high < before[style].low]
    lines = []
    for key, styles in (("better_styles", better), ("worse_styles", worse)):
        if styles:
            names = words.code([f"by {style}" for style in styles])
            lines.append(words.say(key, version=version, styles=names))
    return bullets(lines)


def _size(count: int) -> str:
    """Bytes as people say them: `2.13 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
