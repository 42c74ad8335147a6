"""Draw openly licensed emoji sets, so that the starter's VAE sees drawings of many hands.

    npm install --prefix starter
    python starter/drawings.py OUT

Every drawing is `OUT/SET/NAME.webp` (lossless), on white or on a colour, whole or closer; its name alone
decides. Of the names that end in a `skin-tone`, a fifth is drawn. Run it again to continue.
"""

from __future__ import annotations

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from world import HERE, rasterise

from aid.core.files import replacing

SETS = (
    "twemoji", "noto", "noto-v1", "fxemoji", "emojione", "streamline-emojis", "fluent-emoji-flat",
)  # fmt: skip
ICONS = HERE / "node_modules/@iconify-json"


def framed(icon: dict[str, float | str], of_set: dict[str, float], name: str) -> str:
    """The icon as an SVG of its own."""
    chance = random.Random(name)
    width, height = (float(icon.get(side, of_set.get(side, 16))) for side in ("width", "height"))
    edge = max(width, height) * chance.uniform(0.55, 1.15)
    left = (width - edge) * chance.uniform(0.3, 0.7)
    top = (height - edge) * chance.uniform(0.2, 0.8)
    colour = chance.choice(("#ffffff", f"#{chance.randrange(1 << 24):06x}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {edge} {edge}">'
        f'<rect x="{left}" y="{top}" width="{edge}" height="{edge}" fill="{colour}"/>{icon["body"]}</svg>'
    )


def draw_set(name: str, out: Path, edge_px: int) -> int:
    found = json.loads((ICONS / name / "icons.json").read_text())
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for icon, content in sorted(found["icons"].items()):
        if "skin-tone" in icon and random.Random(icon).getrandbits(16) % 5:
            continue
        file = folder / f"{icon}.webp"
        drawn += file.exists()
        if file.exists():
            continue
        try:
            picture = rasterise(framed(content, found, f"{name}/{icon}"), edge_px)
        except ValueError as error:
            print(f"{name}/{icon} can't be drawn: {error}")
            continue
        with replacing(file) as stream:
            picture.save(stream, "webp", lossless=True, quality=80)
        drawn += 1
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--edge-px", type=int, default=128)
    chosen = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        counts = pool.map(partial(draw_set, out=chosen.out, edge_px=chosen.edge_px), SETS)
        for name, count in zip(SETS, counts, strict=True):
            print(f"{name}: {count} drawings", flush=True)


if __name__ == "__main__":
    main()
