"""Release: Checkpoint + Embeddings + Dataset + Report + Gallery -> a folder to upload as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from aid.core.artifact import under_construction, verb
from aid.core.catalogue import Catalogue
from aid.core.dataset import Dataset, Record
from aid.core.files import write_text
from aid.core.lineage import METADATA_KEY
from aid.core.release import CARD_FILES, CATALOGUE_FILE, HUB_PAGE, MODEL_FILE, REPORT_FILE, sheet_files
from aid.core.report import Report
from aid.core.spelling import did_you_mean
from aid.core.workbench import Workbench
from aid.errors import ArtifactError, SettingsError
from aid.release.bundle import ReleasedEmbedding, embedding_files, hash_files, release_embeddings
from aid.release.card import hub_page, write_card
from aid.release.facts import Facts
from aid.release.listing import list_release
from aid.release.method import drew_for_embeddings, embedding_steps, making_of
from aid.release.modelspec import describe_model, thumbnail
from aid.release.samples import Sheets, draw_sheets, group_samples, read_samples
from aid.release.settings import ReleaseInputs, ReleaseSettings
from aid.sd.file.precision import PRECISIONS
from aid.sd.file.tensorfile import write_tensors
from aid.sd.model.architecture import SD1, Architecture
from aid.sd.model.checkpoint import StableDiffusion, ldm_tensors, load_checkpoint


@verb("release")
def release(settings: ReleaseSettings, inputs: ReleaseInputs, out: Path, bench: Workbench) -> None:
    """Write the model with its metadata, the embeddings, the catalogue, contact sheets, report and cards.

    What no file tells is in the settings; all else is read: styles, counts and credits from the
    dataset, scores from the report, the making from the lineage. Raises SettingsError for settings that
    contradict the artifacts, ModelError for an embedding that doesn't fit the model.
    """
    with bench.progress.task("release", 5, "part") as tick:
        records = Dataset(inputs.dataset).records
        report = read_report(inputs.report) if inputs.report else None
        earlier = {version: read_report(path) for version, path in inputs.previous_reports.items()}
        previous = read_catalogue(inputs.catalogue) if inputs.catalogue else None
        model = load_checkpoint(inputs.checkpoint, dtype=PRECISIONS[settings.precision])
        tick(1, "read")

        embeddings = release_embeddings(settings, inputs.embeddings, out, model.architecture)
        settings = with_size(with_embedding(settings, embeddings), model.architecture)
        catalogue = list_release(settings, records, report, previous)
        tick(1, "embeddings")

        sheets = release_sheets(settings, inputs.gallery, catalogue, out)
        tick(1, "samples")

        release_model(settings, model, catalogue, records, sheets, out)
        tick(1, "model")

        lineage, family = under_construction(out), model.architecture.family
        facts = Facts(
            settings=settings,
            catalogue=catalogue,
            records=records,
            architecture=model.architecture,
            report=report,
            previous_reports=earlier,
            steps=making_of(lineage, family, model.metadata.get("aid.merge", "")),
            embedding_steps=embedding_steps(lineage, family),
            drew_bad_pictures=drew_for_embeddings(lineage),
            embeddings=embeddings,
            files=hash_files(out, [MODEL_FILE, *embedding_files(embeddings)]),
            sheets=sheets,
        )
        for language, name in CARD_FILES.items():
            write_text(out / name, write_card(facts, language))
        write_text(out / HUB_PAGE, hub_page(facts))
        catalogue.write(out / CATALOGUE_FILE)
        if inputs.report:
            shutil.copyfile(inputs.report / REPORT_FILE, out / REPORT_FILE)
        tick(1, "cards")


def read_report(folder: Path) -> Report:
    """The report.json of a Report or Release. Raises ArtifactError if it is missing or malformed."""
    try:
        return Report.read(folder)
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{folder / REPORT_FILE} is not a report ({type(error).__name__})",
            "a folder made by `aid evaluate` or `aid release`",
            "Run `aid evaluate` again.",
        ) from error


def read_catalogue(path: Path) -> Catalogue:
    """A catalogue.toml, or that of a release folder."""
    return Catalogue.read(path / CATALOGUE_FILE if path.is_dir() else path)


def with_embedding(settings: ReleaseSettings, embeddings: Sequence[ReleasedEmbedding]) -> ReleaseSettings:
    """The settings with the negative embedding that the card recommends: the one they name, or else the
    only one released. Raises SettingsError if they name one that is not among those released."""
    named = settings.parameters.negative_embedding
    names = [one.name for one in embeddings]
    if named and names and named not in names:
        raise SettingsError(
            f"parameters.negative_embedding is {named}, which is not released",
            ", ".join(names),
            did_you_mean(named, names),
        )
    negative = [one.name for one in embeddings if one.negative]
    if named or len(negative) != 1:
        return settings
    parameters = settings.parameters.model_copy(update={"negative_embedding": negative[0]})
    return settings.model_copy(update={"parameters": parameters})


def with_size(settings: ReleaseSettings, architecture: Architecture) -> ReleaseSettings:
    """The settings with the size that the model was trained at, if they name none: the card's suit 512 px."""
    edge, given = architecture.native_edge_px, settings.parameters
    if edge == SD1.native_edge_px or "sizes" in given.model_fields_set:
        return settings
    return settings.model_copy(update={"parameters": given.model_copy(update={"sizes": ((edge, edge),)})})


def release_sheets(
    settings: ReleaseSettings, gallery: Path | None, catalogue: Catalogue, out: Path
) -> Sheets:
    """The contact sheets of the styles that this version knows."""
    if gallery is None:
        return Sheets()
    known = {style.name: style.trigger for style in catalogue.styles if settings.version in style.versions}
    groups = group_samples(read_samples(gallery), known)
    files = sheet_files([style.name for style in catalogue.styles])
    return draw_sheets(groups, files, out, settings.pictures_per_style, settings.sample_edge_px)


def release_model(
    settings: ReleaseSettings,
    model: StableDiffusion,
    catalogue: Catalogue,
    records: Sequence[Record],
    sheets: Sheets,
    out: Path,
) -> None:
    """Write `model.safetensors`, its metadata and thumbnail included."""
    tensors = ldm_tensors(model, PRECISIONS[settings.precision])
    metadata = describe_model(settings, catalogue, records, model.architecture, tensors, model.metadata)
    metadata[METADATA_KEY] = under_construction(out).embedded()
    if sheets.overview:
        metadata["modelspec.thumbnail"] = thumbnail(out / sheets.overview)
    write_tensors(out / MODEL_FILE, tensors, metadata)
