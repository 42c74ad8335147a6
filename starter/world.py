"""Build the starter's world: folders of portraits with sidecar tags, one folder a style.

    npm install --prefix starter
    python starter/world.py OUT --per-style 1500 --seed 1

Every picture is `OUT/STYLE/STYLE-00000.webp` (lossless) with `.txt` tags beside it and one
`credit.toml` a folder. The same arguments give the same bytes.

`--low-quality N` adds N spoilt pictures a style, tagged `low quality`: a model that has never seen a bad
picture has no words for one, and a negative prompt or embedding nothing to point away from.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

HERE = Path(__file__).parent
BASE_STYLES = (
    "lorelei", "notionists", "pixel-art", "adventurer", "big-ears",
    "dylan", "micah", "open-peeps", "personas", "toon-head",
)  # fmt: skip
NEW_STYLES = ("miniavs", "croodles", "big-smile")  # what recipes/starter.toml teaches
CREDITS = {
    "lorelei": ("CC0-1.0", "Lisa Wischofsky"),
    "notionists": ("CC0-1.0", "Zoish"),
    "open-peeps": ("CC0-1.0", "Pablo Stanley"),
    "pixel-art": ("CC0-1.0", "DiceBear"),
    "adventurer": ("CC-BY-4.0", "Lisa Wischofsky"),
    "big-ears": ("CC-BY-4.0", "The Visual Team"),
    "big-smile": ("CC-BY-4.0", "Ashley Seo"),
    "croodles": ("CC-BY-4.0", "Vijay Verma"),
    "dylan": ("CC-BY-4.0", "Natalia Spivak"),
    "micah": ("CC-BY-4.0", "Micah Lanier"),
    "miniavs": ("CC-BY-4.0", "Webpixels"),
    "personas": ("CC-BY-4.0", "Draftbit"),
    "toon-head": ("CC-BY-4.0", "Johan Melin"),
}


def rasterise(svg: str, edge_px: int) -> Image.Image:
    """One SVG on white, `edge_px` square, drawn at twice the size and averaged down."""
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=2 * edge_px, height=2 * edge_px)
    picture = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB").resize((edge_px, edge_px), Image.Resampling.BOX)


def blur(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Detail thrown away: shrunk to a fifth or a third, and enlarged again."""
    small = picture.resize((round(picture.width * chance.uniform(0.2, 0.35)),) * 2, Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


def compress(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Blocks and ringing: JPEG of the lowest qualities."""
    stream = io.BytesIO()
    picture.save(stream, "jpeg", quality=chance.randint(2, 8))
    return Image.open(stream).convert("RGB")


def grain(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Noise of 25 to 60 levels."""
    noise = np.random.default_rng(chance.getrandbits(32)).normal(
        0, chance.uniform(25, 60), (*picture.size, 3)
    )
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


FAULTS = (blur, compress, grain)
FAULT_PX = 64  # where faults are made, so that no later reduction to this size averages them away


def spoil(picture: Image.Image, name: str) -> Image.Image:
    """The picture with one or two faults, which `name` alone decides."""
    chance = random.Random(name)
    small = picture.resize((FAULT_PX, FAULT_PX), Image.Resampling.BOX)
    for fault in chance.sample(FAULTS, chance.randint(1, 2)):
        small = fault(small, chance)
    return small.resize(picture.size, Image.Resampling.NEAREST)


def build_style(
    style: str, out: Path, count: int, seed: int, edge_px: int, all_cells: bool, low_quality: int
) -> int:
    folder = out / style
    folder.mkdir(parents=True, exist_ok=True)
    command = ["node", str(HERE / "world.mjs"), style, str(count + low_quality), str(seed)]
    lines = subprocess.run(
        command + ["--all-cells"] * all_cells, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for line in lines:
        drawing = json.loads(line)
        stem = folder / f"{style}-{drawing['index']:05d}"
        picture, tags = rasterise(drawing["svg"], edge_px), drawing["tags"]
        if drawing["index"] >= count:
            picture, tags = spoil(picture, f"{seed}/{stem.name}"), [*tags, "low quality"]
        picture.save(stem.with_suffix(".webp"), lossless=True, quality=80)
        stem.with_suffix(".txt").write_text(", ".join(tags) + "\n")
    licence, artist = CREDITS[style]
    (folder / "credit.toml").write_text(f'licence = "{licence}"\ncredit = "{artist}, drawn with DiceBear"\n')
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-style", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--edge-px", type=int, default=128)
    parser.add_argument("--styles", nargs="*", default=BASE_STYLES)
    parser.add_argument("--low-quality", type=int, default=0, help="spoilt pictures a style, in addition")
    parser.add_argument("--all-cells", action="store_true", help="draw the withheld hair colours too")
    chosen = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        jobs = {
            style: pool.submit(
                build_style,
                style,
                chosen.out,
                chosen.per_style,
                chosen.seed,
                chosen.edge_px,
                chosen.all_cells,
                chosen.low_quality,
            )
            for style in chosen.styles
        }
        for style, job in jobs.items():
            print(f"{style}: {job.result()} pictures")


if __name__ == "__main__":
    main()
