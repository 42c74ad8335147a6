"""Put a finished release where the package ships it.

    python starter/ship.py runs/release/release src/aid/starter/release

Its lineage.json is the one that the model's own metadata tells, in which a list of very many pictures is
summed up by one hash: the whole list is several MB. The card in the form of a hub's page stays behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from aid.core.files import sha256_file, write_text
from aid.core.lineage import LINEAGE_FILE, Lineage, embedded_lineage
from aid.core.release import HUB_PAGE, Release
from aid.errors import FileError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("shipped", type=Path)
    chosen = parser.parse_args()
    release = Release(chosen.release)
    shutil.rmtree(chosen.shipped, ignore_errors=True)
    shutil.copytree(release.folder, chosen.shipped, ignore=shutil.ignore_patterns(LINEAGE_FILE, HUB_PAGE))
    write_text(chosen.shipped / LINEAGE_FILE, lineage(Release(chosen.shipped)).model_dump_json())
    total = sum(file.stat().st_size for file in chosen.shipped.rglob("*") if file.is_file())
    print(f"{chosen.shipped}: {total / 1e6:.1f} MB")


def lineage(shipped: Release) -> Lineage:
    """What the model tells of itself, with the hashes of all files shipped. Raises FileError for one that
    tells nothing."""
    told = embedded_lineage(shipped.model)
    if told is None:
        raise FileError(f"{shipped.model} carries no lineage", "a model made by `aid release`")
    names = sorted(
        path.relative_to(shipped.folder).as_posix() for path in shipped.folder.rglob("*") if path.is_file()
    )
    return told.model_copy(update={"files": {name: sha256_file(shipped.folder / name) for name in names}})


if __name__ == "__main__":
    main()
