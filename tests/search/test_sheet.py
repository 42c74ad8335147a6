"""A sheet of what each block's weight does to one picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.generate.grid.lettering import Lettering
from aid.generate.plan import shot_of_prompt
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.drawing.pipeline import draw
from aid.sd.model.checkpoint import load_checkpoint
from aid.search.settings import SheetInputs, SheetSettings
from aid.search.sheet import GAP_PX, LABEL_PX, LETTER_PX, block_sheet

BENCH = Workbench(device="cpu", threads=1)
TOLD = {
    "merge": {"primary": "a", "weights": {"b": {"M00": 0.5}}},
    "model": "b",
    "blocks": ["IN00", "M00"],
    "weights": [0.0, 0.5, 1.0],
    "drawing": {"prompt": "a face", "steps": 2, "seed": 4},
}


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint: Path, lively_checkpoint: Path) -> SheetInputs:
    return SheetInputs(models={"a": lively_checkpoint, "b": tiny_checkpoint})


def test_each_cell_is_what_the_saved_merge_draws(inputs: SheetInputs, tmp_path: Path) -> None:
    settings = SheetSettings.model_validate(TOLD)
    out = block_sheet(settings, inputs, tmp_path / "out", BENCH)
    changes = json.loads((out / "change.json").read_text())
    assert list(changes) == ["IN00", "M00"]
    assert changes["IN00"]["0"] == changes["M00"]["0.5"] == 0.0, "the merge itself"
    assert all(changes[block]["1"] > 0 for block in changes)
    weights = {"b": {"M00": 0.5, "IN00": 1.0}}
    turned = MergeSettings.model_validate({"primary": "a", "weights": weights})
    saved = merge(turned, MergeInputs(models=inputs.models), tmp_path / "saved", BENCH)
    [expected] = draw(load_checkpoint(saved), [shot_of_prompt(settings.drawing, [], 64)])
    with Image.open(out / "sheet.png") as sheet:
        left, top = LABEL_PX + 2 * (64 + GAP_PX), Lettering(LETTER_PX).line_px + GAP_PX
        cell = np.asarray(sheet.crop((left, top, left + 64, top + 64)), int)
    assert np.abs(cell - np.asarray(expected, int)).max() <= 1, "but for the convolutions' rounding"


def test_a_block_that_is_none(inputs: SheetInputs, tmp_path: Path) -> None:
    settings = SheetSettings.model_validate({**TOLD, "blocks": ["IN13"]})
    with pytest.raises(SettingsError, match="IN13 is not a block of sd1"):
        block_sheet(settings, inputs, tmp_path / "out", BENCH)
