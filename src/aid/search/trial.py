"""Trials: their log, and what to try next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from aid.core.files import write_lines
from aid.errors import ArtifactError, SettingsError
from aid.search.knob import Space, Values

TRIALS_FILE = "trials.jsonl"


class Measured(BaseModel):
    """What a merge's pictures show. Shares are of 1; `artefact` is in spreads of real pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    styles: dict[str, float]
    content: float
    artefact: float

    @property
    def style(self) -> float:
        return sum(self.styles.values()) / (len(self.styles) or 1)


class Trial(BaseModel):
    """One line of trials.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    key: str
    """The lineage's key of the merge that these values make: `aid merge` with them makes that artifact."""
    values: dict[str, float]
    measured: Measured
    value: float
    """What the search makes as large as it can."""
    below: float
    """By how much the worst style is below its floor; not above 0 is allowed."""


def best_of(trials: Sequence[Trial]) -> Trial:
    """The highest of those that keep every style's floor; if none does, the one that misses it least."""
    return min(trials, key=lambda one: (max(one.below, 0.0), -one.value, one.number))


def read_trials(folder: Path) -> list[Trial]:
    """Those of an interrupted run. Raises ArtifactError for a line that is none."""
    path = folder / TRIALS_FILE
    if not path.is_file():
        return []
    try:
        return [Trial.model_validate(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (ValueError, ValidationError) as error:
        raise ArtifactError(f"{path} is damaged", "a trial a line", f"Delete {folder}.") from error


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    write_lines(folder / TRIALS_FILE, [one.model_dump(mode="json") for one in trials])


def suggest(space: Space, trials: Sequence[Trial], seed: int) -> Values:
    """The given merge first; then what optuna's tree-structured Parzen estimator expects most of (Bergstra et
    al. 2011), the floors being its constraints. It follows from the trials so far and the seed alone, so an
    interrupted search goes on as it would have."""
    if not trials:
        return space.start()
    optuna = _optuna()
    ranges = {one.name: optuna.distributions.FloatDistribution(one.low, one.high) for one in space.variables}
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), multivariate=True, n_startup_trials=8)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(one.values), distributions=ranges, value=one.value,
                constraints={"floor": one.below},
            )
        )  # fmt: skip
    asked = study.ask(ranges).params
    return {one.name: min(max(round(asked[one.name], 3), one.low), one.high) for one in space.variables}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SettingsError("a search needs optuna", next_step="pip install 'aid[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
