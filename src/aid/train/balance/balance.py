"""What follows from the measurements of a run: each style's progress, weight and overfit point.

Losses at different noise levels, and of different styles, are not comparable as they are. So each is taken
as a share of what the start model had at the same level, on the same pictures with the same noise, or of what
this model has without the style's word; and the levels are averaged as logarithms: half of the loss gone
counts alike wherever it is gone. A style's share
over the mean is the relative inverse training rate of GradNorm (Chen et al. 2018), which sets gradients by
it; here it sets how often a style comes up.

A row is one measurement; rows[0] is the start model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aid.train.balance.measure import Losses
from aid.train.tables import BalanceSettings

LEAST_FALL = 0.005  # of the held-out loss, from one measurement to the next: less is none
NO_LOSS = 1e-12


@dataclass(frozen=True)
class Row:
    """After `step` steps: losses of held-out and trained pictures, and what the order goes by from there."""

    step: int
    held: Losses
    trained: Losses
    weights: dict[str, float] = field(default_factory=dict)
    """Of each style, 1 being its usual share."""
    at_point: tuple[str, ...] = ()
    """The styles that are slightly overfit."""
    seen: dict[str, int] = field(default_factory=dict)
    """Pictures of each style so far."""
    wordless: Losses = field(default_factory=dict)
    """Losses of the held-out pictures without the word of their style."""
    missed: dict[str, float] = field(default_factory=dict)
    """How much of each style a judge misses in pictures drawn of it, 0 to 1."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Row:
        return cls(**{**plain, "at_point": tuple(plain["at_point"])})


def remaining(now: Sequence[float], start: Sequence[float]) -> float:
    """The share of the start model's loss that is left: the geometric mean over noise levels."""
    logs = [math.log((a + NO_LOSS) / (b + NO_LOSS)) for a, b in zip(now, start, strict=True)]
    return math.exp(sum(logs) / len(logs))


def held_shares(row: Row, start: Row) -> dict[str, float]:
    """What is left of each style's held-out loss; 1 is as at the start."""
    return {style: remaining(losses, start.held[style]) for style, losses in row.held.items()}


def word_shares(row: Row) -> dict[str, float]:
    """The share of the held-out loss that a style's own word leaves; 1 is no help at all."""
    return {style: remaining(row.held[style], losses) for style, losses in row.wordless.items()}


def trained_shares(row: Row, start: Row) -> dict[str, float]:
    """The same of the trained pictures' loss."""
    return {style: remaining(losses, start.trained[style]) for style, losses in row.trained.items()}


def gaps(row: Row, start: Row) -> dict[str, float]:
    """How much further the trained pictures' loss has fallen than that of held-out ones: .1 is about 10 %.
    Overfitting opens it."""
    held, trained = held_shares(row, start), trained_shares(row, start)
    return {style: math.log(held[style] / trained[style]) for style in held if style in trained}


def at_point(rows: Sequence[Row], settings: BalanceSettings, copied: Sequence[str] = ()) -> tuple[str, ...]:
    """The styles that are slightly overfit: the gap is open, and the held-out loss has stopped to fall; or
    what is drawn of them is `copied`."""
    if len(rows) < 2:
        return ()
    now, before = held_shares(rows[-1], rows[0]), held_shares(rows[-2], rows[0])
    return tuple(
        style
        for style, gap in sorted(gaps(rows[-1], rows[0]).items())
        if style in copied or (gap >= settings.overfit_gap and now[style] > before[style] * (1 - LEAST_FALL))
    )


def beyond(rows: Sequence[Row], settings: BalanceSettings) -> tuple[str, ...]:
    """The styles past their point: the gap is open, and the held-out loss is well above its lowest."""
    shares = [held_shares(row, rows[0]) for row in rows]
    lowest = {style: min(share[style] for share in shares) for style in shares[0]}
    return tuple(
        style
        for style, gap in sorted(gaps(rows[-1], rows[0]).items())
        if gap >= settings.overfit_gap and shares[-1][style] > lowest[style] * (1 + settings.overfit_rise)
    )


def weigh(
    rows: Sequence[Row], before: Mapping[str, float], reached: Sequence[str], settings: BalanceSettings
) -> dict[str, float]:
    """Each style's weight after the last row, from the weights before it, whose keys are the styles.

    By measurement a style has (what is left of its loss / the mean of that) to the power of `strength`,
    within 1 / `bound` and `bound`; the mean is geometric, over those that still learn. A style without
    held-out pictures has 1, as has one without a word where that is what counts; one at its point waits,
    if any is to.
    """
    reached = reached if settings.stop_at != "never" else ()
    left = left_of(rows, settings) if settings.rule == "measured" else {}
    learning = [math.log(share) for style, share in left.items() if style not in reached and share > 0]
    centre = sum(learning) / len(learning) if learning else 0.0
    weights = {}
    for style, old in before.items():
        wanted = bounded(math.log(left[style]) - centre, settings) if style in left else 1.0
        if style in reached:
            wanted = min(settings.rest, wanted)
        weights[style] = settings.smoothing * old + (1 - settings.smoothing) * wanted
    return weights


def left_of(rows: Sequence[Row], settings: BalanceSettings) -> dict[str, float]:
    """The share of each style's loss that is left, by the measure of `settings.by`."""
    if settings.by == "judge":
        return rows[-1].missed
    return word_shares(rows[-1]) if settings.by == "word" else held_shares(rows[-1], rows[0])


def bounded(behind: float, settings: BalanceSettings) -> float:
    """The weight of a style whose log loss is `behind` the others' by so much."""
    limit = math.log(settings.bound)
    return math.exp(max(-limit, min(limit, settings.strength * behind)))


def best(rows: Sequence[Row], settings: BalanceSettings) -> int:
    """The newest row at which at most `beyond_share` of the measured styles are beyond their point."""
    for index in range(len(rows) - 1, 0, -1):
        if len(beyond(rows[: index + 1], settings)) <= settings.beyond_share * len(rows[0].held):
            return index
    return 0
