"""Every style's curve on one page, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aid.train.balance.balance import Row, held_shares, trained_shares

CHART_FILE = "styles.png"
PANEL_INCHES = (1.5, 1.15)
WIDER = 1.5  # panels side by side, for each one above another
TOP = 1.1  # of a panel: the share of the start's loss
HELD, TRAINED, POINT, FAINT = "#1f5fa8", "#c98b3c", "#2f855a", "#d8d3cb"


def draw_styles(rows: Sequence[Row], path: Path, title: str) -> None:
    """One panel a style: what is left of the start's loss, from 1 (upper line) to 0 (lower), by step."""
    from matplotlib.figure import Figure

    styles = sorted(rows[-1].weights)
    columns = max(1, min(len(styles), round(math.sqrt(len(styles) * WIDER))))
    lines = -(-len(styles) // columns)
    size = max(4.5, columns * PANEL_INCHES[0]), lines * PANEL_INCHES[1] + 0.9
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.05, columns), ylim=(lines - 0.05, -0.15), title=title)
    axes.axis("off")
    for index, style in enumerate(styles):
        _draw_panel(axes, rows, style, *divmod(index, columns))
    for color, what in (
        (HELD, "held-out pictures"),
        (TRAINED, "trained pictures"),
        (POINT, "slightly overfit"),
    ):
        axes.plot([], [], color=color, marker="o" if color == POINT else "", label=what)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": "AID"})


def _draw_panel(axes: Any, rows: Sequence[Row], style: str, line: int, column: int) -> None:
    """In the square whose upper left corner is (column, line), less a margin."""
    end = max(1, rows[-1].step)

    def place(step: int, share: float) -> tuple[float, float]:
        return column + 0.9 * step / end, line + 0.98 - 0.74 * min(share, TOP) / TOP

    for share in (0.0, 1.0):
        axes.plot(*zip(place(0, share), place(end, share), strict=True), color=FAINT, linewidth=0.8)
    for shares, color in ((trained_shares, TRAINED), (held_shares, HELD)):
        found = [(row.step, shares(row, rows[0]).get(style)) for row in rows]
        drawn = [place(step, share) for step, share in found if share is not None]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), color=color, linewidth=1.2)
    reached = [row for row in rows if style in row.at_point]
    for row in reached:
        spot = place(row.step, held_shares(row, rows[0])[style])
        axes.plot(*spot, color=POINT, marker="o", markersize=2.5)
    left = held_shares(rows[-1], rows[0]).get(style)
    axes.text(column, line + 0.13, shortened(style), fontsize=7, parse_math=False)
    axes.text(column + 0.9, line + 0.13, "" if left is None else f"{left:.0%}", fontsize=7, ha="right")


def shortened(style: str) -> str:
    name = "".join(letter for letter in style if letter.isprintable()) or "(no style)"
    return name if len(name) <= 18 else f"{name[:17]}…"
