"""Reads TOML, and writes it (v1.0) as a person can read and edit it; the same value gives the same text."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aid.errors import FileError, SettingsError

LINE = 100  # characters; a longer array is written one item a line
STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\Z)|' r"'''(?:[^']|'(?!''))*+(?:'''|\Z)|"
    r'"(?:[^"\\\n]|\\[^\n])*+"?|' r"'[^'\n]*+'?|#[^\n]*+",
    re.DOTALL,
)  # fmt: skip
DEEP_KEY = re.compile(r"(?<![A-Za-z0-9_-])(?:[A-Za-z0-9_-]++[ \t]*+\.[ \t]*+){64}")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file; `what` says in an error what it should have been. Raises FileError for a file that can't
    be read as text, SettingsError for text that isn't TOML."""
    try:
        return parse_toml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} could not be read ({error})", what) from error
    except (ValueError, RecursionError) as error:  # also numbers of very many digits, and very deep arrays
        raise SettingsError(f"{path} is not TOML: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML document. Raises ValueError for text that isn't, or that has a key of 64 dots, `a.a.a...`: the
    parser's time and memory for one grow with the square of its length; RecursionError for deep nesting."""
    if has_endless_key(text):
        raise ValueError("it has a key of 64 dots or more")
    return tomllib.loads(text)


def has_endless_key(text: str) -> bool:
    """Strings and comments, which may hold as many dots as they like, are taken for one letter each."""
    return DEEP_KEY.search(STRING.sub("s", text)) is not None


def toml(value: Mapping[str, Any]) -> str:
    """A document: plain keys first, then one `[table]` a mapping and one `[[table]]` an item of a list
    of mappings. What lies deeper is written inline. Keys whose value is None are left out.

    Raises TypeError for a value that TOML has no word for.
    """
    present = {key: item for key, item in value.items() if item is not None}
    plain = {key: item for key, item in present.items() if not _is_table(item) and not _is_tables(item)}
    parts = [_pairs(plain)] if plain else []
    for key, item in present.items():
        if _is_table(item):
            parts.append(f"[{_key(key)}]\n{_pairs(item)}")
        elif _is_tables(item):
            parts.extend(f"[[{_key(key)}]]\n{_pairs(row)}" for row in item)
    return "\n".join(parts)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_table, value))


def _pairs(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(item, 0)}\n" for key, item in table.items() if item is not None)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _value(value: Any, depth: int) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return _array([_value(item, depth + 1) for item in value], depth)
    if isinstance(value, Mapping):
        pairs = [
            f"{_key(key)} = {_value(item, depth + 1)}" for key, item in value.items() if item is not None
        ]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _array(items: list[str], depth: int) -> str:
    line = f"[{', '.join(items)}]"
    if depth or len(line) <= LINE:
        return line
    return "[\n" + "".join(f"  {item},\n" for item in items) + "]"


def _string(text: str) -> str:
    """A basic string. JSON's escapes are TOML's, except that TOML also escapes DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
