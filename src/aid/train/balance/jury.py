"""What a judge says of the pictures that a model under training draws of each style."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from aid.core.dataset import Dataset
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.judging.judge import load_judge, look
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.picture.layout import thumbnail
from aid.train.balance.shots import sample_shot, style_prompts
from aid.train.settings import TrainingSettings
from aid.train.team import ALONE, Team

DIGITS = 2  # of a chance: pictures that differ by rounding, as between one process and two, are the same


class Jury:
    """A judge, and the shots by which it tells how well each of `styles` is learnt: captions of their own
    pictures, held-out ones first, from first to last the same.

    Raises SettingsError where the judge knows none of the styles.
    """

    def __init__(
        self,
        judge: Path,
        dataset: Dataset,
        styles: Sequence[str],
        settings: TrainingSettings,
        edge_px: int,
        bench: Workbench,
    ) -> None:
        self.judge = load_judge(judge, bench)
        known = self.judge.card.panel.styles
        asked = [style for style in styles if style in known]
        if not asked:
            raise SettingsError(f"{judge} knows none of the styles trained on", "a judge of this dataset")
        prompts = style_prompts(dataset, asked, settings.balance.pictures)
        self.shots = [sample_shot(*one, seed, settings, edge_px) for seed, one in enumerate(prompts)]
        rows = (settings.part_size or settings.batch_size) * settings.noise_draws
        self.batch_size = max(1, rows // 2)  # guidance has two rows a picture

    def missed(self, model: StableDiffusion, team: Team = ALONE) -> dict[str, float]:
        """How much of each style is still to be learnt, 0 to 1: (n (1 - J) + 1) / (n + 2), where J is how
        surely the judge tells its n pictures from the others. By this rule of succession it is never 0. A
        team shares the pictures out; all must ask at once."""
        from aid.sd.drawing.pipeline import draw

        own = self.shots[team.rank :: team.size]
        chances = self._chances(draw(model, own, batch_size=self.batch_size))
        pairs = team.gathered([*zip((shot.style for shot in own), chances, strict=True)])
        told, often = informedness(pairs), Counter(style for style, _ in pairs)
        return {style: (often[style] * (1 - told[style]) + 1) / (often[style] + 2) for style in told}

    def _chances(self, pictures: Iterable[Image.Image]) -> list[dict[str, float]]:
        """By style, how likely it is to the judge that each picture shows it."""
        views = [thumbnail(np.asarray(picture.convert("RGB"))) for picture in pictures]
        if not views:
            return []
        seen, _ = look(self.judge.card.panel, self.judge.network, torch.from_numpy(np.stack(views)))
        return [{style: round(share, DIGITS) for style, share in one.chances.items()} for one in seen]


def informedness(pairs: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """Youden's J (1950) of each style, 0 to 1: its mean chance in pictures asked of it, less that in pictures
    of others. What a judge calls everything that it doesn't know gets nothing by that."""
    found = {}
    for style in sorted({asked for asked, _ in pairs}):
        own = [chances[style] for asked, chances in pairs if asked == style]
        others = [chances[style] for asked, chances in pairs if asked != style]
        found[style] = max(0.0, fmean(own) - (fmean(others) if others else 0.0))
    return found
