"""A merge's pictures, drawn and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.evaluate.score import Judged, judge_gallery
from aid.generate.gallery import picture_name, write_gallery
from aid.judging.judge import Judge
from aid.judging.panel import STYLE
from aid.sd.drawing.pipeline import draw
from aid.sd.embedding.file import Embedding
from aid.sd.model.checkpoint import StableDiffusion
from aid.search.trial import Measured


@dataclass(frozen=True)
class Arbiter:
    """Draws shots with a model, and looks at them."""

    judge: Judge
    embeddings: Mapping[str, Embedding]
    batch_size: int
    bench: Workbench

    def look(self, model: StableDiffusion, shots: Sequence[Shot], folder: Path) -> list[Judged]:
        """The pictures lie in `folder` then, a gallery like any other."""
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(draw(model, shots, self.embeddings, self.batch_size)):
            picture.save(folder / picture_name(index, shots[index]))
        write_gallery(folder, shots)
        return judge_gallery(folder, self.judge, (), self.bench)


def measured(judged: Sequence[Judged]) -> Measured:
    """Raises SettingsError if the judge knows none of the styles."""
    styles: dict[str, list[bool]] = {}
    for one in judged:
        if STYLE in one.hits:
            styles.setdefault(one.shot.style, []).append(one.hits[STYLE])
    if not styles:
        raise SettingsError("the judge knows none of the plan's styles", "a judge taught on this dataset")
    content = [hit for one in judged for question, hit in one.hits.items() if question != STYLE]
    return Measured(
        styles={style: sum(hits) / len(hits) for style, hits in styles.items()},
        content=sum(content) / (len(content) or 1),
        artefact=sum(one.artefact for one in judged) / len(judged),
    )
