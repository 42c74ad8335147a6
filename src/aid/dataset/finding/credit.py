"""credit.toml: licence, credit and style of a folder's pictures.

licence = "CC-BY-4.0"          # inherited by the folders below that say nothing else
credit = "Ashley Seo"
style = "big-smile"            # instead of the folder's name; "" for no style
[styles]                       # the same from above: folder name -> style
"10_smile" = "big-smile"
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from aid.core.toml import parse_toml
from aid.errors import FileError

CREDIT_FILE = "credit.toml"
MAXIMUM_CREDIT_BYTES = 1 << 20


class Credit(BaseModel):
    """One credit.toml; None where it says nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    licence: str | None = None
    credit: str | None = None
    style: str | None = None
    styles: dict[str, str] = {}


class Credits:
    """The credit files of one input, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[Path, Credit] = {}

    def of(self, folder: Path) -> tuple[str, str]:
        """(licence, credit) that hold in `folder`; empty where nobody says."""
        chain = self._chain(folder)
        licence = next((each.licence for each in chain if each.licence is not None), "")
        credit = next((each.credit for each in chain if each.credit is not None), "")
        return licence, credit

    def style(self, folder: Path) -> str | None:
        """The style told for `folder`, nearest word first; None leaves it to the folder's name."""
        while folder != self.root:
            told = self._credit(folder).style
            told = self._credit(folder.parent).styles.get(folder.name) if told is None else told
            if told is not None:
                return told
            folder = folder.parent
        return self._credit(self.root).style

    def _chain(self, folder: Path) -> list[Credit]:
        above = folder.relative_to(self.root).parts
        folders = [self.root.joinpath(*above[:depth]) for depth in range(len(above), -1, -1)]
        return [self._credit(each) for each in folders]

    def _credit(self, folder: Path) -> Credit:
        if folder not in self._read:
            self._read[folder] = read_credit(folder / CREDIT_FILE, self.root)
        return self._read[folder]


def read_credit(path: Path, root: Path) -> Credit:
    """A folder's credit file, empty if there is none. Raises FileError if it can't be meant."""
    if not path.is_file():
        return Credit()
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError("a link that leaves its folder")
        if path.stat().st_size > MAXIMUM_CREDIT_BYTES:
            raise ValueError("over 1 MiB")
        return Credit.model_validate(parse_toml(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise FileError(f"{path} is not a credit file ({reason})", "licence, credit, style and [styles] as text")
