"""Put a finished release where the package ships it.

    python starter/ship.py runs/release/release src/aid/starter/release

The lineage of the pictures is told by the model's own metadata, which sums long lists up: the list of all
pictures (lineage.json, several MB) stays behind, as does the card in the form of a hub's page.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from aid.core.lineage import LINEAGE_FILE
from aid.core.release import HUB_PAGE, Release


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("shipped", type=Path)
    chosen = parser.parse_args()
    release = Release(chosen.release)
    shutil.rmtree(chosen.shipped, ignore_errors=True)
    shutil.copytree(release.folder, chosen.shipped, ignore=shutil.ignore_patterns(LINEAGE_FILE, HUB_PAGE))
    total = sum(file.stat().st_size for file in chosen.shipped.rglob("*") if file.is_file())
    print(f"{chosen.shipped}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
