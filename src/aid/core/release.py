"""The Release noun: a finished model's folder, as it is uploaded and as AID draws with it.

model.safetensors      the checkpoint (LDM or SGM layout, ModelSpec metadata)
embeddings/            NAME.safetensors and NAME.pt; the file's stem is what calls it
catalogue.toml         styles, characters, category words, versions, recommended parameters
samples/               all.png and one contact sheet a style
report.json            what the judge found
card.md, card.zh.md    the model card; README.md is the same card as model hubs read it
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from aid.core.catalogue import Catalogue, Language
from aid.core.file_name import file_names
from aid.core.report import Report
from aid.errors import ArtifactError

MODEL_FILE = "model.safetensors"
EMBEDDING_FOLDER = "embeddings"
CATALOGUE_FILE = "catalogue.toml"
SAMPLE_FOLDER = "samples"
OVERVIEW = "all"  # the stem of the sheet of all styles
REPORT_FILE = "report.json"
HUB_PAGE = "README.md"
CARD_FILES: dict[Language, str] = {"en": "card.md", "zh": "card.zh.md"}


def sheet_files(styles: Sequence[str]) -> dict[str, str]:
    """Where in a release the sheet of each of a catalogue's styles lies, if there is one: in letters that any
    system and any page's address takes. `styles` are all of the catalogue's, as names must differ."""
    names = file_names([style.casefold() for style in styles], {OVERVIEW}, ascii_only=True)
    return {style: f"{SAMPLE_FOLDER}/{name}.png" for style, name in zip(styles, names, strict=True)}


class Release:
    """A release folder, opened read-only. Raises ArtifactError if it holds no model or no catalogue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (MODEL_FILE, CATALOGUE_FILE):
            if not (folder / name).is_file():
                raise ArtifactError(
                    f"{folder} has no {name}", "a folder made by `aid release`", "Choose a release's folder."
                )

    @classmethod
    def at(cls, path: Path) -> Release | None:
        """The release whose folder or model file `path` is, or None: any other checkpoint."""
        folder = path.parent if path.name == MODEL_FILE else path
        return cls(folder) if (folder / CATALOGUE_FILE).is_file() else None

    @property
    def model(self) -> Path:
        return self.folder / MODEL_FILE

    @cached_property
    def embeddings(self) -> dict[str, Path]:
        """The word that calls each embedding -> its safetensors file, sorted."""
        files = sorted((self.folder / EMBEDDING_FOLDER).glob("*.safetensors"))
        return {path.stem: path for path in files}

    @cached_property
    def catalogue(self) -> Catalogue:
        """Raises FileError if it is malformed."""
        return Catalogue.read(self.folder / CATALOGUE_FILE)

    @cached_property
    def report(self) -> Report | None:
        """None if the release was not measured."""
        return Report.read(self.folder) if (self.folder / REPORT_FILE).is_file() else None

    def sheet(self, style: str) -> Path | None:
        """The contact sheet of a style, by its name in the catalogue; None if there is none."""
        named = sheet_files([one.name for one in self.catalogue.styles]).get(style)
        return self.folder / named if named and (self.folder / named).is_file() else None

    def recommended(self) -> dict[str, Any]:
        """What the card recommends, as `generate`'s settings and inputs by name. The prompts keep the card's
        formats: a negative prompt is written behind the negative embedding."""
        parameters = self.catalogue.parameters_of()
        width, height = parameters.sizes[0]
        named = parameters.negative_embedding
        return {
            "sampler": parameters.sampler,
            "steps": parameters.steps[0],
            "clip_skip": parameters.clip_skip,
            "width": width,
            "height": height,
            "template": True,
            "prompt_template": parameters.prompt,
            "negative_template": parameters.negative_prompt.replace("{embedding}", named),
            **({"cfg_scale": parameters.cfg_scale} if parameters.cfg_scale is not None else {}),
            **({"embeddings": (self.folder / EMBEDDING_FOLDER,)} if self.embeddings else {}),
        }

    def card(self, language: Language = "en") -> str:
        """The model card, Markdown."""
        return (self.folder / CARD_FILES[language]).read_text(encoding="utf-8")
