"""Damaged records of AID's own: galleries, lists of shots, lineages, datasets, reports."""

from __future__ import annotations

from pathlib import Path

from damage import BYTES, JSON, LINES
from fuzzing import Target, each, fuzz

from aid.core.dataset import Dataset, Record
from aid.core.files import write_lines
from aid.core.gallery import Frame, read_gallery
from aid.core.lineage import Lineage, Node, Source, describe, lineage_of, read_lineage
from aid.core.report import Report, Score
from aid.core.shot import Hires, Shot
from aid.generate.plan import read_shots

SHA = "0" * 64


def read(folder: Path) -> None:
    readers = {
        "shots.jsonl": each(lambda _: read_gallery(folder), read_shots),
        "records.jsonl": lambda _: Dataset(folder).records,
        "report.json": each(lambda _: Report.read(folder)),
        "lineage.json": each(
            lambda _: read_lineage(folder),
            lambda _: lineage_of(folder),
            lambda _: describe("x", {}, {"a": folder}),
        ),
    }
    for path in folder.iterdir():
        if path.name in readers:
            readers[path.name](path)


def lineage() -> bytes:
    first = Node(verb="file", settings={}, inputs={"a": Source(sha256=SHA)})
    node = Node(
        verb="merge", settings={"x": [1, 2.5, None]}, inputs={"a": Source(sha256=SHA, key=first.key())}
    )
    made = Lineage(key=node.key(), nodes={node.key(): node, first.key(): first}, files={})
    return made.model_dump_json(indent=1).encode()


def report() -> bytes:
    score = Score(value=0.5, low=0.1, high=0.9, count=3)
    made = Report(title="a", pictures=3, scores={"style": score}, ceilings={}, artefact=score, styles=())
    return made.model_dump_json().encode()


def lines(folder: Path, rows: list[object]) -> bytes:
    write_lines(folder / "seed", rows)
    return (folder / "seed").read_bytes()


def test_damaged_records(tmp_path: Path) -> None:
    shots = [Shot(prompt="a", seed=1), Shot(prompt="é", hires=Hires(), tags=("b",))]
    frames: list[object] = [Frame(file="a.png", shot=shot).model_dump(mode="json") for shot in shots]
    record = Record(
        sha256=SHA, source="a/b.png", file="pictures/b.webp", style="a", tags=("b",), split="train",
        width=64, height=64, row=0,
    )  # fmt: skip
    samples = [
        {"shots.jsonl": lines(tmp_path, frames), "a.png": b"x"},
        {"records.jsonl": lines(tmp_path, [record.model_dump(mode="json")] * 2)},
        {"lineage.json": lineage()},
        {"report.json": report()},
    ]
    mutators = {".jsonl": LINES, ".json": JSON, "": BYTES}
    fuzz(Target("record", samples, read, mutators), tmp_path / "fuzzed")
