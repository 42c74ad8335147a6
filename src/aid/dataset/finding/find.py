"""Finding pictures: a folder a style, or a manifest; with their tags, licence and credit.

Nothing outside the input's folder is ever opened, and names beginning with a dot are not seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aid.core.gallery import SHOTS_FILE
from aid.core.lineage import LINEAGE_FILE
from aid.dataset.finding.credit import CREDIT_FILE, Credits
from aid.dataset.finding.manifest import MANIFEST_FILE, MANIFESTS, Entry, Refused, read_manifest
from aid.dataset.finding.sidecar import Text, read_sidecar
from aid.dataset.finding.tag import TagRules, normalise_style, read_tags
from aid.dataset.settings import Encoding, PrepareInputs, PrepareSettings
from aid.errors import FileError, PictureError

PICTURE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
}  # fmt: skip
SIDECAR_SUFFIXES = (".txt", ".caption")  # in this order
NOT_CAPTIONS = {"readme", "license", "licence", "credits"}  # by their stems
NOT_PICTURES = {CREDIT_FILE, LINEAGE_FILE, "Thumbs.db", "desktop.ini"}
MASK_SUFFIXES = ("-masklabel.png", ".mask.png")
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
    fixed: int = 0
    characters: tuple[str, ...] = ()
    description: str = ""
    score: float | None = None
    rating: str = ""
    mask: Path | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Aside:
    """Why a file was set aside, and of which style it was meant to be, if that is known."""

    reason: str
    style: str = ""


@dataclass
class Found:
    """What the inputs hold. `styles` maps each style that was meant to where it was first, `guesses` a
    picture to the encoding that its tags seem to have."""

    candidates: list[Candidate] = field(default_factory=list)
    quarantined: dict[str, Aside] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    guesses: dict[str, str] = field(default_factory=dict)


def find(inputs: PrepareInputs, settings: PrepareSettings) -> Found:
    """Every candidate of every input in a fixed order: pictures before replay, then by name and path.

    Raises FileError for an input that is no folder, and for a `credit.toml` that can't be meant.
    """
    found, rules = Found(), TagRules.of(settings)
    fallbacks = settings.fallback_encodings
    for folders, regularisation in ((inputs.pictures, False), (inputs.regularisation, True)):
        for name in sorted(folders):
            _Shelf(name, folders[name], regularisation, rules, fallbacks, found).read()
    return found


class _Shelf:
    """One input folder."""

    def __init__(
        self,
        name: str,
        root: Path,
        regularisation: bool,
        rules: TagRules,
        fallbacks: Sequence[Encoding],
        found: Found,
    ) -> None:
        self.name, self.root, self.regularisation = name, root, regularisation
        self.rules, self.fallbacks, self.found = rules, fallbacks, found
        self.credits = Credits(root)

    def read(self) -> None:
        if not self.root.is_dir():
            raise FileError(
                f"{self.root} is not a folder",
                f"a folder of pictures, or the one that holds {MANIFEST_FILE}",
                f"Check the input {self.name}.",
            )
        try:
            manifests = (self.root / name for name in (*MANIFESTS, SHOTS_FILE))
            manifest = next((path for path in manifests if path.is_file()), None)
            if manifest is None:
                self._read_folders()
            else:
                self._read_manifest(manifest)
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
        masks = {mask for path in files for mask in mask_files(path)}
        pictures = [path for path in files if path not in masks and self._looks_like_picture(path)]
        self._quarantine_orphans(files)
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

    def _quarantine_orphans(self, files: Sequence[Path]) -> None:
        """Captions without a picture: one that was renamed or lost is not missed otherwise."""
        texts = [path for path in files if path.suffix.lower() in SIDECAR_SUFFIXES]
        described = {path.with_suffix("") for path in {*files} - {*texts}}
        for path in texts:
            if path.with_suffix("") not in described and path.stem.lower() not in NOT_CAPTIONS:
                self._quarantine(path.as_posix(), "is a caption without a picture of its name beside it")

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
        path, source = self.root / relative, f"{self.name}/{relative.as_posix()}"
        try:
            refuse_outside(path, self.root)
            text = self._sidecar(path) if entry.tags is None else Text(",".join(entry.tags))
            mask = self._mask(path, entry)
            tags = self.rules.apply_to(read_tags(text.content, entry.characters), style)
            if refused := self.rules.refusal(tags.tags):
                raise PictureError(f"has the tag {refused}, which is refused")
        except PictureError as error:
            self._quarantine(relative.as_posix(), str(error), style)
            return
        if text.guess:
            self.found.guesses[source] = text.guess
        licence, credit = self.credits.of(path.parent)
        candidate = Candidate(
            source=source,
            path=path,
            style=style,
            tags=tags.tags,
            fixed=tags.fixed,
            characters=tags.characters,
            description=entry.description,
            score=entry.score,
            rating=entry.rating,
            mask=mask,
            repeats=self._repeats(relative) if entry.style is None else 1,
            licence=licence if entry.licence is None else entry.licence,
            credit=credit if entry.credit is None else entry.credit,
            regularisation=self.regularisation,
        )
        self.found.candidates.append(candidate)

    def _mask(self, path: Path, entry: Entry) -> Path | None:
        """The picture of what counts: the one told, else one that lies beside."""
        told = self.root / entry.mask if entry.mask else None
        mask = told or next((each for each in mask_files(path) if each.is_file()), None)
        if mask is not None:
            try:
                refuse_outside(mask, self.root)
            except PictureError as error:
                raise PictureError(f"its mask {mask.name} {error}") from error
        return mask

    def _style(self, relative: Path) -> str:
        """What `credit.toml` says, else the top folder's name, else (a flat input) the input's name."""
        told = self.credits.style((self.root / relative).parent)
        if told is not None:
            return normalise_style(told)
        style, repeats = self._folder(relative)
        if repeats is not None and style:
            self.found.repeats[style] = max(repeats, self.found.repeats.get(style, 0))
        return style

    def _repeats(self, relative: Path) -> int:
        repeats = self._folder(relative)[1]
        return 1 if repeats is None else repeats

    def _folder(self, relative: Path) -> tuple[str, int | None]:
        """What the name of its style's folder says."""
        return read_folder_name(relative.parts[0] if len(relative.parts) > 1 else self.name)

    def _sidecar(self, path: Path) -> Text:
        for suffix in SIDECAR_SUFFIXES:
            sidecar = path.with_suffix(suffix)
            if sidecar.is_file():
                refuse_outside(sidecar, self.root)
                return read_sidecar(sidecar, self.fallbacks)
        return Text("")

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


def mask_files(path: Path) -> tuple[Path, ...]:
    """Where the mask of a picture may lie: OneTrainer's name, and a plain one."""
    return tuple(path.with_name(f"{path.stem}{suffix}") for suffix in MASK_SUFFIXES)


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
