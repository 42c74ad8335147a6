"""What a judge says of the pictures that a model under training draws of each style."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from aid.core.dataset import Dataset
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.judging.judge import load_judge, look
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.picture.layout import thumbnail
from aid.train.balance.shots import sample_shot, style_prompts
from aid.train.settings import TrainingSettings
from aid.train.team import ALONE, Team


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
        bench: Workbench,
    ) -> None:
        self.judge = load_judge(judge, bench)
        known = self.judge.card.panel.styles
        asked = [style for style in styles if style in known]
        if not asked:
            raise SettingsError(f"{judge} knows none of the styles trained on", "a judge of this dataset")
        prompts = style_prompts(dataset, asked, settings.balance.pictures)
        self.shots = [
            sample_shot(style, prompt, seed, settings) for seed, (style, prompt) in enumerate(prompts)
        ]
        rows = (settings.part_size or settings.batch_size) * settings.noise_draws
        self.batch_size = max(1, rows // 2)  # guidance has two rows a picture

    def missed(self, model: StableDiffusion, team: Team = ALONE) -> dict[str, float]:
        """How much of each style is still to be learnt, 0 to 1: (n (1 - D) + 1) / (n + 2), where D is how far
        its n pictures and those in which the judge sees it are the same. By this rule of succession it is
        never 0. A team shares the pictures out; all must ask at once."""
        own = self.shots[team.rank :: team.size]
        pairs = team.gathered([*zip((shot.style for shot in own), self._seen(model, own), strict=True)])
        asked, seen = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        same, often = agreement(asked, seen), Counter(asked)
        return {style: (often[style] * (1 - same[style]) + 1) / (often[style] + 2) for style in same}

    def _seen(self, model: StableDiffusion, shots: list[Shot]) -> list[str]:
        """The style that the judge sees in the picture of each shot."""
        from aid.sd.drawing.pipeline import draw

        if not shots:
            return []
        pictures = draw(model, shots, batch_size=self.batch_size)
        views = [thumbnail(np.asarray(picture.convert("RGB"))) for picture in pictures]
        seen, _ = look(self.judge.card.panel, self.judge.network, torch.from_numpy(np.stack(views)))
        return [one.style for one in seen]


def agreement(asked: Sequence[str], seen: Sequence[str]) -> dict[str, float]:
    """Dice's coefficient of each style that was asked for: 2 |both| / (|asked| + |seen|). What a judge calls
    everything that it doesn't know gets little by that."""
    both = Counter(one for one, other in zip(asked, seen, strict=True) if one == other)
    often, called = Counter(asked), Counter(seen)
    return {style: 2 * both[style] / (often[style] + called[style]) for style in sorted(often)}
