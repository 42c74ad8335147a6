"""Build the starter's world: folders of portraits with sidecar tags, one folder a style.

    npm install --prefix starter
    python starter/world.py OUT --per-style 1500 --seed 1

Every picture is `OUT/STYLE/STYLE-00000.webp` (lossless) with `.txt` tags beside it and one
`credit.toml` a folder. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

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


def build_style(style: str, out: Path, count: int, seed: int, edge_px: int, all_cells: bool) -> int:
    folder = out / style
    folder.mkdir(parents=True, exist_ok=True)
    command = ["node", str(HERE / "world.mjs"), style, str(count), str(seed)]
    lines = subprocess.run(
        command + ["--all-cells"] * all_cells, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for line in lines:
        drawing = json.loads(line)
        stem = folder / f"{style}-{drawing['index']:05d}"
        rasterise(drawing["svg"], edge_px).save(stem.with_suffix(".webp"), lossless=True, quality=80)
        stem.with_suffix(".txt").write_text(", ".join(drawing["tags"]) + "\n")
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
            )
            for style in chosen.styles
        }
        for style, job in jobs.items():
            print(f"{style}: {job.result()} pictures")


if __name__ == "__main__":
    main()
