"""One tree of errors. Each says what was found, what was expected, and the next step."""

from __future__ import annotations

LONGEST = 1500  # characters of a message


class AidError(Exception):
    """Something AID can name: `found`, and where it helps `expected` and the `next_step`."""

    def __init__(self, found: str, expected: str = "", next_step: str = "") -> None:
        self.found, self.expected, self.next_step = found, expected, next_step
        message = found if not expected else f"{found}; expected {expected}"
        super().__init__(_line(f"{message}. {next_step}".strip() if next_step else message))


def _line(message: str) -> str:
    """One line of bearable length, whatever a file's own words, which are part of it, hold."""
    line = "".join(map(_shown, message))
    cut = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    return line if len(line) <= LONGEST else cut


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else ascii(letter)[1:-1]


class SettingsError(AidError):
    """A setting, recipe or command line that cannot be meant."""


class FileError(AidError):
    """A file that is missing, truncated, malformed, or unsafe to read."""


class PictureError(FileError):
    """A picture that cannot be read or is not safe to decode."""


class ModelError(FileError):
    """Weights of another architecture, shape or meaning than the one asked for."""


class ArtifactError(AidError):
    """An artifact folder that is incomplete, foreign or in use."""
