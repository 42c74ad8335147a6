"""The catalogue: every style, character and category word of a model, since which version, and how to
ask for it. AID's own is the package data `data/aid.toml`; every release writes its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aid.core.files import write_text
from aid.core.spelling import fold, mistakes
from aid.core.toml import parse_toml, toml
from aid.errors import FileError, SettingsError

Match = Literal["listed", "same", "old name", "part", "near"]
Language = Literal["en", "zh"]
MATCHES: tuple[Match, ...] = ("listed", "same", "old name", "part", "near")  # best first
NEAR_SHOWN = 8  # more neighbours than this help nobody


class Noun(BaseModel):
    """Base of the catalogue's parts: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Text(Noun):
    """One text in the card's two languages."""

    en: str
    zh: str = ""

    def in_language(self, language: Language) -> str:
        """The text, in English where it was not translated."""
        return (self.zh or self.en) if language == "zh" else self.en


class Parameters(Noun):
    """What the card recommends, and its two prompt formats."""

    sampler: str = "Euler a"
    """The A1111 name."""
    steps: tuple[int, ...] = Field(default=(32, 40), min_length=1)
    """Step counts that work; the first is the default."""
    sizes: tuple[tuple[int, int], ...] = Field(default=((512, 768), (640, 960), (768, 1152)), min_length=1)
    """Width and height in pixels; the first is the default. Left out of a release's settings, a model trained
    at another size than 512 px gets that."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 is the last layer."""
    cfg_scale: float | None = Field(default=None, ge=0, le=100)
    """Classifier-free guidance; left out where the model's makers recommend none."""
    vae: str = ""
    """A VAE that suits the model better than its own; empty for its own."""
    negative_embedding: str = ""
    """The file stem of the embedding that stands in the negative prompt."""
    prompt: str = "{trigger}, {tags}"
    """`{trigger}` stands for one or more trigger words, `{tags}` for everything else."""
    negative_prompt: str = "{embedding}, {tags}"
    """`{embedding}` stands for the negative embedding, `{tags}` for everything else."""

    def positive(self, trigger: str, tags: str = "") -> str:
        """The prompt format, filled in."""
        return _without_gaps(self.prompt.replace("{trigger}", trigger).replace("{tags}", tags))

    def negative(self, tags: str = "") -> str:
        """The negative prompt format, filled in."""
        filled = self.negative_prompt.replace("{embedding}", self.negative_embedding)
        return _without_gaps(filled.replace("{tags}", tags))


class Version(Noun):
    """One release of the model."""

    name: str
    variants: tuple[str, ...] = ()
    """A version released in several strengths: `Weak`, `Strong`."""
    notes: tuple[Text, ...] = ()
    """What changed."""
    updated: tuple[str, ...] = ()
    """Styles trained anew in this version."""
    parameters: Parameters | None = None
    """Where they differ from the catalogue's."""
    negative_embedding: str = ""
    """Where only this differs."""

    def names(self) -> tuple[str, ...]:
        """The version's name, and those of its variants: `v2.91 - Weak`."""
        return (self.name, *(f"{self.name} - {variant}" for variant in self.variants))


class Entry(Noun):
    """Something the model knows by name."""

    name: str = Field(min_length=1)
    trigger: str = Field(min_length=1)
    """What is typed into the prompt."""
    since: str
    """The first version whose list names it."""
    versions: tuple[str, ...]
    """Every version whose list names it, oldest first."""
    aliases: tuple[str, ...] = ()
    """Other spellings by which people look for it."""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


class Style(Entry):
    """An illustrator's style, called with `by NAME`."""

    category: str = ""
    """The broad manner it belongs to, one of the catalogue's category words; empty where none was given."""
    pictures: int | None = Field(default=None, ge=0)
    """How many pictures it was trained on."""
    licence: str = ""
    """Of those pictures."""
    credit: str = ""
    """Whom they are by."""


class Category(Entry):
    """A word for a broad manner (`impasto`, `flat color`), used as it stands."""


class Character(Entry):
    """A character, called by name."""


class Rename(Noun):
    """A style whose name changed; both are names without `by`."""

    old: str
    new: str
    version: str
    """The first version that answers to the new name."""


class Comparison(Noun):
    """One thing that versions are compared by, and those that are good at it."""

    name: str
    title: Text
    versions: tuple[str, ...]


class Found(Noun):
    """An entry that a search found, and how: by `via`, one of its names."""

    entry: Style | Category | Character
    match: Match
    via: str


class Catalogue(Noun):
    """What a model knows. Versions stand oldest first; every version that an entry names is among them."""

    title: str
    introduction: Text = Text(en="")
    parameters: Parameters = Parameters()
    """The newest version's, and those of every version that gives none of its own."""
    versions: tuple[Version, ...] = Field(min_length=1)
    comparisons: tuple[Comparison, ...] = ()
    renames: tuple[Rename, ...] = ()
    references: tuple[str, ...] = ()
    declarations: tuple[Text, ...] = ()
    categories: tuple[Category, ...] = ()
    characters: tuple[Character, ...] = ()
    styles: tuple[Style, ...] = ()

    @model_validator(mode="after")
    def _coherent(self) -> Catalogue:
        _check_versions(self)
        _check_names(self)
        return self

    @classmethod
    def read(cls, path: Path) -> Catalogue:
        """A catalogue.toml. Raises FileError, naming the field, if it is missing or malformed."""
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise FileError(
                f"{path} could not be read ({error.strerror or error})", "a release's catalogue.toml"
            ) from error

    @classmethod
    def parse(cls, content: bytes, name: str) -> Catalogue:
        """The catalogue in a TOML document; `name` is what an error calls it."""
        try:
            return cls.model_validate(parse_toml(content.decode()))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the catalogue"
            raise FileError(
                f"{name}: {place}: {first['msg']}", "a catalogue.toml as AID writes it"
            ) from error
        except (ValueError, RecursionError) as error:
            raise FileError(f"{name} is not TOML ({str(error)[:120]})", "a catalogue.toml") from error

    def write(self, path: Path) -> None:
        """Write the catalogue as TOML. Only what is empty is left out: nothing hangs on today's defaults."""
        write_text(path, toml(_spelt_out(self)))

    def entries(self) -> tuple[Style | Category | Character, ...]:
        """Styles, then category words, then characters."""
        return (*self.styles, *self.categories, *self.characters)

    def version(self, name: str = "") -> Version:
        """The version called `name`, with or without its `v`; the newest if empty.

        Raises SettingsError for a version that the catalogue does not know.
        """
        if not name:
            return self.versions[-1]
        for version in self.versions:
            if name.removeprefix("v") == version.name.removeprefix("v"):
                return version
        known = ", ".join(version.name for version in self.versions)
        raise SettingsError(f"{name} is not a version of {self.title}", known)

    def parameters_of(self, version: str = "") -> Parameters:
        """What is recommended for a version (the newest if empty)."""
        known = self.version(version)
        parameters = known.parameters or self.parameters
        own = {"negative_embedding": known.negative_embedding} if known.negative_embedding else {}
        return parameters.model_copy(update=own)

    def triggers(self, version: str = "") -> tuple[str, ...]:
        """The trigger words of a version (the newest if empty), as they were spelt then."""
        name = self.version(version).name
        return tuple(self._trigger_in(entry, name) for entry in self.entries() if name in entry.versions)

    def added(self, version: str) -> tuple[str, ...]:
        """The trigger words that a version was the first to list."""
        name = self.version(version).name
        return tuple(self._trigger_in(entry, name) for entry in self.entries() if entry.since == name)

    def dropped(self, version: str) -> tuple[str, ...]:
        """The trigger words that the version before listed and this one does not."""
        names = [known.name for known in self.versions]
        at = names.index(self.version(version).name)
        before = names[at - 1] if at else ""
        gone = [
            entry for entry in self.entries() if before in entry.versions and names[at] not in entry.versions
        ]
        return tuple(self._trigger_in(entry, before) for entry in gone)

    def search(self, query: str = "", version: str = "") -> list[Found]:
        """The entries that `query` may mean, best first: the same name, an old name, a part of a name,
        a misspelling. An empty query lists everything; `version` keeps what that version knows.
        """
        known = self.version(version).name if version else ""
        entries = [entry for entry in self.entries() if not known or known in entry.versions]
        wanted = fold(query)
        if not wanted:
            return [Found(entry=entry, match="listed", via=entry.name) for entry in entries]
        ranked = [(rank, place) for place, entry in enumerate(entries) if (rank := self._rank(wanted, entry))]
        ranked.sort(key=lambda row: (row[0][:2], row[1]))
        found = [Found(entry=entries[place], match=MATCHES[rank[0]], via=rank[2]) for rank, place in ranked]
        near = [one for one in found if one.match == "near"]
        return [one for one in found if one.match != "near"] + near[:NEAR_SHOWN]

    def names_of(self, entry: Entry) -> Iterator[tuple[str, bool]]:
        """Every name of an entry, and whether it is an old one."""
        yield entry.name, False
        yield from ((alias, False) for alias in entry.aliases)
        yield from ((rename.old, True) for rename in self.renames if rename.new == entry.name)

    def _rank(self, wanted: str, entry: Entry) -> tuple[int, int, str] | None:
        """(index in MATCHES, fineness, name that matched) of the best match."""
        ranks = (_rank_name(wanted, name, old) for name, old in self.names_of(entry))
        return min(filter(None, ranks), default=None)

    def _trigger_in(self, entry: Entry, version: str) -> str:
        names = [known.name for known in self.versions]
        for rename in self.renames:
            if rename.new == entry.name and names.index(version) < names.index(rename.version):
                return entry.trigger.removesuffix(rename.new) + rename.old
        return entry.trigger


@cache
def load_catalogue() -> Catalogue:
    """AID's own catalogue, as its model card lists it (v2.5 to v2.10beta1)."""
    source = resources.files("aid.core") / "data" / "aid.toml"
    return Catalogue.parse(source.read_bytes(), "aid.toml")


def _rank_name(wanted: str, name: str, old: bool) -> tuple[int, int, str] | None:
    folded = fold(name)
    if folded == wanted:
        return MATCHES.index("old name" if old else "same"), 0, name
    if wanted in folded:
        return MATCHES.index("part"), folded.index(wanted), name
    steps = mistakes(wanted, folded)
    return None if steps is None else (MATCHES.index("near"), steps, name)


def _spelt_out(value: Any) -> Any:
    """A noun as plain mappings, without the fields that are empty by default."""
    if isinstance(value, Noun):
        fields = {
            name: (getattr(value, name), field.default) for name, field in type(value).model_fields.items()
        }
        return {name: _spelt_out(item) for name, (item, default) in fields.items() if item or item != default}
    return [_spelt_out(item) for item in value] if isinstance(value, tuple) else value


def _without_gaps(prompt: str) -> str:
    """Drop the commas that an empty placeholder leaves."""
    return ", ".join(filter(None, (part.strip() for part in prompt.split(","))))


def _check_versions(catalogue: Catalogue) -> None:
    names = [version.name for version in catalogue.versions]
    _check_unique("version", names)
    every = {name for version in catalogue.versions for name in version.names()}
    for comparison in catalogue.comparisons:
        _check_known(comparison.name, comparison.versions, every)
    for rename in catalogue.renames:
        _check_known(f"the rename of {rename.old}", [rename.version], names)
    for entry in catalogue.entries():
        _check_known(entry.name, entry.versions, names)
        if list(entry.versions) != sorted(set(entry.versions), key=names.index):
            raise ValueError(f"the versions of {entry.name} are not in the catalogue's order")
        if not entry.versions or entry.since != entry.versions[0]:
            raise ValueError(f"{entry.name} is since {entry.since}, which is not its first version")


def _check_names(catalogue: Catalogue) -> None:
    for entries in (catalogue.styles, catalogue.categories, catalogue.characters):
        _check_unique("name", [entry.name for entry in entries])
    _check_unique("trigger", [entry.trigger for entry in catalogue.entries()])
    styles = {style.name for style in catalogue.styles}
    for rename in catalogue.renames:
        if rename.new not in styles:
            raise ValueError(f"{rename.old} was renamed to {rename.new}, which is not a style")
        if rename.old in styles:
            raise ValueError(f"{rename.old} was renamed to {rename.new} and is still listed as a style")


def _check_known(what: str, named: Sequence[str], known: Collection[str]) -> None:
    for version in named:
        if version not in known:
            raise ValueError(f"{what} names {version}, which is not one of the versions")


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"the {what} {name} is listed twice")
