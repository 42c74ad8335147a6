"""Wall time and peak memory of every stage of a recipe, each in a process of its own.

    python benchmarks/stages.py [RECIPE] [--json FILE]

Without RECIPE it is the starter's; artifacts go to a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import traceback
from pathlib import Path

from reporting import Row, report

from aid.cli.console import Bars
from aid.core.workbench import Workbench
from aid.make import Recipe, make, read_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "starter.toml"


def measure(recipe: Recipe) -> list[Row]:
    rows = []
    for step in recipe.steps:
        began = time.monotonic()
        _, status, used = os.wait4(_start(Recipe(step.name, "", (step,))), 0)
        if status:
            raise SystemExit(f"{step.name} failed")
        rows.append(Row(f"{step.name}, time", time.monotonic() - began, "s"))
        rows.append(Row(f"{step.name}, peak memory", used.ru_maxrss / 1024, "MiB"))
    return rows


def _start(recipe: Recipe) -> int:
    """Make one step in a child that has imported nothing heavy yet."""
    pid = os.fork()
    if pid == 0:
        try:
            list(make(recipe, Workbench("auto", 0, Bars())))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, nargs="?", default=RECIPE)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(measure(read_recipe(chosen.recipe, Path(folder))), chosen.json)


if __name__ == "__main__":
    main()
