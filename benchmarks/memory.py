"""The peak that `aid make --dry-run` predicts for a training beside what a real one takes.

    python benchmarks/memory.py [--widths 128,256,512,512] [--edge 256] [--only NAME] [--json FILE]
    python benchmarks/memory.py --real sdxl --only LoRA

Each training runs two steps in a process of its own on the CPU, and its largest resident set counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import Row, report
from training import make_dataset

import aid
from aid.estimate.explain import RUNTIME_BYTES
from aid.estimate.scene import Scene
from aid.estimate.work import WORK
from aid.sd.model.architecture import REAL, Architecture
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

RUN = """
import json, resource, sys
from pathlib import Path
import aid
from aid.core.workbench import Workbench
verb, words, out, paths = sys.argv[1], *map(json.loads, sys.argv[2:])
settings = getattr(aid, f"{verb.title()}Settings").model_validate(words)
inputs = getattr(aid, f"{verb.title()}Inputs").model_validate(paths)
getattr(aid, verb)(settings, inputs, Path(out), Workbench("cpu", threads=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
PLAIN: dict[str, Any] = {"steps": 2, "batch_size": 2, "gradient_norm": 0.0}
LORA: dict[str, Any] = {"verb": "lora", "rank": 32, "text_rate": 1e-4}
EMBEDDING: dict[str, Any] = {"verb": "embedding", "vectors": 4}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"checkpointing": False},
    "checkpointing": {"checkpointing": True},
    "checkpointing, parts of 1": {"checkpointing": True, "part_size": 1},
    "no averages, fused backward": {"checkpointing": True, "ema": 0.0, "fused_backward": True},
    "text alone": {"checkpointing": True, "unet_rate": 0.0},
    "12gb": {"memory_profile": "12gb"},
    "24gb": {"memory_profile": "24gb"},
    "LoRA": {**LORA, "checkpointing": False},
    "LoRA, checkpointing": {**LORA, "checkpointing": True},
    "LoRA in bf16": {**LORA, "checkpointing": True, "precision": "bf16"},
    "LoRA on convolutions": {**LORA, "checkpointing": True, "conv_rank": 32, "rank": 128},
    "embedding": {**EMBEDDING, "checkpointing": False},
    "embedding in bf16": {**EMBEDDING, "checkpointing": True, "precision": "bf16"},
    "embedding, checkpointing": {**EMBEDDING, "checkpointing": True},
}
"""Settings, and the `verb` if it isn't finetune."""


def measure(folder: Path, name: str, given: dict[str, Any]) -> Row:
    words = {"verb": "finetune", **PLAIN, **given}
    verb = words.pop("verb")
    pictures = "pictures" if verb == "embedding" else "dataset"
    paths = {"checkpoint": str(folder / "model.safetensors"), pictures: str(folder)}
    told = subprocess.run(
        [sys.executable, "-c", RUN, verb, *map(json.dumps, (words, str(folder / "out" / name), paths))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    settings, inputs = (getattr(aid, f"{verb.title()}{kind}") for kind in ("Settings", "Inputs"))
    asked = settings.model_validate(words), inputs.model_validate(paths)
    work = WORK[f"train {verb}"](*asked, Scene(gpu=False))
    return Row(f"peak, {name}", float(told.stdout) / 1e9, "GB", (RUNTIME_BYTES + work.memory) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="128,256,512,512")
    parser.add_argument("--text-width", type=int, default=384)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--real", choices=REAL, help="a family's own size, in place of SD1's at those widths")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    architecture = REAL.get(chosen.real) or Architecture(
        unet_widths=tuple(map(int, chosen.widths.split(","))), unet_heads=8, text_width=chosen.text_width,
        vae_widths=(8, 16, 16, 16), vae_groups=4, native_edge_px=chosen.edge,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(create_checkpoint(architecture, 1), folder / "model.safetensors", {})
        make_dataset(folder, chosen.edge, 4)
        (folder / "out").mkdir()
        rows = []
        for case, given in CASES.items():
            if chosen.only in case:
                rows.append(measure(folder, case, given))
                report(rows[-1:], None)
        if chosen.json:
            report(rows, chosen.json)


if __name__ == "__main__":
    main()
