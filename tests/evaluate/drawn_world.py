"""A drawn world in three styles: its pictures, as a Dataset and as galleries."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from aid.core.dataset import Record
from aid.core.files import write_lines
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.evaluate.settings import JudgeSettings

EDGE_PX = 64
STYLES = ("boxes", "discs", "hatched")
GROUNDS = {"boxes": "white", "discs": "lightyellow", "hatched": "gainsboro"}
HAIR = ("black hair", "blue hair", "red hair")
BENCH = Workbench(device="cpu", threads=1)
QUICK = JudgeSettings(epochs=16, batch_size=24, width=8, save_every=3)

Change = Callable[[Image.Image], Image.Image]


def tags_of(style: str, seed: int) -> tuple[str, ...]:
    """18 combinations; `hatched` faces never wear glasses."""
    tags = [HAIR[seed % 3], "smile" if seed // 3 % 2 else "frown"]
    if seed // 6 % 3 == 0 and style != "hatched":
        tags.append("glasses")
    return tuple(tags)


def draw(style: str, tags: Sequence[str], seed: int) -> Image.Image:
    chance = random.Random(f"{style} {seed}")
    picture = Image.new("RGB", (EDGE_PX, EDGE_PX), GROUNDS[style])
    pen = ImageDraw.Draw(picture)
    x, y, size = chance.randrange(6, 14), chance.randrange(6, 14), chance.randrange(38, 46)
    skin = tuple(channel + chance.randrange(-15, 16) for channel in (225, 190, 160))
    shape = pen.rectangle if style == "boxes" else pen.ellipse
    shape((x, y, x + size, y + size), fill=skin, outline="black", width=chance.randrange(1, 4))
    hair = tags[0].split()[0]
    pen.rectangle((x, y, x + size, y + size // 4), fill=hair)
    if style == "hatched":
        step = chance.randrange(4, 7)
        for offset in range(-EDGE_PX, EDGE_PX, step):
            pen.line((offset, 0, offset + EDGE_PX, EDGE_PX), fill=(90, 90, 90))
    if "glasses" in tags:
        for left in (x + size // 5, x + size // 2 + 2):
            pen.ellipse((left, y + size // 3, left + 12, y + size // 3 + 12), outline="purple", width=3)
    mouth = (x + size // 3, y + size * 3 // 5, x + size * 2 // 3, y + size * 4 // 5)
    start, end = (0, 180) if "smile" in tags else (180, 360)
    pen.arc(mouth, start, end, fill="black", width=2)
    return picture


def identity(picture: Image.Image) -> Image.Image:
    return picture


def build_dataset(folder: Path, train: int, held: int) -> Path:
    """`train` + `held` pictures a style, as `aid prepare` lays them out."""
    (folder / "pictures").mkdir(parents=True)
    records: list[Record] = []
    for style in STYLES:
        for index in range(train + held):
            tags = tags_of(style, index)
            file = f"pictures/{style}-{index}.png"
            draw(style, tags, index).save(folder / file)
            records.append(
                Record(
                    sha256=f"{len(records):064d}",
                    source=f"world/{style}-{index}.png",
                    file=file,
                    style=style,
                    tags=tags,
                    split="train" if index < train else "held",
                    width=EDGE_PX,
                    height=EDGE_PX,
                    row=len(records),
                )
            )
    write_lines(folder / "records.jsonl", [record.model_dump(mode="json") for record in records])
    (folder / "report.json").write_text("{}")
    return folder


def build_gallery(
    folder: Path,
    change: Change = identity,
    seeds: Sequence[int] = range(1008, 1026),
    drawn_as: Callable[[str], str] = str,
    negative_prompt: str = "",
) -> Path:
    """Pictures that no dataset holds: one a style and seed, each passed through `change`.

    `drawn_as` maps the style asked for to the style drawn.
    """
    folder.mkdir()
    lines: list[str] = []
    for style in STYLES:
        for seed in seeds:
            tags = tags_of(style, seed)
            file = f"{len(lines):04d}.png"
            change(draw(drawn_as(style), tags, seed)).save(folder / file)
            shot = Shot(
                prompt=", ".join((f"by {style}", *tags)),
                negative_prompt=negative_prompt,
                seed=seed,
                width=EDGE_PX,
                height=EDGE_PX,
                style=style,
                tags=tags,
            )
            lines.append(json.dumps({"file": file, "shot": shot.model_dump(mode="json")}))
    (folder / "shots.jsonl").write_text("\n".join(lines) + "\n")
    return folder
