"""A merge that isn't saved: how long changing one block's weight takes in a loaded model of real size.

    python benchmarks/blending.py [--threads N] [--precision fp16] [--folder FOLDER] [--json FILE]

Three SD1.5 files of random values are made, blended and removed again. Each block's weight is then changed
alone, three times; the goal is 150 ms.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from merging import CASES, prepare
from reporting import Row, report

from aid.core.blocks import BLOCKS
from aid.core.workbench import Workbench
from aid.merge.blend import Blend
from aid.merge.settings import MergeInputs, MergeSettings

GOAL_MS, TIMES = 150.0, 3
CASE = CASES["mbw of three"]


def settings(block: str, weight: float) -> MergeSettings:
    """The case's own, but for one block of `detail`."""
    told: dict[str, Any] = tomllib.loads(CASE.settings)
    expanded = dict(zip(BLOCKS["sd1"], numbers(told["weights"]["detail"]), strict=True))
    return MergeSettings.model_validate(
        {**told, "weights": {**told["weights"], "detail": {**expanded, block: weight}}}
    )


def numbers(row: dict[str, Any]) -> list[float]:
    return [row["BASE"], *row["IN"], row["M00"], *row["OUT"]]


def measure(folder: Path, threads: int, precision: str) -> list[Row]:
    inputs = MergeInputs(models=CASE.models(folder))
    rows = []
    with Blend(settings("M00", 0.5), inputs, Workbench("cpu", threads=threads), precision) as blend:
        for block in BLOCKS["sd1"]:
            taken = []
            for number in range(TIMES + 1):  # the first reads what the system has yet to bring
                began = time.perf_counter()
                changed = blend.become(settings(block, 0.11 + number / 100))
                taken.append(1e3 * (time.perf_counter() - began))
            blend.become(settings("M00", 0.5))
            rows.append(Row(f"{block}, {changed} tensors", statistics.median(taken[1:]), "ms", GOAL_MS))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        prepare(CASE, place)
        rows = measure(place, chosen.threads, chosen.precision)
    finally:
        shutil.rmtree(place)
    rows.sort(key=lambda row: -row.ours)
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
