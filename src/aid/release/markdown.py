"""The few Markdown forms that a card is made of."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns that are empty in every row are left out. Empty if there are no rows."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    kept = [index for index in range(len(headings)) if any(row[index] for row in cells)]
    lines = [[plain(headings[index]) for index in kept], ["---"] * len(kept)]
    lines += [[row[index] for index in kept] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that stays in its cell and can't become HTML."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return escaped.replace("&amp;", "&").replace("&gt;", ">").replace("|", "\\|")


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"


def folded(title: str, body: str) -> str:
    """A part that is opened by a click."""
    return f"<details>\n<summary>{plain(title)}</summary>\n\n{body}\n\n</details>" if body else ""


def paragraphs(*parts: str) -> str:
    """Parts with an empty line between them; empty parts are left out."""
    return "\n\n".join(filter(None, parts))


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading and what stands under it; nothing if nothing does."""
    body = paragraphs(*parts)
    return f"{'#' * level} {title}\n\n{body}" if body else ""
