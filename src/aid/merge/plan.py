"""Every tensor of a result: what it is made of, and its format."""

from __future__ import annotations

from collections.abc import Mapping

from aid.errors import ModelError
from aid.merge.parent import Parent
from aid.merge.recipe import Recipe
from aid.merge.stream import Output, Sum, Whole
from aid.sd.file.header import FLOATING, Format
from aid.sd.model.blocks import is_merged
from aid.sd.model.layouts import POSITIONS, VAE


def planned(
    recipe: Recipe, parents: Mapping[str, Parent], vae: Parent | None, format: str | None
) -> dict[str, Output]:
    """Every tensor of the result: what it is made of, and its format (None: as in the first model that has
    it). Raises ModelError for a VAE that doesn't fit."""
    primary = parents[recipe.primary]
    if vae is not None:
        _require_fit(vae, primary)
    keys = dict.fromkeys(key for name in recipe.order for key in parents[name].formats)
    return {key: _output(key, recipe, parents, vae, format) for key in keys}


def _output(
    key: str, recipe: Recipe, parents: Mapping[str, Parent], vae: Parent | None, format: str | None
) -> Output:
    held = tuple(name for name in recipe.order if key in parents[name].formats)
    first = parents[held[0]]
    own = first.formats[key]
    if key in POSITIONS.values():
        return Output(Format("I64", own.shape), Whole(lambda: _positions(own)))
    if vae is not None and key.startswith(VAE):
        return Output(_cast(own, format), Sum(((vae, 1.0),)))
    if own.name not in FLOATING or not is_merged(key, recipe.convention):
        return Output(_cast(own, format), Sum(((first, 1.0),)))
    terms = recipe.terms(key, held)
    if not terms:
        return Output(_cast(own, format), Whole(lambda: _zeros(_cast(own, format))))
    return Output(_cast(own, format), Sum(tuple((parents[str(leaf)], weight) for leaf, weight in terms)))


def _cast(own: Format, format: str | None) -> Format:
    return Format(format, own.shape) if format and own.name in FLOATING else own


def _zeros(format: Format) -> memoryview:
    return memoryview(bytes(format.size))


def _positions(own: Format) -> memoryview:
    """0, 1, 2 ...: other tools' merges average them, and lose some."""
    count = own.size // Format(own.name, ()).size
    return memoryview(b"".join(number.to_bytes(8, "little") for number in range(count)))


def _require_fit(vae: Parent, primary: Parent) -> None:
    """Raises ModelError unless the VAE has exactly what it is to replace."""
    for key, own in primary.formats.items():
        given = vae.formats.get(key)
        if key.startswith(VAE) and (given is None or given.shape != own.shape):
            found = f"is {list(given.shape)} in" if given else "is not in"
            raise ModelError(f"{key} {found} {vae.path}", f"{list(own.shape)}, as in {primary.name}")
