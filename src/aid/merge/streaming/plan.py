"""Every tensor of a result: what it is made of, and its format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from aid.errors import ModelError
from aid.merge.recipe.combination import Combination, in_place, is_ordered, models_in
from aid.merge.recipe.recipe import Recipe
from aid.merge.streaming.parent import Parent
from aid.merge.streaming.stream import Fault, Made, Output, Sum
from aid.sd.file.header import FLOATING, Format
from aid.sd.model.architecture import Architecture, Family
from aid.sd.model.blocks import is_merged
from aid.sd.model.detection import V_MARKER, ZERO_MARKER
from aid.sd.model.layouts import POSITIONS, TEXT_ROOT, UNET, VAE

if TYPE_CHECKING:
    from aid.merge.streaming.evaluation import Bake, Evaluation


@dataclass(frozen=True)
class Wanted:
    """What is done besides the recipe."""

    format: str | None = None
    """Of floating tensors; None: as in the first model that has the tensor."""
    vae: Parent | None = None
    prune: bool = False
    bakes: Mapping[str, Bake] = field(default_factory=dict)
    """Adapters, for the tensors that they change."""


@dataclass(frozen=True)
class Plan:
    """A recipe, and what every tensor of the result is made of."""

    recipe: Recipe
    parents: Mapping[str, Parent]
    wanted: Wanted
    combinations: Mapping[str, Combination]

    def marked(self, architecture: Architecture) -> Plan:
        """Without the empty tensors by which tools would take the result for what it isn't."""
        true = {
            V_MARKER: architecture.prediction == "v",
            ZERO_MARKER: architecture.zero_terminal_snr,
        }
        kept = {key: one for key, one in self.combinations.items() if true.get(key, True)}
        return replace(self, combinations=kept)

    def outputs(self, keys: Iterable[str]) -> dict[str, Output]:
        """How each of these tensors is made."""
        return {key: self._output(key) for key in keys}

    def _output(self, key: str) -> Output:
        own = self.parents[_held(key, self.recipe, self.parents)[0]].formats[key]
        if key in POSITIONS.values():
            return Output(Format("I64", own.shape), Made(_positions))
        format = self._format(key)
        if self.wanted.vae is not None and key.startswith(VAE):
            return Output(format, Sum(((self.wanted.vae, 1.0),)))
        if self.evaluation is not None and key in self.evaluation.calls:
            return Output(format, self.evaluation.made(key))
        return Output(format, Sum(_terms(self.combinations[key], self.parents)))

    @cached_property
    def lacking(self) -> dict[str, list[str]]:
        """What parents lack of the blocks that they give, by name; there the others' values stand."""
        givers = {block: models_in(self.recipe.nominal(block)) for block in self.recipe.blocks}
        found: dict[str, list[str]] = {}
        for key in self.combinations:
            if is_model(key, self.recipe.family) and _is_merged(key, self.recipe, self.parents):
                for name in givers.get(self.recipe.block(key), ()):
                    if key not in self.parents[name].formats:
                        found.setdefault(name, []).append(key)
        return found

    @cached_property
    def merged(self) -> dict[str, str]:
        """The tensors that the recipe decides on, each with its block."""
        return {
            key: self.recipe.block(key)
            for key in self.combinations
            if not self._is_given(key) and _is_merged(key, self.recipe, self.parents)
        }

    @cached_property
    def givers(self) -> list[str]:
        """The models that have a weight anywhere, in the recipe's order."""
        read = {name for key in self.merged for name in models_in(self.combinations[key])}
        return [name for name in self.recipe.order if name in read]

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Of those tensors that aren't sums of parents' alone, if there are any."""
        needed = {key: one for key, one in self.combinations.items() if self._is_evaluated(key, one)}
        if not needed:
            return None
        from aid.merge.streaming.evaluation import Evaluation  # for these alone

        formats = {key: self._format(key) for key in needed}
        return Evaluation(self.parents, needed, formats, self.wanted.bakes)

    def _format(self, key: str) -> Format:
        """What it is written in: an own format, or that of the first model that has the tensor."""
        own = self.parents[_held(key, self.recipe, self.parents)[0]].formats[key]
        return Format(self.wanted.format, own.shape) if self.wanted.format and own.name in FLOATING else own

    def _is_evaluated(self, key: str, combination: Combination) -> bool:
        return not self._is_given(key) and (key in self.wanted.bakes or not _is_sum(combination))

    def _is_given(self, key: str) -> bool:
        """Whether no model has a say: position ids, and the VAE where one is put in."""
        return key in POSITIONS.values() or (self.wanted.vae is not None and key.startswith(VAE))


def planned(recipe: Recipe, parents: Mapping[str, Parent], wanted: Wanted) -> Plan:
    """Raises ModelError for a VAE or an adapter that doesn't fit."""
    primary = parents[recipe.primary]
    if wanted.vae is not None:
        _require_fit(wanted.vae, primary)
    keys = dict.fromkeys(key for name in recipe.order for key in parents[name].formats)
    kept = [key for key in keys if not wanted.prune or is_model(key, recipe.family)]
    if missing := wanted.bakes.keys() - kept:
        raise ModelError(f"{primary} lacks {min(missing)}", "every tensor that an adapter changes")
    return Plan(
        recipe, parents, wanted, _in_place({key: _combination(key, recipe, parents) for key in kept}, parents)
    )


def _in_place(
    combinations: Mapping[str, Combination], parents: Mapping[str, Parent]
) -> dict[str, Combination]:
    """Sums in the order of what their parents hold, whatever these are called."""
    told = {one for one in combinations.values() if is_ordered(one)}
    if not told:
        return dict(combinations)
    content = {name: parents[name].content() for one in told for name in models_in(one)}
    ranks = {sha256: rank for rank, sha256 in enumerate(sorted(set(content.values())))}
    places = {name: ranks[sha256] for name, sha256 in content.items()}
    ordered = {one: in_place(one, places) for one in told}
    return {key: ordered.get(one, one) for key, one in combinations.items()}


def is_model(key: str, family: Family) -> bool:
    """No average, no state of a training, no schedule."""
    return key.startswith((UNET, TEXT_ROOT[family], VAE)) or key in (V_MARKER, ZERO_MARKER)


def _held(key: str, recipe: Recipe, parents: Mapping[str, Parent]) -> tuple[str, ...]:
    return tuple(name for name in recipe.order if key in parents[name].formats)


def _combination(key: str, recipe: Recipe, parents: Mapping[str, Parent]) -> Combination:
    """What a tensor is made of. Whole numbers aren't averaged, nor is what is no part of a model."""
    held = _held(key, recipe, parents)
    if not _is_merged(key, recipe, parents):
        return ((held[0], 1.0),)
    terms = recipe.terms(key, held)
    for name in models_in(terms):
        _require_kind(key, parents[name], parents[held[0]])
    return terms


def _is_merged(key: str, recipe: Recipe, parents: Mapping[str, Parent]) -> bool:
    held = _held(key, recipe, parents)
    return is_merged(key, recipe.convention) and any(parents[name].is_floating(key) for name in held)


def _require_kind(key: str, parent: Parent, first: Parent) -> None:
    """Raises ModelError for whole numbers where `first` has floating point, or the other way round."""
    if parent.is_floating(key) != first.is_floating(key):
        wanted = "floating point" if first.is_floating(key) else "whole numbers"
        raise ModelError(
            f"{parent}: {key} is {parent.formats[key].word}",
            f"{wanted}, as in {first.name}, where it is {first.formats[key].word}",
            "Use an undamaged copy of it.",
        )


def _is_sum(combination: Combination) -> bool:
    return bool(combination) and all(isinstance(leaf, str) for leaf, _ in combination)


def _terms(combination: Combination, parents: Mapping[str, Parent]) -> tuple[tuple[Parent, float], ...]:
    return tuple((parents[leaf], weight) for leaf, weight in combination if isinstance(leaf, str))


def _positions(start: int, room: memoryview) -> Fault:
    """0, 1, 2 ...: other tools' merges average them, and lose some."""
    room[:] = b"".join(number.to_bytes(8, "little") for number in range(start, start + len(room) // 8))
    return ""


def _require_fit(vae: Parent, primary: Parent) -> None:
    """Raises ModelError unless the VAE has exactly what it is to replace."""
    for key, own in primary.formats.items():
        given = vae.formats.get(key)
        if key.startswith(VAE) and (given is None or given.shape != own.shape):
            found = f"is {list(given.shape)} in" if given else "is not in"
            raise ModelError(f"{key} {found} {vae.path}", f"{list(own.shape)}, as in {primary.name}")
        if key.startswith(VAE):
            _require_kind(key, vae, primary)
