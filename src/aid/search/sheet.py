"""The verb `merge sheet`: what each block's weight does to one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aid.core.artifact import verb
from aid.core.blocks import BLOCKS
from aid.core.files import replacing, write_json
from aid.core.workbench import Workbench
from aid.generate.grid.lettering import Lettering
from aid.generate.material import named_embeddings
from aid.generate.plan import shot_of_prompt
from aid.merge.blend import Blend
from aid.merge.settings import MergeInputs
from aid.sd.drawing.pipeline import draw
from aid.sd.model.blocks import extra_blocks
from aid.search.knob import Space, space_of
from aid.search.settings import Knob, SheetInputs, SheetSettings

LETTER_PX, GAP_PX, LABEL_PX = 14, 4, 64


@verb("merge sheet")
def block_sheet(settings: SheetSettings, inputs: SheetInputs, out: Path, bench: Workbench) -> None:
    """Draw one shot with each block's weight turned alone: `sheet.png`, a row a block and a column a weight,
    and `change.json`: for each block and weight, how far the picture is from the unturned one, as the root
    mean square of 0 to 255.

    Raises SettingsError for a model or block that isn't there.
    """
    merging = MergeInputs(models=inputs.models, vae=inputs.vae)
    with Blend(settings.merge, merging, bench, settings.drawing.precision) as blend:
        family = blend.model.architecture.family
        names = settings.blocks or (*BLOCKS[family], *extra_blocks(family, settings.merge.convention))
        space = space_of([Knob(model=settings.model, blocks=names)], settings.merge, family)
        blocks = [one.blocks[0] for one in space.variables]
        embeddings, _ = named_embeddings(inputs.embeddings, blend.model)
        edge_px = blend.model.architecture.native_edge_px
        shot = shot_of_prompt(settings.drawing, list(embeddings), edge_px)
        [plain] = draw(blend.model, [shot], embeddings)
        rows: dict[str, dict[float, Image.Image]] = {}
        with bench.progress.task("sheet", len(blocks) * len(settings.weights), "picture") as tick:
            for block in blocks:
                for weight in settings.weights:
                    blend.become(space.settings(_turned(space, block, weight)))
                    rows.setdefault(block, {})[weight] = draw(blend.model, [shot], embeddings)[0]
                    tick()
    changes = {
        block: {f"{weight:g}": change(picture, plain) for weight, picture in row.items()}
        for block, row in rows.items()
    }
    write_json(out / "change.json", changes)
    with replacing(out / "sheet.png") as stream:
        page(rows, settings.weights).save(stream, "png")


def _turned(space: Space, block: str, weight: float) -> dict[str, float]:
    """The merge's own weights, but for one block."""
    return {
        one.name: weight if one.blocks == (block,) else space.merge_weight(one) for one in space.variables
    }


def change(one: Image.Image, other: Image.Image) -> float:
    """The root mean square of the difference, of 0 to 255."""
    apart = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return round(float(np.sqrt(np.mean(apart * apart))), 2)


def page(rows: Mapping[str, Mapping[float, Image.Image]], weights: Sequence[float]) -> Image.Image:
    """Blocks down and weights across, each named."""
    lettering = Lettering(LETTER_PX)
    first = next(iter(next(iter(rows.values())).values()))
    wide, high = first.width + GAP_PX, first.height + GAP_PX
    top = lettering.line_px + GAP_PX
    sheet = Image.new("RGB", (LABEL_PX + wide * len(weights), top + high * len(rows)), "white")
    for column, weight in enumerate(weights):
        left = LABEL_PX + column * wide
        lettering.write(sheet, [f"{weight:g}"], (left, 0, left + first.width, top))
    for row, (block, pictures) in enumerate(rows.items()):
        y = top + row * high
        lettering.write(sheet, [block], (0, y, LABEL_PX, y + first.height))
        for column, weight in enumerate(weights):
            sheet.paste(pictures[weight], (LABEL_PX + column * wide, y))
    return sheet
