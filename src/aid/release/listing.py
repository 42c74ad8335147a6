"""The release's own catalogue: what this version knows, laid over what earlier ones knew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from aid.core.catalogue import Catalogue, Category, Character, Comparison, Entry, Rename, Style, Version
from aid.core.dataset import Record
from aid.core.report import Report
from aid.core.spelling import did_you_mean
from aid.errors import SettingsError
from aid.release.settings import ReleaseSettings

E = TypeVar("E", bound=Entry)


def list_release(
    settings: ReleaseSettings,
    records: Sequence[Record],
    report: Report | None,
    previous: Catalogue | None,
) -> Catalogue:
    """The catalogue of this version.

    A style is listed if it has pictures in the dataset (replayed ones too) or was measured. Styles,
    words and versions of the previous catalogue stay, with the versions that knew them.

    Raises SettingsError for a version that already exists or settings that name an unknown style.
    """
    _check_version(settings.version, previous)
    pictures = group_by_style(records)
    known = sorted({*pictures, *((row.style for row in report.styles) if report else ())})
    _check_styles(settings, known, previous)
    try:
        return Catalogue(
            title=settings.title,
            introduction=settings.description,
            parameters=settings.parameters,
            versions=(*_past_versions(previous), _this_version(settings)),
            comparisons=_comparisons(settings, previous),
            renames=(*(previous.renames if previous else ()), *_renames(settings)),
            references=settings.references,
            declarations=settings.declarations,
            categories=_words(
                Category, settings, settings.categories, previous.categories if previous else ()
            ),
            characters=_words(
                Character, settings, settings.characters, previous.characters if previous else ()
            ),
            styles=_styles(settings, known, pictures, previous.styles if previous else ()),
        )
    except ValidationError as error:
        raise SettingsError(f"the release's catalogue: {error.errors()[0]['msg']}") from error


def group_by_style(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each style, held-out ones too, in the dataset's order; those of no style are left out."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.style:
            groups.setdefault(record.style, []).append(record)
    return groups


def joined_unique(values: Iterable[str]) -> str:
    """The different values, sorted, as one text: `CC-BY-4.0; CC0-1.0`."""
    return "; ".join(sorted({value for value in values if value}))


def _past_versions(previous: Catalogue | None) -> tuple[Version, ...]:
    """Earlier versions, each with the parameters that were recommended for it."""
    if previous is None:
        return ()
    spelt_out = {version.name: previous.parameters_of(version.name) for version in previous.versions}
    return tuple(
        version.model_copy(update={"parameters": spelt_out[version.name], "negative_embedding": ""})
        for version in previous.versions
    )


def _this_version(settings: ReleaseSettings) -> Version:
    return Version(name=settings.version, notes=settings.notes, parameters=settings.parameters)


def _comparisons(settings: ReleaseSettings, previous: Catalogue | None) -> tuple[Comparison, ...]:
    merged = {comparison.name: comparison for comparison in (previous.comparisons if previous else ())}
    merged |= {comparison.name: comparison for comparison in settings.comparisons}
    return tuple(merged.values())


def _renames(settings: ReleaseSettings) -> tuple[Rename, ...]:
    return tuple(Rename(old=old, new=new, version=settings.version) for old, new in settings.renames.items())


def _styles(
    settings: ReleaseSettings,
    known: Sequence[str],
    pictures: Mapping[str, Sequence[Record]],
    previous: Sequence[Style],
) -> tuple[Style, ...]:
    categories = {style: word for word, styles in settings.categories.items() for style in styles}
    before = {settings.renames.get(style.name, style.name): style for style in previous}
    styles = []
    for name in sorted({*known, *before}):
        past = before.get(name)
        versions = (*(past.versions if past else ()), *([settings.version] if name in known else []))
        own = pictures.get(name, [])
        trained = sum(record.split == "train" for record in own)
        style = Style(
            name=name,
            trigger=f"by {name}",
            since=versions[0],
            versions=versions,
            aliases=past.aliases if past else (),
            category=categories.get(name, past.category if past else ""),
            pictures=trained if own else (past.pictures if past else None),
            licence=joined_unique(record.licence for record in own) or (past.licence if past else ""),
            credit=joined_unique(record.credit for record in own) or (past.credit if past else ""),
        )
        styles.append(style)
    return tuple(styles)


def _words(
    noun: type[E], settings: ReleaseSettings, named: Iterable[str], previous: Sequence[E]
) -> tuple[E, ...]:
    """Category words or characters: this version's in the order named, after those of earlier ones."""
    entries = {entry.name: entry for entry in previous}
    for name in dict.fromkeys(named):
        versions = (*(entries[name].versions if name in entries else ()), settings.version)
        aliases = entries[name].aliases if name in entries else ()
        entries[name] = noun(name=name, trigger=name, since=versions[0], versions=versions, aliases=aliases)
    return tuple(entries.values())


def _check_version(version: str, previous: Catalogue | None) -> None:
    taken = [known.name for known in previous.versions] if previous else []
    if version in taken:
        raise SettingsError(
            f"version {version} is already in the previous catalogue",
            f"a name other than {', '.join(taken)}",
            "Give the release a new version.",
        )


def _check_styles(settings: ReleaseSettings, known: Collection[str], previous: Catalogue | None) -> None:
    renamed = [("renames", new) for new in settings.renames.values()]
    grouped = [("categories", style) for styles in settings.categories.values() for style in styles]
    for where, style in renamed + grouped:
        _check_known(where, style, known)
    past = [style.name for style in previous.styles] if previous else []
    for old in settings.renames:
        if previous and old not in past:
            _check_known("renames", old, past)


def _check_known(where: str, style: str, known: Collection[str]) -> None:
    if style not in known:
        raise SettingsError(
            f"{where} names {style}, which is not a style of this release",
            ", ".join(sorted(known)) or "a style",
            did_you_mean(style, known),
        )
