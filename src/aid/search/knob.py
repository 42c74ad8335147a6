"""Knobs as the variables of a search, and settings with the knobs turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aid.core.blocks import block_range
from aid.core.spelling import did_you_mean
from aid.errors import SettingsError
from aid.merge.recipe.curve import numbers_of
from aid.merge.recipe.recipe import resolved
from aid.merge.settings import MergeSettings
from aid.sd.model.architecture import Family
from aid.sd.model.blocks import extra_blocks
from aid.search.settings import Knob


@dataclass(frozen=True)
class Variable:
    """One number of the search: a model's weight, or a chain's step's alpha, in a block, or in several at
    once."""

    name: str
    model: str
    blocks: tuple[str, ...]
    low: float
    high: float


Values = Mapping[str, float]


@dataclass(frozen=True)
class Space:
    """Everything that is turned, and the merge around it with every block written out."""

    variables: tuple[Variable, ...]
    merge: MergeSettings
    weights: Mapping[str, Mapping[str, float]]
    """The merge's own, by model or step and block."""

    def start(self) -> dict[str, float]:
        """The merge's own weights, brought into the knobs' ranges; where blocks go together, the mean."""
        return {one.name: min(max(self.merge_weight(one), one.low), one.high) for one in self.variables}

    def merge_weight(self, one: Variable) -> float:
        """What the merge itself has there."""
        return sum(self.weights[one.model][block] for block in one.blocks) / len(one.blocks)

    def settings(self, values: Values) -> MergeSettings:
        """The merge with these values."""
        weights = {model: dict(row) for model, row in self.weights.items()}
        for one in self.variables:
            weights[one.model].update(dict.fromkeys(one.blocks, values[one.name]))
        if not self.merge.chain:
            return self.merge.model_copy(update={"weights": weights})
        chain = (
            step.model_copy(update={"alpha": weights[step.name]}) if step.name in weights else step
            for step in self.merge.chain
        )
        return self.merge.model_copy(update={"chain": tuple(chain)})


def space_of(knobs: Sequence[Knob], merge: MergeSettings, family: Family) -> Space:
    """Raises SettingsError for an unknown block, a block that is turned twice, weights that could add up to
    more than 1, a step that isn't there or one that leaves a block frozen."""
    extra = extra_blocks(family, merge.convention)
    variables = [one for knob in knobs for one in _variables(knob, family, extra)]
    turned = [(one.model, block) for one in variables for block in one.blocks]
    if twice := next((pair for pair in turned if turned.count(pair) > 1), None):
        raise SettingsError(f"{twice[1]} of {twice[0]} is in two knobs", "each block once")
    if merge.chain:
        return Space(tuple(variables), merge, _alphas(turned, merge, family, extra))
    primary, weights = resolved(merge)
    named = dict.fromkeys([*weights, *(one.model for one in variables)])
    rows = {model: numbers_of(weights.get(model, 0.0), model, family, extra) for model in named}
    if not merge.steps:
        _require_room(variables, rows)
    given = {"preset": "", "primary": primary, "weights": rows}
    written = MergeSettings.model_validate({**merge.model_dump(), **given})
    return Space(tuple(variables), written, rows)


def _alphas(
    turned: Sequence[tuple[str, str]], merge: MergeSettings, family: Family, extra: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Of the steps that are turned, by name and block."""
    steps = {step.name: step for step in merge.chain if step.name}
    for name, block in turned:
        if name not in steps:
            expected = ", ".join(steps) or "a step with a name"
            raise SettingsError(f"{name} is no step of the chain", expected, did_you_mean(name, steps))
        if any(block in block_range(one, family, extra) for one in steps[name].freeze):
            raise SettingsError(f"{block} is frozen in {name}", "blocks that the step changes")
    names = dict.fromkeys(name for name, _ in turned)
    return {name: numbers_of(steps[name].alpha, "alpha", family, extra) for name in names}


def _variables(knob: Knob, family: Family, extra: tuple[str, ...]) -> list[Variable]:
    blocks = tuple(dict.fromkeys(b for name in knob.blocks for b in block_range(name, family, extra)))
    if knob.together:
        return [Variable(f"{knob.model}.{'+'.join(knob.blocks)}", knob.model, blocks, knob.low, knob.high)]
    return [Variable(f"{knob.model}.{b}", knob.model, (b,), knob.low, knob.high) for b in blocks]


def _require_room(variables: Sequence[Variable], rows: Mapping[str, Mapping[str, float]]) -> None:
    most = {model: dict(row) for model, row in rows.items()}
    for one in variables:
        most[one.model].update(dict.fromkeys(one.blocks, one.high))
    for block in next(iter(most.values()), {}):
        total = sum(row[block] for row in most.values())
        if total > 1 + 1e-9:
            raise SettingsError(
                f"the weights of {block} could add up to {total:g}",
                "at most 1",
                "Turn them less far, or give the merge `steps`, of which each has 0 to 1.",
            )
