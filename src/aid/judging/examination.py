"""The judge judged: its answers on held-out real pictures, which are the ceilings of every score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from aid.core.report import Score, proportion
from aid.judging.panel import STYLE, Asked, Panel, Verdict, answers, has_tag


class Cell(BaseModel):
    """How often the judge sees a tag in held-out pictures of a style that have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    style: str
    tag: str
    score: Score


class Examined(BaseModel):
    """What held-out pictures say of a judge."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    ceilings: dict[str, Score]
    """Question -> accuracy."""
    styles: dict[str, Score]
    """Style -> how often its pictures are named so."""
    confusion: dict[str, dict[str, int]]
    """Style -> style named -> pictures."""
    cells: tuple[Cell, ...]
    """Every style with every tag that its pictures have."""

    def cell(self, style: str, tag: str) -> Score | None:
        """The ceiling of a tag in a style, or else in all styles together; None if never examined."""
        every = [cell for cell in self.cells if cell.tag == tag]
        own = [cell for cell in every if cell.style == style]
        hits = sum(round(cell.score.value * cell.score.count) for cell in own or every)
        count = sum(cell.score.count for cell in own or every)
        return proportion(hits, count) if count else None


class Card(BaseModel):
    """judge.json: what a judge can tell and how well."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    panel: Panel
    width: int = Field(ge=1)
    """Of the network: see JudgeSettings."""
    references: tuple[str, ...]
    """The styles in the order of the reference's rows; the empty one stands for pictures of none."""
    train_pictures: int
    held_pictures: int
    near_copies: Score
    """Share of held-out pictures that count as near copies of training pictures: 1 % by definition."""
    examined: Examined


def examine(panel: Panel, asked: Sequence[Asked], seen: Sequence[Verdict]) -> Examined:
    """Count the judge's answers on held-out pictures."""
    found = tally(answers(panel, one, verdict) for one, verdict in zip(asked, seen, strict=True))
    return Examined(
        ceilings={question: found[question] for question in panel.questions() if question in found},
        styles=_style_scores(panel, asked, seen),
        confusion=_confusion(asked, seen),
        cells=_cells(panel, asked, seen),
    )


def tally(hits: Iterable[dict[str, bool]]) -> dict[str, Score]:
    """Question -> how often it was answered right, in the order questions first came."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for row in hits:
        count.update(row.keys())
        right.update(question for question, hit in row.items() if hit)
    return {question: proportion(right[question], count[question]) for question in count}


def _style_scores(panel: Panel, asked: Sequence[Asked], seen: Sequence[Verdict]) -> dict[str, Score]:
    """Style -> how often it is named."""
    pairs = list(zip(asked, seen, strict=True))
    rows = {
        style: [answers(panel, one, verdict)[STYLE] for one, verdict in pairs if one[0] == style]
        for style in panel.styles
    }
    return {style: proportion(sum(hits), len(hits)) for style, hits in rows.items() if hits}


def _confusion(asked: Sequence[Asked], seen: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """Style -> style named -> pictures, most frequent first."""
    rows: dict[str, Counter[str]] = {}
    for (style, _), verdict in zip(asked, seen, strict=True):
        rows.setdefault(style, Counter())[verdict.style] += 1
    return {
        style: dict(sorted(row.items(), key=lambda item: (-item[1], item[0])))
        for style, row in sorted(rows.items())
        if style
    }


def _cells(panel: Panel, asked: Sequence[Asked], seen: Sequence[Verdict]) -> tuple[Cell, ...]:
    """Every style with every tag that its pictures have and the judge can tell."""
    hits: dict[tuple[str, str], list[bool]] = {}
    for (style, tags), verdict in zip(asked, seen, strict=True):
        for tag in tags:
            hit = has_tag(panel, tag, verdict)
            if hit is not None:
                hits.setdefault((style, tag), []).append(hit)
    return tuple(
        Cell(style=style, tag=tag, score=proportion(sum(row), len(row)))
        for (style, tag), row in sorted(hits.items())
    )
