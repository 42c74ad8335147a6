"""Weights, as a person writes them -> each block's shares, which add up to 1.

With one pass a block is `sum(share_m * theta_m)`; the primary's share is what the others leave. A
series of two-model merges, `(1 - w) * so_far + w * model`, is the same sum: a model's share is its
weight times what the later steps leave of it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from aid.core.blocks import SD1_BLOCKS, expand
from aid.errors import SettingsError
from aid.merge.settings import MergeSettings

Weights = Mapping[str, Mapping[str, float | list[float]]]
DEFAULT_PRIMARY = "base"
ROUNDING = 1e-9  # a share this small is what decimal weights such as 0.1 + 0.2 + 0.7 leave over


@dataclass(frozen=True)
class Preset:
    """A recipe known by name."""

    primary: str
    weights: Weights


PRESETS = {
    "aid-v1": Preset(  # SEED section II.2: base alpha and all OUT stay with `style`
        primary="style",
        weights={"detail": {"IN00-05": 1.0}, "composition": {"IN06-11": 1.0, "M00": 1.0}},
    ),
}


@dataclass(frozen=True)
class Recipe:
    """`shares[block][model]`: only models that give the block something; each block's add up to 1."""

    primary: str
    shares: Mapping[str, Mapping[str, float]]
    order: tuple[str, ...] = field(default=())
    """Every model: the primary, then the others in the order of their steps, or by name."""

    def by_model(self) -> dict[str, dict[str, float]]:
        """Model -> block -> share."""
        return {
            model: {block: row[model] for block, row in self.shares.items() if model in row}
            for model in self.order
        }


def plan(settings: MergeSettings, models: Collection[str]) -> Recipe:
    """The recipe that `settings` mean for these models.

    Raises SettingsError for unknown models, blocks or presets and for shares outside 0 to 1.
    """
    primary, weights = _resolve(settings)
    _require(primary, models, "primary")
    for name in (*weights, *settings.steps):
        _require(name, models, "weights")
    if primary in weights or primary in settings.steps:
        raise SettingsError(
            f"{primary} is the primary and has weights of its own",
            "weights for the other models only",
            "The primary takes what the others leave.",
        )
    by_model = {name: _checked(name, expand(dict(blocks))) for name, blocks in weights.items()}
    others = _order(settings.steps, by_model, models, primary)
    shares = {
        block: _successive(block, primary, others, by_model)
        if settings.steps
        else _shares(block, primary, others, by_model)
        for block in SD1_BLOCKS
    }
    return Recipe(primary, shares, (primary, *others))


def _resolve(settings: MergeSettings) -> tuple[str, Weights]:
    if not settings.preset:
        return settings.primary or DEFAULT_PRIMARY, settings.weights
    if settings.preset not in PRESETS:
        raise SettingsError(f"{settings.preset} is not a merge preset", ", ".join(sorted(PRESETS)))
    preset = PRESETS[settings.preset]
    return settings.primary or preset.primary, {**preset.weights, **settings.weights}


def _require(name: str, models: Collection[str], where: str) -> None:
    if name not in models:
        near = difflib.get_close_matches(name, sorted(models), 1)
        raise SettingsError(
            f"{where} names {name}, which is not among the models",
            ", ".join(sorted(models)) or "at least one model",
            f"Did you mean {near[0]}?" if near else "",
        )


def _checked(model: str, blocks: dict[str, float]) -> dict[str, float]:
    for block, weight in blocks.items():
        if not 0.0 <= weight <= 1.0:  # also refuses NaN
            raise SettingsError(f"{model} has weight {weight:g} in {block}", "0 to 1")
    return blocks


def _order(
    steps: tuple[str, ...], weights: Mapping[str, object], models: Collection[str], primary: str
) -> tuple[str, ...]:
    if not steps:
        return tuple(sorted(set(models) - {primary}))
    if len(set(steps)) != len(steps) or set(steps) != set(weights):
        raise SettingsError(
            f"steps are {', '.join(steps)}", f"each model with weights once: {', '.join(sorted(weights))}"
        )
    return (*steps, *sorted(set(models) - {primary, *steps}))


def _shares(
    block: str, primary: str, others: tuple[str, ...], weights: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    given = {name: weights[name][block] for name in others if name in weights}
    left = 1.0 - math.fsum(given.values())
    if left < -ROUNDING:
        raise SettingsError(f"the weights of {block} add up to {1 - left:g}", "at most 1")
    return _nonzero({primary: left, **given})


def _successive(
    block: str, primary: str, others: tuple[str, ...], weights: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    shares, left = {}, 1.0
    for name in reversed([name for name in others if name in weights]):
        shares[name] = left * weights[name][block]
        left *= 1.0 - weights[name][block]
    return _nonzero({primary: left, **dict(reversed(shares.items()))})


def _nonzero(shares: dict[str, float]) -> dict[str, float]:
    return {name: share for name, share in shares.items() if share > ROUNDING}
