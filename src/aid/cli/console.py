"""What the command line shows in a terminal: live bars, and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from aid.core.workbench import Ticker


class Rate(ProgressColumn):
    """Units a second, over the last moments."""

    def render(self, task: Task) -> Text:
        speed = task.speed or 0.0
        unit = task.fields.get("unit") or "it"
        return Text(f"{speed:.1f} {unit}/s" if speed >= 1 or speed == 0 else f"{1 / speed:.1f} s/{unit}")


class Bars:
    """Progress on standard error, so that standard output holds only results."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Ticker]:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            Rate(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(label, total=total, completed=done, unit=unit, note="")

            def tick(count: int = 1, note: str = "") -> None:
                fields: dict[str, Any] = {"note": note} if note else {}
                bars.update(bar, advance=count, **fields)

            yield tick


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    """A table for a person, or its rows as JSON objects."""
    if as_json:
        keys = [column.lower().replace(" ", "_") for column in columns]
        objects = [dict(zip(keys, row, strict=True)) for row in rows]
        print(json.dumps(objects, ensure_ascii=False, indent=1))
        return
    table = Table(*columns, title=title or None, title_justify="left", box=None, header_style="bold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
