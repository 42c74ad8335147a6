"""What a command costs before it does anything: `aid --help` beside bare Python and bare click; a first
picture from a cold start beside the imports that it can't do without.

    python benchmarks/startup.py [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reporting import Row, report

AID = [sys.executable, "-c", "from aid.cli import main; main()"]
IMPORTS = "import torch, diffusers, transformers; from diffusers import UNet2DConditionModel, AutoencoderKL"


def seconds(command: list[str], runs: int) -> float:
    """The median wall time of a whole process."""
    times = []
    for _ in range(runs):
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.monotonic() - began)
    return statistics.median(times)


def measure() -> list[Row]:
    python = seconds([sys.executable, "-c", "pass"], 9)
    click = seconds([sys.executable, "-c", "import click"], 9)
    help_time = seconds([*AID, "--help"], 9)
    imports = seconds([sys.executable, "-c", IMPORTS], 3)
    with tempfile.TemporaryDirectory() as folder:
        picture = seconds([*AID, "generate", "by lorelei, blue hair, smile", "--out", folder], 3)
    return [
        Row("aid --help", help_time, "s", limit=python, peers={"import click": click}),
        Row("aid generate, first picture", picture, "s", limit=imports),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    report(measure(), parser.parse_args().json)


if __name__ == "__main__":
    main()
