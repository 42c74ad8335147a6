"""Scores: what a judge says of a gallery, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from aid.core.gallery import read_gallery
from aid.core.report import Report, Score, StyleRow, mean, proportion
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.judging.artefact import trace
from aid.judging.examination import Card, tally
from aid.judging.judge import Judge, look
from aid.judging.panel import STYLE, Panel, Verdict, answers, has_tag
from aid.judging.picture import read_views

WITHHELD, NEAR_COPIES = "withheld", "near_copies"


class Judged(BaseModel):
    """One picture's line in pictures.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    file: str
    shot: Shot
    style: str
    """The style that the judge names."""
    hits: dict[str, bool]
    """Question -> whether the picture shows what was asked for."""
    withheld: dict[str, bool]
    """Tag of a withheld cell that the shot asks for -> whether it is shown."""
    artefact: float
    """In spreads of real pictures, which have mean 0; `texture` and `form` are its parts."""
    texture: float
    form: float
    near_copy: bool
    """Nearer in layout to a training picture than 99 % of held-out pictures are."""


def judge_gallery(
    folder: Path, judge: Judge, cells: Sequence[tuple[str, str]], bench: Workbench
) -> list[Judged]:
    """Look at every picture. Raises ArtifactError or PictureError naming what can't be read."""
    frames = read_gallery(folder)
    panel, references = judge.card.panel, judge.card.references
    views = read_views([folder / frame.file for frame in frames], bench, "look")
    seen, features = look(panel, judge.network, views.thumbnails)
    asked = [frame.shot.style for frame in frames]
    measured_as = [
        style if style and style in references else verdict.style
        for style, verdict in zip(asked, seen, strict=True)
    ]
    measured = judge.reference.measure(trace(views, features, references, measured_as))
    return [
        Judged(
            file=frame.file,
            shot=frame.shot,
            style=verdict.style,
            hits=answers(panel, (frame.shot.style, frame.shot.tags), verdict),
            withheld=_withheld(panel, frame.shot, verdict, cells),
            artefact=round(float(measured.artefact[row]), 4),
            texture=round(float(measured.texture[row]), 4),
            form=round(float(measured.form[row]), 4),
            near_copy=bool(measured.near_copy[row]),
        )
        for row, (frame, verdict) in enumerate(zip(frames, seen, strict=True))
    ]


def _withheld(panel: Panel, shot: Shot, seen: Verdict, cells: Sequence[tuple[str, str]]) -> dict[str, bool]:
    asked = [tag for style, tag in cells if style == shot.style and tag in shot.tags]
    shown = {tag: has_tag(panel, tag, seen) for tag in asked}
    return {tag: hit for tag, hit in shown.items() if hit is not None}


def unjudged_cells(cells: Sequence[tuple[str, str]], panel: Panel) -> Iterator[str]:
    """A note on cells that can have no score, since the judge knows not their style or tag."""
    known = {*panel.tags, *(tag for options in panel.groups.values() for tag in options)}
    strange = [f"{tag} of {style}" for style, tag in cells if style not in panel.styles or tag not in known]
    if strange:
        yield f"Not judged as withheld, as the judge can't tell: {', '.join(strange)}."


def build_report(title: str, judged: Sequence[Judged], card: Card, notes: Sequence[str] = ()) -> Report:
    """Every score with its ceiling, and a row a style. Questions never examined have no score."""
    found = tally(picture.hits for picture in judged)
    scores = {question: found[question] for question in card.examined.ceilings if question in found}
    ceilings = {question: card.examined.ceilings[question] for question in scores}
    withheld = [hit for picture in judged for hit in picture.withheld.values()]
    if withheld:
        scores[WITHHELD] = proportion(sum(withheld), len(withheld))
        ceilings[WITHHELD] = _withheld_ceiling(judged, card)
    scores[NEAR_COPIES] = proportion(sum(picture.near_copy for picture in judged), len(judged))
    ceilings[NEAR_COPIES] = card.near_copies
    return Report(
        title=title,
        pictures=len(judged),
        scores=scores,
        ceilings=ceilings,
        artefact=mean([picture.artefact for picture in judged]),
        styles=tuple(_style_rows(judged, card)),
        notes=(*_notes(judged, card), *notes),
    )


def _withheld_ceiling(judged: Sequence[Judged], card: Card) -> Score:
    """How well the judge sees these tags in real pictures: in these styles if it was examined there."""
    cells = sorted({(picture.shot.style, tag) for picture in judged for tag in picture.withheld})
    found = [score for style, tag in cells if (score := card.examined.cell(style, tag))]
    hits = sum(round(score.value * score.count) for score in found)
    return proportion(hits, sum(score.count for score in found))


def _style_rows(judged: Sequence[Judged], card: Card) -> Iterator[StyleRow]:
    for style in card.panel.styles:
        own = [picture for picture in judged if picture.shot.style == style]
        if own:
            others = Counter(picture.style for picture in own if picture.style != style)
            yield StyleRow(
                style=style,
                score=proportion(sum(picture.hits[STYLE] for picture in own), len(own)),
                ceiling=card.examined.styles.get(style),
                artefact=mean([picture.artefact for picture in own]),
                confused_with=min(others, key=lambda name: (-others[name], name), default=""),
            )


def _notes(judged: Sequence[Judged], card: Card) -> Iterator[str]:
    yield (
        f"Judged by a network taught on {card.train_pictures} real pictures; ceilings are its scores "
        f"on {card.held_pictures} held-out real ones."
    )
    texture = mean([picture.texture for picture in judged]).value
    form = mean([picture.form for picture in judged]).value
    yield (
        "The artefact measure is in spreads of held-out real pictures, which have mean 0; its parts are "
        f"texture {texture:.2f} and form {form:.2f}."
    )
    yield "near_copies are nearer in layout to a training picture than 99 % of held-out ones are."
    unknown = sorted({p.shot.style for p in judged if p.shot.style and p.shot.style not in card.panel.styles})
    if unknown:
        yield f"The judge knows no style {', '.join(unknown)}: their shots have no style score."
    known = {*card.panel.tags, *(tag for options in card.panel.groups.values() for tag in options)}
    strange = sorted({tag for picture in judged for tag in picture.shot.tags} - known)
    if strange:
        yield f"Not judged, as the judge can't tell: {', '.join(strange)}."
