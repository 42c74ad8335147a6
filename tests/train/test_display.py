"""What a person sees of a run: charts, sheets, TensorBoard and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aid.core.dataset import Dataset
from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.train.balance.balance import Row, held_shares
from aid.train.balance.copies import Copies, copied_styles, write_copies
from aid.train.balance.shots import sample_shots, style_prompts
from aid.train.log import Log
from aid.train.settings import BalanceSettings, FinetuneSettings, SampleSettings
from aid.train.view.board import EVENT_FILE, Board
from aid.train.view.chart import draw_styles
from aid.train.view.page import sheet_data, style_data, write_report

HOSTILE = '</script><img src=x onerror=alert(1)> "&\u2028$x$'


def many_rows(styles: list[str], count: int = 12) -> list[Row]:
    """Curves such as training gives: each style falls at a speed of its own; the first overfits."""
    rows = []
    for index in range(count):
        held = {s: [0.1 * (0.3 + 0.7 * 0.9 ** (index * (1 + n % 5)))] * 2 for n, s in enumerate(styles)}
        trained = {s: [x * (1 - 0.02 * index) for x in losses] for s, losses in held.items()}
        weights = {s: 0.5 + n % 3 for n, s in enumerate(styles)}
        reached = (styles[0],) if index > 8 else ()
        seen = dict.fromkeys(styles, 100 * index)
        rows.append(Row(100 * index, held, trained, weights, reached, seen))
    return rows


def page_data(path: Path) -> Any:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("count", [1, 200])
def test_every_style_is_on_one_page(tmp_path: Path, count: int) -> None:
    styles = [HOSTILE, *(f"artist {index}" for index in range(count - 1))]
    rows = many_rows(styles)
    draw_styles(rows, tmp_path / "styles.png", "a run")
    with Image.open(tmp_path / "styles.png") as picture:
        assert max(picture.size) < 4000 and min(picture.size) > 150
    data = style_data(rows, dict.fromkeys(styles, (20, 4)), 800, BalanceSettings())
    write_report(tmp_path, HOSTILE, "train finetune", [{"step": 1, "rate": 1.0, "loss": 0.5}], data, [])
    shown = page_data(tmp_path / "report.html")
    assert [style["name"] for style in shown["styles"]] == styles and shown["title"] == HOSTILE
    assert shown["styles"][0]["held"][-1] == pytest.approx(held_shares(rows[-1], rows[0])[HOSTILE], abs=1e-5)
    assert "<img src=x" not in (tmp_path / "report.html").read_text()
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", (tmp_path / "report.html").read_text())


def test_a_run_that_measured_nothing_has_a_page_too(tmp_path: Path) -> None:
    write_report(tmp_path, "a run", "train embedding", [], {}, [("0", "steps")])
    assert page_data(tmp_path / "report.html")["styles"] == []


def test_the_page_holds_some_sheets_and_always_the_newest(tmp_path: Path) -> None:
    for step in range(1, 31):
        Image.new("RGB", (8, 8)).save(tmp_path / f"step-{step:06d}.png")
    steps = [sheet["step"] for sheet in sheet_data(tmp_path)]
    assert len(steps) == 12 and steps[0] == 1 and steps[-1] == 30 and steps == sorted(steps)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, 0)
    log.add(step=1, rate=0.1, loss=0.5, norm=2.0)
    rows = many_rows(["ann"], 2)
    board = Board(tmp_path, log, rows)
    board.follow()
    log.add(step=2, rate=0.2, loss=0.25, norm=1.0)
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "samples" / "step-000002.png")
    board.follow()
    board.close()
    log.close()
    read = EventAccumulator(str((tmp_path / EVENT_FILE).parent)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("training/loss")] == [(1, 0.5), (2, 0.25)]
    assert [e.value for e in read.Scalars("weight/ann")] == [0.5, 0.5]
    assert [(e.step, e.width, e.height) for e in read.Images("samples")] == [(2, 8, 4)]


def test_chosen_styles_have_fixed_shots(dataset: Path) -> None:
    samples = SampleSettings(every=1, prompts=("by nobody",), styles=("alpha",), per_style=3)
    settings = FinetuneSettings(steps=1, samples=samples)
    shots = sample_shots(settings, Dataset(dataset), 64)
    assert [shot.seed for shot in shots] == [0, 1, 2, 3] and shots[0].prompt == "by nobody"
    held = [record.caption for record in Dataset(dataset).records if record.split == "held"]
    assert shots[1].prompt in held and shots[3].prompt.startswith("by alpha")
    assert shots == sample_shots(settings, Dataset(dataset), 64)
    assert {(shot.width, shot.height) for shot in shots} == {(64, 64)}, "the model's size, as none is named"
    wide = settings.model_copy(update={"samples": samples.model_copy(update={"width": 96})})
    assert [(one.width, one.height) for one in sample_shots(wide, Dataset(dataset), 64)] == [(96, 64)] * 4


def test_what_a_pictures_tags_call_is_not_drawn(dataset: Path) -> None:
    data = Dataset(dataset)
    tags = ("cat (black)", "<lora:somebodys:1>", "smile")
    vars(data)["records"] = tuple(one.model_copy(update={"tags": tags}) for one in data.records)
    assert style_prompts(data, ["alpha"], 1) == [("alpha", r"by alpha, cat \(black\), smile")]


def test_a_trained_picture_is_its_own_copy_and_noise_is_none(dataset: Path) -> None:
    copies, records = Copies(Dataset(dataset)), Dataset(dataset).split("train")
    again = [Image.open(dataset / record.file).convert("RGB") for record in records]
    assert copies.sources(again) == [record.source for record in records]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert copies.sources([noise]) == [""]


def test_styles_are_copied_where_half_of_their_pictures_are(tmp_path: Path) -> None:
    shots = [Shot(prompt="", style=style) for style in ("", "ann", "ann", "bob", "bob", "bob")]
    write_copies(tmp_path, 10, shots, ["x", "x", "", "x", "", ""])
    write_copies(tmp_path, 20, shots, [""] * 6)
    assert copied_styles(tmp_path, 10) == () and copied_styles(tmp_path, 11) == ("ann",)
    assert copied_styles(tmp_path, 20) == ("ann",) and copied_styles(tmp_path, 21) == ()


def test_a_style_to_draw_must_be_there(dataset: Path) -> None:
    samples = SampleSettings(every=1, styles=("gamma",))
    with pytest.raises(SettingsError, match="names gamma"):
        sample_shots(FinetuneSettings(steps=1, samples=samples), Dataset(dataset), 64)
