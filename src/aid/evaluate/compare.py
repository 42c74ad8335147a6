"""Two galleries of the same shots with one thing changed, compared picture by picture.

The seeds are the same, so most of what differs between two prompts cancels out of each pair's
difference: its interval is far narrower than that of two means.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pydantic import BaseModel, ConfigDict

from aid.core.report import Score, mean, proportion
from aid.core.shot import Shot
from aid.errors import ArtifactError
from aid.evaluate.score import Judged
from aid.judging.panel import STYLE


class Pairing(BaseModel):
    """One quantity with and without the change, and the mean of the pairs' differences."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    gallery: Score
    baseline: Score
    difference: Score


class Comparison(BaseModel):
    """paired.json. Differences are gallery minus baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pairs: int
    unpaired: int
    artefact: Pairing
    scores: dict[str, Pairing]
    """Question -> how often it is answered right; over the pairs where both can be."""

    def summary(self) -> str:
        """One sentence for the report."""
        artefact, style = self.artefact, self.scores.get(STYLE)
        text = (
            f"Against the baseline, over {self.pairs} pairs of the same seed, the artefact measure "
            f"changes by {_signed(artefact.difference)}, from {artefact.baseline.value:.2f} "
            f"to {artefact.gallery.value:.2f}"
        )
        if style:
            text += f"; style from {style.baseline.value:.1%} to {style.gallery.value:.1%}"
        return f"{text}."


def compare(gallery: Sequence[Judged], baseline: Sequence[Judged]) -> Comparison:
    """Pair pictures by prompt, seed, size, style and tags. Raises ArtifactError if no two fit."""
    waiting: dict[Hashable, list[Judged]] = {}
    for picture in baseline:
        waiting.setdefault(_key(picture.shot), []).append(picture)
    pairs = [(picture, waiting[key].pop(0)) for picture in gallery if waiting.get(key := _key(picture.shot))]
    if not pairs:
        raise ArtifactError(
            "the gallery and its baseline have no shot in common",
            "the same prompts, seeds and sizes",
            "Draw both from one list of shots, with one thing changed.",
        )
    questions = dict.fromkeys(question for one, _ in pairs for question in one.hits)
    return Comparison(
        pairs=len(pairs),
        unpaired=len(gallery) + len(baseline) - 2 * len(pairs),
        artefact=Pairing(
            gallery=mean([one.artefact for one, _ in pairs]),
            baseline=mean([other.artefact for _, other in pairs]),
            difference=mean([one.artefact - other.artefact for one, other in pairs]),
        ),
        scores={
            question: _pairing(
                [
                    (o.hits[question], b.hits[question])
                    for o, b in pairs
                    if question in o.hits and question in b.hits
                ]
            )
            for question in questions
        },
    )


def _pairing(hits: Sequence[tuple[bool, bool]]) -> Pairing:
    return Pairing(
        gallery=proportion(sum(one for one, _ in hits), len(hits)),
        baseline=proportion(sum(other for _, other in hits), len(hits)),
        difference=mean([float(one) - float(other) for one, other in hits]),
    )


def _key(shot: Shot) -> Hashable:
    return shot.prompt, shot.seed, shot.width, shot.height, shot.style, shot.tags


def _signed(score: Score) -> str:
    return f"{score.value:+.2f} ({score.low:+.2f} to {score.high:+.2f})"
