"""What the judge found: scores with intervals, each beside the ceiling that real pictures set."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from aid.errors import ArtifactError

Z = 1.959964  # two-sided 95 %


class Score(BaseModel):
    """A mean with its 95 % interval over `count` pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: float
    low: float
    high: float
    count: int


class StyleRow(BaseModel):
    """One style's line in the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    style: str
    score: Score
    """How often the judge names this style."""
    ceiling: Score | None = None
    """The same on held-out real pictures of the style."""
    artefact: Score
    """Mean artefact measure of its pictures; 0 is what real pictures show."""
    confused_with: str = ""
    """The other style that the judge names most often."""


class Report(BaseModel):
    """A gallery judged. `scores` and `ceilings` share their keys: `style`, then one per tag group
    (`hair`, `skin`, `background`, ...); `artefact` stands beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str
    pictures: int
    scores: dict[str, Score]
    ceilings: dict[str, Score]
    artefact: Score
    styles: tuple[StyleRow, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Report:
        """The report.json of a Report artifact. Raises ArtifactError if it is malformed."""
        path = folder / "report.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtifactError(
                f"{path} is not a report ({type(error).__name__})",
                "a folder made by `aid evaluate`",
                "Run `aid evaluate` again.",
            ) from error


def proportion(hits: int, count: int) -> Score:
    """Wilson's score interval of `hits` in `count` (Wilson 1927)."""
    if count == 0:
        return Score(value=0.0, low=0.0, high=1.0, count=0)
    p, n = hits / count, count
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Score(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), count=n)


def mean(values: list[float]) -> Score:
    """The mean with its normal 95 % interval."""
    if not values:
        return Score(value=0.0, low=0.0, high=0.0, count=0)
    n, m = len(values), math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - m) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
    half = Z * spread / math.sqrt(n)
    return Score(value=m, low=m - half, high=m + half, count=n)
