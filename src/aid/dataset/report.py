"""report.json: what was found, what was kept, and what to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from aid.core.dataset import REPORT_FILE, Record
from aid.dataset.finding.find import Found
from aid.dataset.finding.tag import normalise
from aid.dataset.settings import PrepareSettings

MANY_TOLD = 10  # files or styles named to a person; the report has all


def summarise(
    records: Sequence[Record],
    kept: Sequence[float],
    found: Found,
    duplicates: Iterable[tuple[str, str]],
    near_duplicates: Iterable[tuple[str, str, int]],
    settings: PrepareSettings,
) -> dict[str, Any]:
    """The report, in a fixed order; frequent first where things are counted. A picture counts once, however
    many resolutions it was prepared at, but for buckets."""
    views, records = records, list({record.source: record for record in records}.values())
    tags = count(tag for record in records for tag in record.tags)
    known = {normalise(tag) for tag in settings.known_tags}
    rare = {tag: n for tag, n in tags.items() if n < settings.rare_tag_pictures}
    return {
        "pictures": len(records),
        "train": sum(record.split == "train" for record in records),
        "held": sum(record.split == "held" for record in records),
        "regularisation": sum(record.regularisation for record in records),
        "untagged": [record.source for record in records if not record.tags],
        "styles": {style: _style_row(records, style) for style in sorted({r.style for r in records})},
        "buckets": count(f"{record.width}x{record.height}" for record in views),
        "kept_pixels": {"mean": round(fmean(kept), 4), "minimum": round(min(kept), 4)},
        "quarantined": [
            {"source": source, "reason": aside.reason} for source, aside in found.quarantined.items()
        ],
        "duplicates": [{"source": source, "of": original} for source, original in duplicates],
        "near_duplicates": [list(pair) for pair in near_duplicates],
        "licences": count(record.licence or "not stated" for record in records),
        "credits": count(record.credit or "not stated" for record in records),
        "repeats": dict(sorted(found.repeats.items())),
        "guessed_encodings": dict(sorted(found.guesses.items())),
        "rare_tags": len(rare),
        "unknown_tags": {tag: n for tag, n in tags.items() if known and tag not in known},
        "tags": tags,
    }


def in_words(report: Mapping[str, Any]) -> Iterator[str]:
    """What a person is told at the end: how many pictures of how many styles, and each file set aside."""
    yield (
        f"pictures: {report['pictures']} ({report['train']} to train on, {report['held']} held out), "
        f"styles: {len(report['styles'])}"
    )
    counts = {
        "copies dropped": len(report["duplicates"]),
        "pairs nearly the same": len(report["near_duplicates"]),
        "pictures without tags": len(report["untagged"]),
        "pictures whose tags are not Unicode": len(report["guessed_encodings"]),
        "unknown tags": len(report["unknown_tags"]),
        "files set aside": len(report["quarantined"]),
    }
    if told := [f"{what}: {number}" for what, number in counts.items() if number]:
        yield f"{', '.join(told)} ({REPORT_FILE} names all)"
    if repeats := report["repeats"]:
        yield f'styles whose folders name repeats: {len(repeats)} (heeded by balance.rule = "repeats")'
        if never := [style for style, number in repeats.items() if not number]:
            more = f" and {len(never) - MANY_TOLD} more" if len(never) > MANY_TOLD else ""
            yield _one_line(f"by that rule never seen, as 0 times: {', '.join(never[:MANY_TOLD])}{more}")
    for row in report["quarantined"][:MANY_TOLD]:
        yield _one_line(f"set aside: {row['source']} {row['reason']}")


def _one_line(text: str) -> str:
    """Without what a file's name could do to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def count(things: Iterable[str]) -> dict[str, int]:
    """How often each comes, most frequent first, then by name."""
    return dict(sorted(Counter(things).items(), key=lambda item: (-item[1], item[0])))


def _style_row(records: Sequence[Record], style: str) -> dict[str, int]:
    mine = [record for record in records if record.style == style]
    return {
        "train": sum(record.split == "train" for record in mine),
        "held": sum(record.split == "held" for record in mine),
        "regularisation": sum(record.regularisation for record in mine),
    }
