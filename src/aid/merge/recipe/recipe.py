"""A merge's settings -> for each tensor, what it is the sum of.

With one pass a block is `sum(share_m * theta_m)`; the primary's share is what the others leave. A series of
two-model merges, `(1 - w) * so_far + w * model`, is a chain of weighted sums, and a chain may hold any mode.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aid.core.blocks import BLOCKS, block_range
from aid.core.spelling import did_you_mean
from aid.errors import SettingsError
from aid.merge.recipe.combination import ROUNDING, Combination, Link, Numbers, chained, exact, shared
from aid.merge.recipe.curve import Element, element, numbers_of
from aid.merge.recipe.linear import LINEAR, ONE
from aid.merge.settings import MergeSettings, MergeStep, Weight
from aid.sd.model.architecture import Family
from aid.sd.model.blocks import Convention, block_of, extra_blocks
from aid.sd.model.layouts import VAE

Weights = Mapping[str, Weight]
ByModel = dict[str, dict[str, float]]
DEFAULT_PRIMARY = "base"


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


MANY = 64
MODES = {
    **{name: (len(mode(ONE, ONE)),) * 2 for name, mode in LINEAR.items()},
    **dict.fromkeys(("cosine_a", "cosine_b", "tensor", "tensor2", "slerp"), (2, 2)),
    **dict.fromkeys(("train_difference", "smooth_add", "extract"), (3, 3)),
    **dict.fromkeys(("ties", "ties_mass", "dare"), (2, MANY)),
}
"""How many models a mode takes: at least, at most. What isn't linear is in `nonlinear`."""
LEAST = 1e-6
KEPT = (LEAST, 1.0, "the share of the differences that is kept, above 0 and at most 1")
DROPPED = (0.0, 1 - LEAST, "the share of the differences that is dropped, from 0 to below 1")
SHARES = {"ties": KEPT, "ties_mass": KEPT, "dare": DROPPED}
"""Modes whose beta is a share, and what it may be."""
RANGED = ("cosine_a", "cosine_b")
"""Modes that go by a range of similarities in the whole model; as supermerger does, they spare the VAE."""


class Rule(Protocol):
    """How the models of a block are put together."""

    def combination(self, key: str, block: str, held: tuple[str, ...]) -> Combination:
        """For one tensor; `held` are the models that have it. An empty key stands for the block at large."""
        ...

    def idle(self, keys: Mapping[str, str]) -> list[str]:
        """What of it changes nothing, to tell a person; `keys` are the tensors that are merged, each with its
        block."""
        ...


@dataclass(frozen=True)
class Shares:
    """One pass: each block's shares, in the models' order, add up to 1."""

    shares: Mapping[str, tuple[tuple[str, float], ...]]

    def combination(self, key: str, block: str, held: tuple[str, ...]) -> Combination:
        return shared(self.shares[block], held)

    def idle(self, keys: Mapping[str, str]) -> list[str]:
        return []


@dataclass(frozen=True)
class Chain:
    """Steps with their numbers by block, None where a block is frozen, and rules for elements."""

    links: tuple[Link, ...]
    numbers: tuple[Mapping[str, Numbers | None], ...]
    elements: tuple[tuple[Element, ...], ...]

    def combination(self, key: str, block: str, held: tuple[str, ...]) -> Combination:
        rows = zip(self.links, self.numbers, self.elements, strict=True)
        numbers = tuple(
            None if _spared(link.mode, key) else _numbers(row[block], rules, key, block)
            for link, row, rules in rows
        )
        return chained(self.links, numbers, held)

    def idle(self, keys: Mapping[str, str]) -> list[str]:
        taken = {self.links[-1].name}
        for link in reversed(self.links):
            taken.update(link.operands if link.name in taken else ())
        steps = [_where(link.name, number) for number, link in enumerate(self.links)]
        told = [
            f"{step} is taken by no other step: it is no part of the result"
            for step, link in zip(steps, self.links, strict=True)
            if link.name not in taken
        ]
        return told + [
            f"{step}: the rule {element.rule!r} fits no tensor"
            for step, elements in zip(steps, self.elements, strict=True)
            for element in elements
            if not any(element.fits(key, block) for key, block in keys.items())
        ]


def _spared(mode: str, key: str) -> bool:
    return mode in RANGED and key.startswith(VAE)


def _numbers(numbers: Numbers | None, rules: Sequence[Element], key: str, block: str) -> Numbers | None:
    fitting = [rule.alpha for rule in rules if key and rule.fits(key, block)]
    return numbers if numbers is None or not fitting else (fitting[-1], *numbers[1:])


@dataclass(frozen=True)
class Recipe:
    """What is to be done, for models of one family."""

    primary: str
    order: tuple[str, ...]
    """Every model: the primary, then the others in the order of their steps, or by name."""
    family: Family
    convention: Convention
    rule: Rule = field(repr=False)

    def terms(self, key: str, held: tuple[str, ...]) -> Combination:
        """What a tensor is the sum of; `held` are the models that have it, in this recipe's order."""
        return self.rule.combination(key, self.block(key), held)

    def nominal(self, block: str) -> Combination:
        """A block's sum where every model has its tensors and no rule for elements fits."""
        return self.rule.combination("", block, self.order)

    def block(self, key: str) -> str:
        return block_of(key, self.family, self.convention)

    @property
    def blocks(self) -> tuple[str, ...]:
        return (*BLOCKS[self.family], *extra_blocks(self.family, self.convention))

    def shares(self, block: str) -> dict[str, float]:
        """A block's weights by model, or by mode where that isn't a weighing."""
        return {leaf if isinstance(leaf, str) else leaf.mode: weight for leaf, weight in self.nominal(block)}

    def by_model(self) -> dict[str, dict[str, float]]:
        """Model -> block -> weight."""
        rows = {block: self.shares(block) for block in self.blocks}
        return {
            model: {block: row[model] for block, row in rows.items() if model in row} for model in self.order
        }


def primary_of(settings: MergeSettings) -> str:
    """The model that the others are added to: the preset's, the one named, or a chain's first."""
    return settings.chain[0].models[0] if settings.chain else resolved(settings)[0]


def adapter_weights(
    settings: MergeSettings, adapters: Collection[str], recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Adapter -> block -> weight, 1 where none is given. Raises SettingsError."""
    for name in settings.lora_weights:
        _require(name, adapters, "lora_weights", "LoRA")
    extra = extra_blocks(recipe.family, recipe.convention)
    told = {name: settings.lora_weights.get(name, 1.0) for name in adapters}
    return {name: numbers_of(weight, name, recipe.family, extra) for name, weight in told.items()}


def plan(settings: MergeSettings, models: Collection[str], family: Family = "sd1") -> Recipe:
    """The recipe that `settings` mean for these models.

    Raises SettingsError for unknown models, modes, blocks, curves or presets, and for shares outside 0 to 1.
    """
    if settings.chain:
        return _chain(settings, models, family)
    primary, weights = resolved(settings)
    _require(primary, models, "primary")
    for name in (*weights, *settings.steps):
        _require(name, models, "weights")
    if primary in weights or primary in settings.steps:
        raise SettingsError(
            f"{primary} is the primary and has weights of its own",
            "weights for the other models only",
            "The primary takes what the others leave.",
        )
    extra = extra_blocks(family, settings.convention)
    by_model = {name: _checked(name, numbers_of(row, name, family, extra)) for name, row in weights.items()}
    others = _order(settings.steps, by_model, models, primary)
    if settings.steps:
        rule: Rule = _series(primary, settings.steps, by_model)
    else:
        rule = Shares(_shares((primary, *others), by_model, (*BLOCKS[family], *extra)))
    return Recipe(primary, (primary, *others), family, settings.convention, rule)


def resolved(settings: MergeSettings) -> tuple[str, Weights]:
    if not settings.preset:
        return settings.primary or DEFAULT_PRIMARY, settings.weights
    if settings.preset not in PRESETS:
        raise SettingsError(f"{settings.preset} is not a merge preset", ", ".join(sorted(PRESETS)))
    preset = PRESETS[settings.preset]
    return settings.primary or preset.primary, {**preset.weights, **settings.weights}


def _require(name: str, models: Collection[str], where: str, kind: str = "model") -> None:
    if name not in models:
        raise SettingsError(
            f"{where} names {name}, which is not among the {kind}s",
            ", ".join(sorted(models)) or f"at least one {kind}",
            did_you_mean(name, models),
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
    order: Sequence[str], weights: ByModel, blocks: Sequence[str]
) -> dict[str, tuple[tuple[str, float], ...]]:
    """Block -> models with their shares; the first's is what the others leave."""
    shares = {}
    for block in blocks:
        given = {name: row[block] for name, row in weights.items()}
        left = ONE - sum(map(exact, given.values()))
        if left < -ROUNDING:
            raise SettingsError(f"the weights of {block} add up to {float(ONE - left):g}", "at most 1")
        row = {order[0]: float(left), **given}
        shares[block] = tuple((name, row.get(name, 0.0)) for name in order)
    return shares


def _series(primary: str, steps: tuple[str, ...], weights: ByModel) -> Chain:
    """Weighted sums one after another; a step's name can't be a model's."""
    names = [f"{number}:" for number in range(len(steps))]
    links = [
        Link(name, "weighted_sum", (so_far, model))
        for name, so_far, model in zip(names, (primary, *names), steps, strict=False)
    ]
    numbers = tuple({block: (share, 0.0, 0.0) for block, share in weights[model].items()} for model in steps)
    return Chain(tuple(links), numbers, ((),) * len(steps))


def _chain(settings: MergeSettings, models: Collection[str], family: Family) -> Recipe:
    if settings.preset or settings.primary or settings.weights or settings.steps:
        raise SettingsError("a chain is given beside preset, primary, weights or steps", "one of the two")
    extra = extra_blocks(family, settings.convention)
    known, order = list(models), dict[str, None]()
    for number, step in enumerate(settings.chain):
        _check_step(step, number, known, models)
        known.append(_name(step, number))
        order.update(dict.fromkeys(name for name in step.models if name in models))
    links = tuple(
        Link(_name(step, number), step.mode, step.models, step.seed)
        for number, step in enumerate(settings.chain)
    )
    numbers = tuple(_step_numbers(step, family, extra) for step in settings.chain)
    elements = tuple(tuple(element(rule, family, extra) for rule in step.elements) for step in settings.chain)
    every = (*order, *sorted(set(models) - set(order)))
    return Recipe(every[0], every, family, settings.convention, Chain(links, numbers, elements))


def _name(step: MergeStep, number: int) -> str:
    return step.name or f"{number}:"


def _where(name: str, number: int) -> str:
    """`name` as a link has it, or as a step has it."""
    return f"step {number + 1 if not name or ':' in name else name} of the chain"


def _check_step(step: MergeStep, number: int, known: Sequence[str], models: Collection[str]) -> None:
    where = _where(step.name, number)
    if step.mode not in MODES:
        expected = ", ".join(sorted(MODES))
        raise SettingsError(f"{step.mode} is not a mode", expected, did_you_mean(step.mode, MODES))
    for name in step.models:
        _require(name, known, where)
    fewest, most = MODES[step.mode]
    if not fewest <= len(step.models) <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} or more"
        raise SettingsError(f"{where} gives {step.mode} {len(step.models)} models", wanted)
    if step.name in known or ":" in step.name:
        raise SettingsError(f"{where} has a name that is taken or holds a colon", "a new name")


def _step_numbers(step: MergeStep, family: Family, extra: tuple[str, ...]) -> dict[str, Numbers | None]:
    frozen = {block for name in step.freeze for block in block_range(name, family, extra)}
    alpha, beta, gamma = (
        numbers_of(weight, name, family, extra)
        for name, weight in (("alpha", step.alpha), ("beta", step.beta), ("gamma", step.gamma))
    )
    least, most, meant = SHARES.get(step.mode, (-math.inf, math.inf, ""))
    if unfit := [share for share in beta.values() if not least <= share <= most]:
        raise SettingsError(f"beta is {unfit[0]:g}", f"for {step.mode} {meant}", "Give the step a `beta`.")
    return {block: None if block in frozen else (alpha[block], beta[block], gamma[block]) for block in alpha}
