"""A grid's page: one HTML file that needs no network, beside the pictures that it shows."""

from __future__ import annotations

import html
from importlib import resources
from pathlib import Path

from PIL import Image

from aid.core.files import replacing
from aid.core.picture import open_small
from aid.core.script import script_data
from aid.generate.grid.layout import Grid
from aid.sd.picture.text import picture_text

PAGE_FILE = "index.html"
SMALL_FOLDER = "small"
SMALL_EDGE_PX = 384  # a cell's longest side on a screen of twice the usual density
SMALL_QUALITY = 82


def write_small(plan: Grid, folder: Path) -> list[str]:
    """A smaller picture for each that is large, so that a thousand cells are quick; what the page shows of
    each picture, its own file where that is small."""
    shown = []
    for name in plan.names:
        file = Path(SMALL_FOLDER) / f"{Path(name).stem}.webp"
        if not (folder / file).is_file():
            with Image.open(folder / name) as picture:
                large = max(picture.size) > SMALL_EDGE_PX
            if large:
                with replacing(folder / file) as stream:
                    open_small(folder / name, SMALL_EDGE_PX).save(
                        stream, "webp", quality=SMALL_QUALITY, method=2
                    )
        shown.append(file.as_posix() if (folder / file).is_file() else name)
    return shown


def page(plan: Grid, folder: Path, small: list[str]) -> str:
    """The whole page. All that people wrote is data, read by the page's script and put in as text."""
    pictures = []
    for name, shown in zip(plan.names, small, strict=True):
        told = picture_text(folder / name)
        width, height = told.size  # "Only masked" leaves a picture its own size
        pictures.append(
            {"file": name, "small": shown, "width": width, "height": height, "text": told.parameters}
        )
    data = {
        "axes": [{"title": axis.title, "labels": list(axis.labels)} for axis in plan.axes],
        "sheets": plan.sheets(),
        "pictures": pictures,
    }
    source = (resources.files("aid.generate.grid") / "page.html").read_text("utf-8")
    title = " × ".join(axis.title for axis in plan.axes if axis.kind)
    return source.replace("{{title}}", html.escape(title)).replace("{{data}}", script_data(data))
