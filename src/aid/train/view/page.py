"""A run's report: one HTML file that needs no network. The loss, every style's curve, weights over time,
and the sample sheets."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from aid.core.files import write_text
from aid.core.script import script_data
from aid.train.balance.balance import Row, beyond, gaps, held_shares, trained_shares
from aid.train.balance.copies import read_copies
from aid.train.log import SAMPLE_FOLDER, LogRow, running_mean
from aid.train.tables import BalanceSettings

REPORT_FILE = "report.html"
MOST_POINTS, MOST_SHEETS = 800, 12
SHEET_QUALITY = 88
NAMELESS = "(no style)"


def write_report(
    out: Path,
    title: str,
    story: str,
    log: Sequence[LogRow],
    styles: Mapping[str, Any],
    tiles: Sequence[Any],
    prompts: Sequence[str] = (),
) -> None:
    """`styles` is what `style_data` gives; empty if nothing was measured."""
    measured = styles or {"steps": [], "styles": [], "saved": 0}
    data = {
        "title": title,
        "story": story,
        "tiles": [*tiles, *style_tiles(measured)],
        "curve": curve_data(log),
        "sheets": sheet_data(out / SAMPLE_FOLDER),
        "prompts": list(prompts),
        **measured,
    }
    source = (resources.files("aid.train.view") / "page.html").read_text("utf-8")
    head, tail = source.replace("{{title}}", html.escape(title)).split("{{data}}")
    write_text(out / REPORT_FILE, head + script_data(data) + tail)


def curve_data(log: Sequence[LogRow]) -> list[tuple[int, float, float]]:
    """Step, loss and running mean, at most `MOST_POINTS` of them."""
    taken = [row for row in log if "loss" in row]
    means = running_mean([row["loss"] for row in taken])
    every = max(1, -(-len(taken) // MOST_POINTS))
    chosen = sorted({*range(0, len(taken), every), *range(len(taken))[-1:]})
    return [(taken[i]["step"], taken[i]["loss"], round(means[i], 6)) for i in chosen]


def style_data(
    rows: Sequence[Row], counts: Mapping[str, tuple[int, int]], saved: int, settings: BalanceSettings
) -> dict[str, Any]:
    """Every style's curves; `counts` are pictures trained on and held out, `saved` the weights' step."""
    held, trained = ([shares(row, rows[0]) for row in rows] for shares in (held_shares, trained_shares))
    opened, past = [gaps(row, rows[0]) for row in rows], beyond(rows, settings)
    return {
        "steps": [row.step for row in rows],
        "saved": saved,
        "styles": [
            {
                "name": style or NAMELESS,
                "pictures": counts[style][0],
                "heldOut": counts[style][1],
                "seen": rows[-1].seen[style],
                "held": _course(held, style),
                "trained": _course(trained, style),
                "gap": _course(opened, style),
                "weight": [round(row.weights[style], 4) for row in rows],
                "points": [index for index, row in enumerate(rows) if style in row.at_point],
                "state": _state(style, rows[-1], past),
            }
            for style in rows[-1].weights
        ],
    }


def _course(series: Sequence[Mapping[str, float]], style: str) -> list[float]:
    return [round(one[style], 5) for one in series if style in one]


def _state(style: str, row: Row, past: Sequence[str]) -> str:
    if style not in row.held:
        return "none"
    if style in past:
        return "beyond"
    return "point" if style in row.at_point else "learning"


def style_tiles(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Value and meaning of what is to be seen first."""
    known = [style for style in measured["styles"] if style["held"]]
    if not known:
        return []
    last = max(known, key=lambda style: style["held"][-1])
    left = sum(style["held"][-1] for style in known) / len(known)
    reached = sum(style["state"] in ("point", "beyond") for style in known)
    return [
        (f"{left:.0%}", "of the held-out loss is left, on average"),
        (f"{last['held'][-1]:.0%}", f"of {last['name']}'s, furthest behind"),
        (f"{reached} of {len(known)}", "styles slightly overfit"),
        (f"{measured['saved']:,}", "step of the saved weights"),
    ]


def sheet_data(folder: Path) -> list[dict[str, Any]]:
    """The sheets, oldest first, at most `MOST_SHEETS` of them and always the newest; as data URLs."""
    paths = sorted(folder.glob("step-*.png"))
    count = min(MOST_SHEETS, len(paths))
    chosen = [paths[round(index * (len(paths) - 1) / max(1, count - 1))] for index in range(count)]
    return [_sheet(folder, path) for path in chosen]


def _sheet(folder: Path, path: Path) -> dict[str, Any]:
    step = int(path.stem.removeprefix("step-"))
    copies = [row["copy_of"] for row in read_copies(folder, step)]
    return {"step": step, "picture": _data_url(path), "copies": copies}


def _data_url(path: Path) -> str:
    stream = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(stream, "webp", quality=SHEET_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
