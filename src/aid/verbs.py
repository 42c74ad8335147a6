"""Every verb by name, imported only when it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aid.errors import SettingsError

if TYPE_CHECKING:  # the command line's help must not wait for pydantic
    from aid.core.artifact import Inputs, Settings


@dataclass(frozen=True)
class Entry:
    """Where a verb lives, the stem of its types' names, and what it does in one line."""

    module: str
    function: str
    stem: str
    summary: str

    def load(self) -> Any:
        return getattr(importlib.import_module(self.module), self.function)

    def settings_type(self) -> type[Settings]:
        found: type[Settings] = self._type("Settings")
        return found

    def inputs_type(self) -> type[Inputs]:
        found: type[Inputs] = self._type("Inputs")
        return found

    def _type(self, kind: str) -> Any:
        room = self.module.rpartition(".")[0]
        return getattr(importlib.import_module(f"{room}.settings"), self.stem + kind)


VERBS = {
    "prepare": Entry("aid.dataset.run", "prepare", "Prepare", "Folders of pictures -> Dataset."),
    "train finetune": Entry(
        "aid.train.run", "finetune", "Finetune", "Dataset -> Checkpoint: U-Net and text encoder together."
    ),
    "train lora": Entry(
        "aid.train.lora", "lora", "Lora", "Dataset -> Adapter: a LoRA, as kohya's scripts save it."
    ),
    "train embedding": Entry(
        "aid.train.embedding", "embedding", "Embedding", "Bad pictures -> negative Embedding."
    ),
    "merge": Entry("aid.merge.run", "merge", "Merge", "Checkpoints -> Checkpoint, block by block."),
    "merge search": Entry(
        "aid.search.run",
        "search",
        "Search",
        "Checkpoints, dataset, judge -> weights that measure best.",
    ),
    "merge sheet": Entry(
        "aid.search.sheet",
        "block_sheet",
        "Sheet",
        "Checkpoints -> what a block's weight does to a picture.",
    ),
    "merge distance": Entry(
        "aid.merge.distance", "distance", "Distance", "Checkpoints -> how far apart they are, block by block."
    ),
    "merge extract": Entry(
        "aid.merge.extract", "extract", "Extract", "Two checkpoints -> Adapter: what one learned."
    ),
    "generate": Entry("aid.generate.run", "generate", "Generate", "Checkpoint -> pictures."),
    "grid": Entry("aid.generate.grid.run", "grid", "Grid", "Checkpoint and axes -> pictures side by side."),
    "judge": Entry("aid.evaluate.judge_run", "judge", "Judge", "Dataset -> Judge of styles and tags."),
    "evaluate": Entry("aid.evaluate.run", "evaluate", "Evaluate", "Gallery -> Report with ceilings."),
    "release": Entry("aid.release.run", "release", "Release", "Checkpoint, embeddings, report -> Release."),
}


def entry(name: str) -> Entry:
    """The verb called `name`. Raises SettingsError."""
    if name not in VERBS:
        raise SettingsError(f"{name!r} is not a verb", ", ".join(VERBS))
    return VERBS[name]
