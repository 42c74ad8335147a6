"""Every tensor of a result: what it is made of, and its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aid.errors import ModelError
from aid.merge.combination import Combination
from aid.merge.parent import Parent
from aid.merge.recipe import Recipe
from aid.merge.stream import Output, Sum, Whole
from aid.sd.file.header import FLOATING, Format
from aid.sd.model.blocks import is_merged
from aid.sd.model.detection import V_MARKER, ZERO_MARKER
from aid.sd.model.layouts import POSITIONS, TEXT_ROOT, UNET, VAE

if TYPE_CHECKING:
    from aid.merge.evaluation import Bake


@dataclass(frozen=True)
class Wanted:
    """What is done besides the recipe."""

    format: str | None = None
    """Of floating tensors; None: as in the first model that has the tensor."""
    vae: Parent | None = None
    prune: bool = False
    bakes: Mapping[str, Bake] = field(default_factory=dict)
    """Adapters, for the tensors that they change."""


def planned(recipe: Recipe, parents: Mapping[str, Parent], wanted: Wanted) -> dict[str, Output]:
    """Every tensor of the result. Raises ModelError for a VAE or an adapter that doesn't fit."""
    primary = parents[recipe.primary]
    if wanted.vae is not None:
        _require_fit(wanted.vae, primary)
    keys = dict.fromkeys(key for name in recipe.order for key in parents[name].formats)
    kept = [key for key in keys if not wanted.prune or _is_model(key, recipe)]
    outputs = {key: _output(key, recipe, parents, wanted) for key in kept}
    if missing := wanted.bakes.keys() - outputs.keys():
        raise ModelError(f"{primary} lacks {min(missing)}", "every tensor that an adapter changes")
    return outputs | _evaluated(outputs, recipe, parents, wanted)


def _is_model(key: str, recipe: Recipe) -> bool:
    """No average, no state of a training, no schedule."""
    return key.startswith((UNET, TEXT_ROOT[recipe.family], VAE)) or key in (V_MARKER, ZERO_MARKER)


def _output(key: str, recipe: Recipe, parents: Mapping[str, Parent], wanted: Wanted) -> Output:
    """Tensors that need more than a sum are for `_evaluated`: here they have none."""
    held = _held(key, recipe, parents)
    own = parents[held[0]].formats[key]
    if key in POSITIONS.values():
        return Output(Format("I64", own.shape), Whole(lambda: _positions(own)))
    format = _cast(own, wanted.format)
    if wanted.vae is not None and key.startswith(VAE):
        return Output(format, Sum(((wanted.vae, 1.0),)))
    return Output(format, Sum(_terms(combination_of(key, recipe, parents), parents)))


def _evaluated(
    outputs: Mapping[str, Output], recipe: Recipe, parents: Mapping[str, Parent], wanted: Wanted
) -> dict[str, Output]:
    """Those tensors that aren't sums of parents' alone."""
    sums = [key for key, one in outputs.items() if isinstance(one.source, Sum)]
    taken = {key for key in sums if not (wanted.vae is not None and key.startswith(VAE))}
    combinations = {key: combination_of(key, recipe, parents) for key in sums if key in taken}
    needed = {key: one for key, one in combinations.items() if key in wanted.bakes or not _is_sum(one)}
    if not needed:
        return {}
    from aid.merge.evaluation import Evaluation  # numpy is needed for these alone

    evaluation = Evaluation(parents, needed, wanted.bakes)

    def whole(key: str, format: Format) -> Output:
        return Output(format, Whole(lambda: evaluation.make(key, format)))

    return {key: whole(key, outputs[key].format) for key in needed}


def _held(key: str, recipe: Recipe, parents: Mapping[str, Parent]) -> tuple[str, ...]:
    return tuple(name for name in recipe.order if key in parents[name].formats)


def combination_of(key: str, recipe: Recipe, parents: Mapping[str, Parent]) -> Combination:
    """What a tensor is made of. Whole numbers aren't averaged, nor is what is no part of a model."""
    held = _held(key, recipe, parents)
    averaged = parents[held[0]].formats[key].name in FLOATING and is_merged(key, recipe.convention)
    return recipe.terms(key, held) if averaged else ((held[0], 1.0),)


def _is_sum(combination: Combination) -> bool:
    return bool(combination) and all(isinstance(leaf, str) for leaf, _ in combination)


def _terms(combination: Combination, parents: Mapping[str, Parent]) -> tuple[tuple[Parent, float], ...]:
    return tuple((parents[leaf], weight) for leaf, weight in combination if isinstance(leaf, str))


def _cast(own: Format, format: str | None) -> Format:
    return Format(format, own.shape) if format and own.name in FLOATING else own


def _positions(own: Format) -> tuple[memoryview, int]:
    """0, 1, 2 ...: other tools' merges average them, and lose some."""
    count = own.size // Format(own.name, ()).size
    return memoryview(b"".join(number.to_bytes(8, "little") for number in range(count))), 0


def _require_fit(vae: Parent, primary: Parent) -> None:
    """Raises ModelError unless the VAE has exactly what it is to replace."""
    for key, own in primary.formats.items():
        given = vae.formats.get(key)
        if key.startswith(VAE) and (given is None or given.shape != own.shape):
            found = f"is {list(given.shape)} in" if given else "is not in"
            raise ModelError(f"{key} {found} {vae.path}", f"{list(own.shape)}, as in {primary.name}")
