"""AID: illustrators' pictures in, a released multi-style Stable Diffusion model out.

Every stage is a verb, `verb(settings, inputs, out)`, that makes the artifact `out` and returns its folder:

    import aid

    inputs = aid.PrepareInputs(pictures={"new": folder}, vae=aid.shipped("base"))
    dataset = aid.Dataset(aid.prepare(aid.PrepareSettings(resolution_px=64), inputs, out))

A name is imported when it is first used, so `import aid` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AidError": "aid.errors",
    "ArtifactError": "aid.errors",
    "BalanceSettings": "aid.train.settings",
    "Blend": "aid.merge.blend",
    "CaptionSettings": "aid.train.settings",
    "Catalogue": "aid.core.catalogue",
    "Dataset": "aid.core.dataset",
    "DistanceInputs": "aid.merge.settings",
    "DistanceSettings": "aid.merge.settings",
    "Embedding": "aid.sd.embedding.file",
    "EmbeddingInputs": "aid.train.settings",
    "EmbeddingSettings": "aid.train.settings",
    "EvaluateInputs": "aid.evaluate.settings",
    "EvaluateSettings": "aid.evaluate.settings",
    "ExtractInputs": "aid.merge.settings",
    "ExtractSettings": "aid.merge.settings",
    "FileError": "aid.errors",
    "FinetuneInputs": "aid.train.settings",
    "FinetuneSettings": "aid.train.settings",
    "Frame": "aid.core.gallery",
    "GenerateInputs": "aid.generate.settings",
    "GenerateSettings": "aid.generate.settings",
    "GridInputs": "aid.generate.grid.settings",
    "GridSettings": "aid.generate.grid.settings",
    "JudgeInputs": "aid.evaluate.settings",
    "JudgeSettings": "aid.evaluate.settings",
    "Lineage": "aid.core.lineage",
    "LoraInputs": "aid.train.settings",
    "LoraSettings": "aid.train.settings",
    "MergeInputs": "aid.merge.settings",
    "MergeSettings": "aid.merge.settings",
    "ModelError": "aid.errors",
    "PictureError": "aid.errors",
    "Plan": "aid.generate.settings",
    "PrepareInputs": "aid.dataset.settings",
    "PrepareSettings": "aid.dataset.settings",
    "Progress": "aid.core.workbench",
    "Recipe": "aid.make",
    "Record": "aid.core.dataset",
    "Release": "aid.core.release",
    "ReleaseInputs": "aid.release.settings",
    "ReleaseSettings": "aid.release.settings",
    "Report": "aid.core.report",
    "SampleSettings": "aid.train.settings",
    "Score": "aid.core.report",
    "SearchInputs": "aid.search.settings",
    "SearchSettings": "aid.search.settings",
    "SettingsError": "aid.errors",
    "SheetInputs": "aid.search.settings",
    "SheetSettings": "aid.search.settings",
    "Shot": "aid.core.shot",
    "StableDiffusion": "aid.sd.model.checkpoint",
    "Workbench": "aid.core.workbench",
    "block_sheet": "aid.search.sheet",
    "distance": "aid.merge.distance",
    "draw": "aid.sd.drawing.pipeline",
    "embedding": "aid.train.embedding",
    "extract": "aid.merge.extract",
    "finetune": "aid.train.run",
    "grid": "aid.generate.grid.run",
    "judge": "aid.evaluate.judge_run",
    "lineage_of": "aid.core.lineage",
    "load_catalogue": "aid.core.catalogue",
    "load_checkpoint": "aid.sd.model.checkpoint",
    "load_embedding": "aid.sd.embedding.file",
    "lora": "aid.train.lora",
    "prepare": "aid.dataset.run",
    "read_gallery": "aid.core.gallery",
    "read_recipe": "aid.make",
    "save_checkpoint": "aid.sd.model.checkpoint",
    "save_embedding": "aid.sd.embedding.file",
    "shipped": "aid.starter",
}
_ROOMS = (
    "evaluate",
    "generate",
    "make",
    "merge",
    "release",
    "search",
)  # called, they are the verbs of these names

__all__ = sorted([*_HOME, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"aid.{name}")
    if name in _HOME:
        found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return found
    raise AttributeError(f"module 'aid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
