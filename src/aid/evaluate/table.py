"""report.md: a report as tables that a person reads."""

from __future__ import annotations

from collections.abc import Iterator

from aid.core.report import Report, Score
from aid.evaluate.score import NEAR_COPIES
from aid.judging.panel import STYLE


def markdown(report: Report) -> str:
    """Scores beside their ceilings, then a line a style, then the notes."""
    return "\n".join([*_head(report), *_scores(report), *_styles(report), *_notes(report)]) + "\n"


def in_words(report: Report) -> str:
    """What a person is told at once."""
    scores = [
        f"{name} {score.value:.1%} (real pictures {_share(report.ceilings.get(name))})"
        for name, score in report.scores.items()
        if name in (STYLE, NEAR_COPIES)
    ]
    return ", ".join([*scores, f"artefact measure {_number(report.artefact)}"])


def _head(report: Report) -> Iterator[str]:
    yield f"# {report.title}"
    yield ""
    yield f"{report.pictures} pictures. Artefact measure {_number(report.artefact)}; real pictures have 0."
    yield ""


def _scores(report: Report) -> Iterator[str]:
    yield "| score | generated | 95 % interval | pictures | real pictures |"
    yield "|---|---:|---:|---:|---:|"
    for name, score in report.scores.items():
        ceiling = report.ceilings.get(name)
        yield (
            f"| {name} | {score.value:.1%} | {score.low:.1%} to {score.high:.1%} | {score.count} "
            f"| {_share(ceiling)} |"
        )
    yield ""


def _styles(report: Report) -> Iterator[str]:
    if report.styles:
        yield "| style | named so | 95 % interval | real pictures | artefact | mistaken for |"
        yield "|---|---:|---:|---:|---:|---|"
    for row in report.styles:
        yield (
            f"| {row.style} | {row.score.value:.1%} | {row.score.low:.1%} to {row.score.high:.1%} "
            f"| {_share(row.ceiling)} | {_number(row.artefact)} | {row.confused_with} |"
        )
    yield ""


def _notes(report: Report) -> Iterator[str]:
    for note in report.notes:
        yield f"- {note}"


def _share(score: Score | None) -> str:
    return f"{score.value:.1%}" if score else ""


def _number(score: Score) -> str:
    return f"{score.value:.2f} ± {(score.high - score.low) / 2:.2f}"
