"""Finding pictures: a folder a style, or a manifest; with their tags, licence and credit.

Nothing outside the input's folder is ever opened, and names beginning with a dot are not seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aid.core.gallery import SHOTS_FILE
from aid.core.lineage import LINEAGE_FILE
from aid.dataset.credit import CREDIT_FILE, Credits
from aid.dataset.manifest import MANIFEST_FILE, Entry, Refused, read_manifest
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.dataset.tag import TagRules, normalise_style, parse_tags
from aid.errors import FileError, PictureError

PICTURE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
}  # fmt: skip
SIDECAR_SUFFIXES = (".txt", ".caption")  # in this order
NOT_PICTURES = {CREDIT_FILE, MANIFEST_FILE, LINEAGE_FILE, "Thumbs.db", "desktop.ini"}
MAXIMUM_SIDECAR_BYTES = 65536
REPEATS = re.compile(r"(\d+)_(.+)", re.DOTALL)  # kohya's folder names: 10_by fuzichoco


@dataclass(frozen=True)
class Candidate:
    """A picture found, not yet opened."""

    source: str
    path: Path
    style: str
    tags: tuple[str, ...]
    licence: str
    credit: str
    regularisation: bool


@dataclass(frozen=True)
class Aside:
    """Why a file was set aside, and of which style it was meant to be, if that is known."""

    reason: str
    style: str = ""


@dataclass
class Found:
    """What the inputs hold. `styles` maps each style that was meant to where it was first."""

    candidates: list[Candidate] = field(default_factory=list)
    quarantined: dict[str, Aside] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)


def find(inputs: PrepareInputs, settings: PrepareSettings) -> Found:
    """Every candidate of every input in a fixed order: pictures before replay, then by name and path.

    Raises FileError for an input that is no folder, and for a `credit.toml` that can't be meant.
    """
    found, rules = Found(), TagRules.of(settings)
    for folders, regularisation in ((inputs.pictures, False), (inputs.regularisation, True)):
        for name in sorted(folders):
            _Shelf(name, folders[name], regularisation, rules, found).read()
    return found


class _Shelf:
    """One input folder."""

    def __init__(self, name: str, root: Path, regularisation: bool, rules: TagRules, found: Found) -> None:
        self.name, self.root, self.regularisation = name, root, regularisation
        self.rules, self.found = rules, found
        self.credits = Credits(root)

    def read(self) -> None:
        if not self.root.is_dir():
            raise FileError(
                f"{self.root} is not a folder",
                f"a folder of pictures, or the one that holds {MANIFEST_FILE}",
                f"Check the input {self.name}.",
            )
        try:
            if (self.root / MANIFEST_FILE).is_file():
                self._read_manifest(self.root / MANIFEST_FILE)
            elif (self.root / SHOTS_FILE).is_file():
                self._read_manifest(self.root / SHOTS_FILE)
            else:
                self._read_folders()
        except OSError as error:
            raise FileError(f"{error.filename} could not be read ({error.strerror or error})") from error

    def _read_manifest(self, path: Path) -> None:
        for label, line in read_manifest(path):
            style = None if line.style is None else normalise_style(line.style)
            self._declare(style or "", label)
            if isinstance(line, Refused):
                self._quarantine(label, line.reason, style or "")
            else:
                self._take(Path(line.file), line)

    def _read_folders(self) -> None:
        tops, files = self._walk(self.root)
        pictures = [path for path in files if self._looks_like_picture(path)]
        filled = {path.parts[0] for path in pictures if len(path.parts) > 1}
        for top in tops:
            if top not in filled:
                self._declare(self._style(Path(top, "picture")), top)
        for path in pictures:
            if len(path.parts) == 1 and filled and self.credits.style(self.root) is None:
                self._quarantine(path.as_posix(), "lies beside style folders, in none of them")
            else:
                self._declare(self._style(path), path.parent.as_posix())
                self._take(path, Entry.model_construct(file=str(path)))

    def _walk(self, folder: Path) -> tuple[list[str], list[Path]]:
        """Names of the folders in `folder`, and every visible file below, relative to the root; sorted."""
        names: list[str] = []
        files: list[Path] = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            relative = path.relative_to(self.root)
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name)
                files += self._walk(path)[1]
            elif entry.is_symlink() and path.is_dir():
                self._quarantine(relative.as_posix(), "is a linked folder, not followed")
            else:
                files.append(relative)
        return names, files

    def _looks_like_picture(self, path: Path) -> bool:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            return True
        if path.name not in NOT_PICTURES and path.suffix.lower() not in SIDECAR_SUFFIXES:
            self._quarantine(path.as_posix(), f"is not a picture ({path.suffix or 'no suffix'})")
        return False

    def _take(self, relative: Path, entry: Entry) -> None:
        style = self._style(relative) if entry.style is None else normalise_style(entry.style)
        path = self.root / relative
        try:
            refuse_outside(path, self.root)
            text = self._sidecar(path) if entry.tags is None else ",".join(entry.tags)
        except PictureError as error:
            self._quarantine(relative.as_posix(), str(error), style)
            return
        licence, credit = self.credits.of(path.parent)
        candidate = Candidate(
            source=f"{self.name}/{relative.as_posix()}",
            path=path,
            style=style,
            tags=self.rules.apply(parse_tags(text), style),
            licence=licence if entry.licence is None else entry.licence,
            credit=credit if entry.credit is None else entry.credit,
            regularisation=self.regularisation,
        )
        self.found.candidates.append(candidate)

    def _style(self, relative: Path) -> str:
        """What `credit.toml` says, else the top folder's name, else (a flat input) the input's name."""
        told = self.credits.style((self.root / relative).parent)
        if told is not None:
            return normalise_style(told)
        style, repeats = read_folder_name(relative.parts[0] if len(relative.parts) > 1 else self.name)
        if repeats is not None and style:
            self.found.repeats[style] = repeats
        return style

    def _sidecar(self, path: Path) -> str:
        for suffix in SIDECAR_SUFFIXES:
            sidecar = path.with_suffix(suffix)
            if sidecar.is_file():
                refuse_outside(sidecar, self.root)
                return read_sidecar(sidecar)
        return ""

    def _declare(self, style: str, where: str) -> None:
        if style:
            self.found.styles.setdefault(style, f"{self.name}/{printable(where)}")

    def _quarantine(self, relative: str, reason: str, style: str = "") -> None:
        self.found.quarantined[f"{self.name}/{printable(relative)}"] = Aside(printable(reason), style)


def refuse_outside(path: Path, root: Path) -> None:
    """Raise PictureError unless `path`, links followed, is a plain file inside `root` named in UTF-8."""
    try:
        if not path.is_file():
            raise PictureError("is not a plain file" if os.path.lexists(path) else "does not exist")
        if not path.resolve().is_relative_to(root.resolve()):
            raise PictureError("is a link that leaves its folder")
        str(path).encode()
    except UnicodeEncodeError:
        raise PictureError("has a name that is not UTF-8") from None
    except OSError as error:
        raise PictureError(f"can't be opened ({error.strerror or error})") from error


def read_folder_name(name: str) -> tuple[str, int | None]:
    """(style, kohya's repeats or None) of a folder's name; a name that starts with `_` means no style."""
    match = REPEATS.fullmatch(name)
    repeats, rest = (int(match[1][:9]), match[2]) if match else (None, name)
    return ("" if rest.startswith("_") else normalise_style(rest)), repeats


def read_sidecar(path: Path) -> str:
    """A tag file's text: UTF-8, or UTF-16 with its mark. Raises PictureError for anything else."""
    with open(path, "rb") as stream:
        content = stream.read(MAXIMUM_SIDECAR_BYTES + 1)
    if len(content) > MAXIMUM_SIDECAR_BYTES:
        raise PictureError(f"its tags {path.name} are longer than {MAXIMUM_SIDECAR_BYTES} bytes")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise PictureError(f"its tags {printable(path.name)} are not UTF-8 text") from None


def printable(text: str) -> str:
    """Text that any report can hold: undecodable bytes of a file name are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def require_styles(found: Found, left: set[str], copies: Mapping[str, Aside]) -> None:
    """Raise FileError naming a style that was meant and none of whose pictures is left, and a reason."""
    asides = {**found.quarantined, **copies}
    for style, where in found.styles.items():
        if style not in left:
            reasons = [f": {name} {aside.reason}" for name, aside in asides.items() if aside.style == style]
            raise FileError(
                f"style {style} ({where}) has no picture left" + "".join(reasons[:1]),
                "at least one",
                "Add pictures, remove the folder, or start its name with _ if it is no style.",
            )
    if not left:
        reasons = [f": {name} {aside.reason}" for name, aside in asides.items()]
        raise FileError(
            "no picture is left" + "".join(reasons[:1]), "at least one", "Check the inputs' folders."
        )
