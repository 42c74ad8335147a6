"""Everything that a card tells, gathered before a word of it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aid.core.catalogue import Catalogue, Style
from aid.core.dataset import Record
from aid.core.report import Report, StyleRow
from aid.release.bundle import FileHash, ReleasedEmbedding
from aid.release.method import Step
from aid.release.samples import Sheets
from aid.release.settings import ReleaseSettings
from aid.sd.model.architecture import Architecture


@dataclass(frozen=True)
class Facts:
    """A release as its card sees it. `steps` made the model, `embedding_steps` the embeddings;
    `drew_bad_pictures` tells whether an embedding learned from pictures that AID drew."""

    settings: ReleaseSettings
    catalogue: Catalogue
    records: Sequence[Record]
    architecture: Architecture
    report: Report | None
    previous_reports: Mapping[str, Report]
    steps: Sequence[Step]
    embedding_steps: Sequence[Step]
    drew_bad_pictures: bool
    embeddings: Sequence[ReleasedEmbedding]
    files: Sequence[FileHash]
    sheets: Sheets

    def styles(self) -> list[Style]:
        """The styles of this version."""
        return [style for style in self.catalogue.styles if self.settings.version in style.versions]

    def row(self, style: str) -> StyleRow | None:
        """A style's line in the report."""
        rows = self.report.styles if self.report else ()
        return next((row for row in rows if row.style == style), None)

    def negative_embeddings(self) -> list[str]:
        return [embedding.name for embedding in self.embeddings if embedding.negative]
