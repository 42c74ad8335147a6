"""Small artifacts of every kind that a release takes in, made by the real verbs where one is enough."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aid.core.artifact import Inputs, Settings, verb
from aid.core.catalogue import Parameters
from aid.core.dataset import Record
from aid.core.report import Report, StyleRow, mean, proportion
from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.generate.run import generate
from aid.generate.settings import GenerateInputs, GenerateSettings, Plan
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.release.bundle import FileHash, ReleasedEmbedding
from aid.release.facts import Facts
from aid.release.listing import list_release
from aid.release.samples import Sheets
from aid.release.settings import ReleaseInputs, ReleaseSettings
from aid.sd.model.architecture import SD1
from aid.train.embedding import embedding
from aid.train.run import finetune
from aid.train.settings import EmbeddingInputs, EmbeddingSettings, FinetuneInputs, FinetuneSettings

CREDITS = {"alpha": ("CC0-1.0", "Ada | A."), "beta": ("CC-BY-4.0", "Béatrice")}


class ReportInputs(Inputs):
    gallery: Path


class Nothing(Settings):
    pass


@verb("evaluate")
def evaluate(settings: Nothing, inputs: ReportInputs, out: Path, bench: Workbench) -> None:
    (out / "report.json").write_text(report().model_dump_json())


def report(hits: int = 90) -> Report:
    rows = tuple(
        StyleRow(
            style=style,
            score=proportion(hits, 100),
            ceiling=proportion(99, 100),
            artefact=mean([0.1, 0.2, 0.3]),
            confused_with="beta" if style == "alpha" else "alpha",
        )
        for style in CREDITS
    )
    return Report(
        title="tiny",
        pictures=200,
        scores={"style": proportion(2 * hits, 200), "hair": proportion(150, 200)},
        ceilings={"style": proportion(198, 200), "hair": proportion(190, 200)},
        artefact=mean([0.1, 0.2, 0.3]),
        styles=rows,
    )


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, pictures: Path) -> ReleaseInputs:
    """A whole run: one new style and one replayed, a model of three, gallery, report, negative embedding."""
    runs = tmp_path_factory.mktemp("runs")
    for style, folder in (("alpha", "new"), ("beta", "old")):
        shutil.copytree(pictures / style, runs / folder / style)
        licence, credit = CREDITS[style]
        credits = f'licence = "{licence}"\ncredit = "{credit}"\n'
        (runs / folder / style / "credit.toml").write_text(credits, encoding="utf-8")
    sources = PrepareInputs(
        pictures={"new": runs / "new"}, regularisation={"old": runs / "old"}, vae=tiny_checkpoint
    )
    dataset = prepare(PrepareSettings(resolution_px=64), sources, runs / "dataset")
    trained = finetune(
        FinetuneSettings(steps=2, batch_size=2, unet_rate=1e-4, regularisation_share=0.5),
        FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset),
        runs / "trained",
    )
    models = MergeInputs(models={"style": trained, "detail": tiny_checkpoint, "composition": tiny_checkpoint})
    merged = merge(MergeSettings(preset="aid-v1"), models, runs / "merged")
    gallery = generate(
        GenerateSettings(steps=1, plan=Plan(shots_per_style=5)),
        GenerateInputs(checkpoint=merged, dataset=dataset),
        runs / "gallery",
    )
    bad = prepare(
        PrepareSettings(resolution_px=64, held_fraction=0, held_minimum=0),
        PrepareInputs(pictures={"bad": gallery}, vae=tiny_checkpoint),
        runs / "bad",
    )
    negative = embedding(
        EmbeddingSettings(name="tinybad", vectors=4, steps=2, batch_size=2),
        EmbeddingInputs(checkpoint=merged, pictures=bad),
        runs / "tinybad",
    )
    return ReleaseInputs(
        checkpoint=merged,
        dataset=dataset,
        embeddings=[negative],
        report=evaluate(Nothing(), ReportInputs(gallery=gallery), runs / "report"),
        gallery=gallery,
    )


@pytest.fixture(scope="session")
def settings() -> ReleaseSettings:
    return ReleaseSettings.model_validate(
        {
            "name": "tiny",
            "version": "v1",
            "title": "Tiny",
            "author": "A test",
            "date": "2026-01-31",
            "licence": "CC-BY-4.0",
            "description": {"en": "Two styles.", "zh": "两种风格。"},
            "parameters": {"sizes": [[64, 64]], "prompt": "best quality, {trigger}, {tags}"},
            "categories": {"flat color": ["alpha"]},
            "characters": ["Ada"],
            "declarations": [{"en": "Do no harm.", "zh": "请勿作恶。"}],
        }
    )


@pytest.fixture
def worse() -> Report:
    """What the judge might have found of an earlier version."""
    return report(hits=40)


@pytest.fixture
def facts() -> Facts:
    """A full-size model's release, as its card sees it."""
    settings = ReleaseSettings(
        name="aid",
        version="v1",
        licence="Fair-AI-Public-1.0",
        parameters=Parameters(cfg_scale=7, negative_embedding="aidbad"),
    )
    record = Record(
        sha256="0",
        source="s",
        file="f",
        style='it\'s | "me"',
        tags=(),
        split="train",
        width=512,
        height=768,
        row=0,
        credit="<script>alert(1)</script>",
    )
    return Facts(
        settings=settings,
        catalogue=list_release(settings, [record], None, None),
        records=[record],
        architecture=SD1,
        report=None,
        previous_reports={},
        steps=(),
        embedding_steps=(),
        drew_bad_pictures=False,
        embeddings=[ReleasedEmbedding("aidbad", 8, True)],
        files=[FileHash("model.safetensors", 2_132_000_000, "ab" * 32, "cd" * 32)],
        sheets=Sheets(),
    )
