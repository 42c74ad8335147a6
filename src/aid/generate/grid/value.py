"""The values of an axis from text, as A1111's users type them.

    10, 20, 30          values, between commas; "a, b" in quotes holds a comma
    1-5                 1, 2, 3, 4, 5; 5-1 counts down
    1-9(+2)             1, 3, 5, 7, 9; also with fractions and downwards: 2-1(-0.25)
    3-10[4]             4 values from 3 to 10, as far apart as may be: 3, 5, 7, 10

Source: A1111 scripts/xyz_grid.py; unlike there, no value lies beyond the end that was written.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from decimal import Decimal
from itertools import chain

from aid.errors import SettingsError

MOST = 10_000  # cells of one grid, and so values of one axis
NUMBER = r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})"
RANGE = re.compile(
    rf"({NUMBER})\s*-\s*({NUMBER})\s*(?:\(\s*(?P<step>{NUMBER})\s*\)|\[\s*(?P<count>\d{{1,9}})\s*\])?"
)
WRITTEN = "a number, 1-5, 1-9(+2) or 3-10[4]"


def words(text: str) -> list[str]:
    """The values between commas, quotes and outer spaces taken off. Raises SettingsError."""
    try:
        rows = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    except csv.Error as error:
        raise SettingsError(f"{text[:80]!r} can't be read as values ({error})", 'a, b, "c, d"') from error
    return [word.strip() for word in chain.from_iterable(rows)]


def written(values: Iterable[object]) -> str:
    """Values as text that `words` reads back."""
    stream = io.StringIO()
    quoting = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    csv.writer(stream, lineterminator="", quoting=csv.QUOTE_ALL).writerow(quoting)
    plain = ",".join(quoting)
    return plain if words(plain) == quoting else stream.getvalue()


def whole_numbers(text: str) -> list[int]:
    """Raises SettingsError naming what isn't one. Values between the ends of `3-10[4]` are cut off."""
    return [int(value) for word in words(text) if word for value in _expand(word, whole=True)]


def numbers(text: str) -> list[float]:
    """Raises SettingsError naming what isn't one."""
    return [float(value) for word in words(text) if word for value in _expand(word, whole=False)]


def _expand(word: str, whole: bool) -> list[Decimal]:
    if re.fullmatch(NUMBER, word):
        return [_checked(word, whole)]
    found = RANGE.fullmatch(word)
    if found is None:
        raise SettingsError(f"{word[:80]!r} is no number", WRITTEN)
    start, end = _checked(found[1], whole), _checked(found[2], whole)
    if found["count"]:
        return _spread(start, end, int(found["count"]), word)
    default = "1" if end >= start else "-1"
    step = _checked(found["step"] or default, whole)
    if step == 0 or (end - start) * step < 0:
        raise SettingsError(f"{word!r} never reaches {end}", "a step that leads from the first to the last")
    count = _bounded(int((end - start) / step) + 1, word)
    return [start + index * step for index in range(count)]


def _spread(start: Decimal, end: Decimal, count: int, word: str) -> list[Decimal]:
    if _bounded(count, word) < 1:
        raise SettingsError(f"{word!r} asks for no value", "at least one")
    gaps = max(1, count - 1)
    return [round(start + (end - start) * index / gaps, 6) for index in range(count)]


def _bounded(count: int, word: str) -> int:
    if count > MOST:
        raise SettingsError(f"{word!r} is {count:,} values", f"at most {MOST:,} cells")
    return count


def _checked(word: str, whole: bool) -> Decimal:
    value = Decimal(word)
    if whole and value != int(value):
        raise SettingsError(f"{word} is no whole number", WRITTEN)
    return value
