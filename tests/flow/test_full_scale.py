"""The recipes at full scale run as they stand, but that models, pictures and counts are small."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from test_flow import RUN

from aid.core.release import Release
from aid.sd.model.architecture import TINY, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
INPUTS = ("base", "detail", "composition", "vae")
SMALL = {
    "bucket_max_px": 128, "bucket_min_px": 32, "resolution_px": 64, "width": 64, "height": 64,
    "epochs": 1, "batch_size": 2, "warmup": 1, "save_every": 2, "shots_per_style": 1, "pictures_seen": 32,
    "steps": 2, "vectors": 2, "every": 3,
}  # fmt: skip


def small(recipe: str) -> str:
    """The recipe with small numbers in place of its own."""
    for name, number in SMALL.items():
        recipe = re.sub(rf"(?m)^((?:\w+\.)*{name} = )[\d.]+", rf"\g<1>{number}", recipe)
    recipe = recipe.replace("\nwidth = 64\npictures_seen", "\nwidth = 4\npictures_seen")  # the judge's
    return re.sub(r"(?m)^sizes = .*$", "sizes = [[64, 64]]", recipe)


@pytest.mark.parametrize(("name", "architecture"), [("aid-v1", TINY), ("aid-xl", TINY_SDXL)])
def test_the_recipe_goes_from_pictures_to_a_release(
    name: str, architecture: Architecture, pictures: Path, tmp_path: Path
) -> None:
    recipe, model = tmp_path / f"{name}.toml", tmp_path / "model.safetensors"
    recipe.write_text(small((RECIPES / recipe.name).read_text(encoding="utf-8")), encoding="utf-8")
    save_checkpoint(create_checkpoint(architecture, seed=1), model, {})
    given = [f"--input={one}={model}" for one in INPUTS] + [f"--input=pictures={pictures}"]
    words = [*RUN, "make", str(recipe), *given, "--out", str(tmp_path / "runs"), "--device", "cpu", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {row["result"] for row in json.loads(done.stdout)} == {"made"}
    release = Release(tmp_path / "runs" / "release")
    assert release.embeddings and release.report and "gives IN06" in release.card()
    assert {style.name for style in release.catalogue.styles} == {"alpha", "beta"}
