"""Evaluate: a gallery and a judge -> a report."""

from __future__ import annotations

from pathlib import Path

from aid.core.artifact import verb
from aid.core.files import write_lines, write_text
from aid.core.workbench import Workbench
from aid.evaluate.compare import compare
from aid.evaluate.score import build_report, judge_gallery, unjudged_cells
from aid.evaluate.settings import EvaluateInputs, EvaluateSettings
from aid.evaluate.table import in_words, markdown
from aid.judging.judge import load_judge


@verb("evaluate")
def evaluate(settings: EvaluateSettings, inputs: EvaluateInputs, out: Path, bench: Workbench) -> None:
    """Judge every picture of a gallery and count.

    Writes `report.json` (a core Report), `report.md`, and `pictures.jsonl` with a line a picture; with
    a baseline also `paired.json` (compare.Comparison). Raises ArtifactError for a gallery or judge that
    is incomplete, and PictureError for a picture that can't be read.
    """
    arbiter = load_judge(inputs.judge, bench)
    judged = judge_gallery(inputs.gallery, arbiter, settings.cells, bench)
    notes = list(unjudged_cells(settings.cells, arbiter.card.panel))
    if inputs.baseline is not None:
        comparison = compare(judged, judge_gallery(inputs.baseline, arbiter, settings.cells, bench))
        write_text(out / "paired.json", comparison.model_dump_json(indent=1) + "\n")
        notes.append(comparison.summary())
        bench.progress.say(f"  {comparison.summary()}")
    report = build_report(settings.title, judged, arbiter.card, notes)
    bench.progress.say(f"  {in_words(report)}")
    write_text(out / "report.json", report.model_dump_json(indent=1) + "\n")
    write_text(out / "report.md", markdown(report))
    write_lines(out / "pictures.jsonl", [picture.model_dump(mode="json") for picture in judged])
