"""A gallery judged: scores, artefacts, copies, pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_world import BENCH, EDGE_PX, STYLES, Change, build_gallery, draw, tags_of
from PIL import Image, ImageFilter

from aid.cli.lines import Lines
from aid.core.report import Report
from aid.core.workbench import Workbench
from aid.errors import ArtifactError, PictureError
from aid.evaluate.compare import Comparison
from aid.evaluate.run import evaluate
from aid.evaluate.score import Judged
from aid.evaluate.settings import EvaluateInputs, EvaluateSettings
from aid.judging.examination import Card

Judging = Callable[..., Path]


@pytest.fixture
def judging(arbiter: Path, tmp_path: Path) -> Judging:
    def run(gallery: Path, baseline: Path | None = None, **settings: object) -> Path:
        inputs = EvaluateInputs(gallery=gallery, judge=arbiter, baseline=baseline)
        out = tmp_path / f"report-{gallery.name}"
        return evaluate(EvaluateSettings.model_validate(settings), inputs, out, BENCH)

    return run


def noisy(amount: float) -> Change:
    chance = np.random.default_rng(5)

    def change(picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture) + chance.normal(0, amount, (EDGE_PX, EDGE_PX, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return change


def blurred(radius: float) -> Change:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def blocky(weight: float) -> Change:
    """Mixed with its own 8-pixel mosaic."""

    def change(picture: Image.Image) -> Image.Image:
        small = picture.resize((EDGE_PX // 8, EDGE_PX // 8), Image.Resampling.BOX)
        return Image.blend(picture, small.resize(picture.size, Image.Resampling.NEAREST), weight)

    return change


def test_real_pictures_score_as_high_as_the_ceiling_and_show_no_artefacts(
    judging: Judging, tmp_path: Path
) -> None:
    out = judging(build_gallery(tmp_path / "real"), title="Real ones")
    report = Report.read(out)
    assert (report.title, report.pictures) == ("Real ones", 54)
    assert report.scores.keys() == report.ceilings.keys()
    for question in ("style", "hair", "glasses", "without glasses"):
        assert report.scores[question].value >= 0.9, question
    assert abs(report.artefact.value) < 0.5
    assert report.scores["near_copies"].value < 0.2
    assert [row.style for row in report.styles] == list(STYLES)
    assert all(row.ceiling is not None and row.score.count == 18 for row in report.styles)


def test_the_report_is_readable_and_the_pictures_are_listed(
    arbiter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = EvaluateInputs(gallery=build_gallery(tmp_path / "real"), judge=arbiter)
    bench = Workbench("cpu", 1, Lines())
    out = evaluate(EvaluateSettings(title="Real ones"), inputs, tmp_path / "report", bench)
    report = Report.read(out)
    style, told = report.scores["style"].value, capsys.readouterr().err
    assert f"  style {style:.1%} (real pictures {report.ceilings['style'].value:.1%}), near_copies " in told
    text = (out / "report.md").read_text()
    assert text.startswith("# Real ones\n")
    assert f"| hair | {report.scores['hair'].value:.1%} |" in text
    assert "| hatched | " in text
    pictures = [
        Judged.model_validate_json(line) for line in (out / "pictures.jsonl").read_text().splitlines()
    ]
    assert len(pictures) == 54
    named = sum(picture.style == picture.shot.style for picture in pictures)
    assert named == round(report.scores["style"].value * 54)
    assert np.mean([p.artefact for p in pictures]) == pytest.approx(report.artefact.value)


@pytest.mark.parametrize(
    ("damage", "amounts"),
    [(noisy, (2, 6, 18, 54)), (blurred, (0.5, 1, 2, 4)), (blocky, (0.1, 0.3, 0.6, 1.0))],
)
def test_damage_raises_the_artefact_measure_step_by_step(
    judging: Judging, tmp_path: Path, damage: Callable[[float], Change], amounts: tuple[float, ...]
) -> None:
    found = [
        Report.read(judging(build_gallery(tmp_path / f"damage{amount}", damage(amount)))).artefact
        for amount in amounts
    ]
    values = [score.value for score in found]
    assert found[0].low > 0.5  # even the least is plainly told from real pictures
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.5


def test_grain_that_belongs_to_one_style_is_a_fault_in_another(judging: Judging, tmp_path: Path) -> None:
    def hatch(picture: Image.Image) -> Image.Image:
        pixels = np.array(picture)
        rows, columns = np.indices((EDGE_PX, EDGE_PX))
        pixels[(rows - columns) % 5 == 0] = 90
        return Image.fromarray(pixels)

    report = Report.read(judging(build_gallery(tmp_path / "hatched", hatch)))
    by_style = {row.style: row.artefact.value for row in report.styles}
    assert by_style["hatched"] + 1 < min(by_style["boxes"], by_style["discs"])


def test_the_wrong_style_is_seen_and_named(judging: Judging, tmp_path: Path) -> None:
    swap = {"boxes": "discs", "discs": "boxes", "hatched": "hatched"}
    report = Report.read(judging(build_gallery(tmp_path / "swapped", drawn_as=swap.__getitem__)))
    rows = {row.style: row for row in report.styles}
    assert rows["boxes"].score.value < 0.2
    assert (rows["boxes"].confused_with, rows["discs"].confused_with) == ("discs", "boxes")
    assert rows["hatched"].score.value > 0.9
    assert report.scores["style"].value == pytest.approx(1 / 3, abs=0.1)
    assert report.scores["hair"].value > 0.9  # what is drawn is right, whoever's hand it is


def test_training_pictures_are_found_even_softened(judging: Judging, tmp_path: Path) -> None:
    copies = build_gallery(tmp_path / "copies", blurred(0.5), seeds=range(18))
    assert Report.read(judging(copies)).scores["near_copies"].value > 0.9


def test_pairs_tell_a_change_from_chance(judging: Judging, tmp_path: Path) -> None:
    clean = build_gallery(tmp_path / "clean", noisy(3), negative_prompt="aid210")
    grainy = build_gallery(tmp_path / "grainy", noisy(9))
    out = judging(clean, baseline=grainy)
    paired = Comparison.model_validate_json((out / "paired.json").read_bytes())
    assert (paired.pairs, paired.unpaired) == (54, 0)
    difference = paired.artefact.difference
    assert difference.high < 0
    assert difference.value == pytest.approx(paired.artefact.gallery.value - paired.artefact.baseline.value)
    spread = paired.artefact.baseline.high - paired.artefact.baseline.low
    assert difference.high - difference.low < spread
    assert paired.scores["style"].gallery.value == Report.read(out).scores["style"].value
    assert any("54 pairs of the same seed" in note for note in Report.read(out).notes)


def test_galleries_of_other_shots_cannot_be_paired(judging: Judging, tmp_path: Path) -> None:
    one = build_gallery(tmp_path / "one", seeds=(1,))
    other = build_gallery(tmp_path / "other", seeds=(2,))
    with pytest.raises(ArtifactError, match="no shot in common"):
        judging(one, baseline=other)
    assert not (tmp_path / "report-one").exists()


def test_withheld_cells_have_a_score_of_their_own(judging: Judging, arbiter: Path, tmp_path: Path) -> None:
    gallery = build_gallery(tmp_path / "gallery")
    cells = [("discs", "red hair"), ("boxes", "blue hair"), ("discs", "green hair")]
    report = Report.read(judging(gallery, cells=cells))
    assert report.scores["withheld"].count == 12  # a third of two styles' 18
    assert report.scores["withheld"].value > 0.9
    card = Card.model_validate_json((arbiter / "judge.json").read_bytes())
    assert any("can't tell: green hair of discs." in note for note in report.notes)
    found = [card.examined.cell(*cell) for cell in cells[:2]]
    assert report.ceilings["withheld"].count == sum(score.count for score in found if score)


def test_what_the_judge_cannot_tell_is_said(judging: Judging, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    shots = [("fresco", ["red hair"]), ("discs", ["red hair", "halo"])]
    lines = []
    for number, (style, tags) in enumerate(shots):
        draw("discs", tags_of("discs", 2), number).save(gallery / f"{number}.png")
        lines.append(
            json.dumps({"file": f"{number}.png", "shot": {"prompt": "", "style": style, "tags": tags}})
        )
    (gallery / "shots.jsonl").write_text("\n".join(lines))
    report = Report.read(judging(gallery))
    assert report.scores["style"].count == 1
    assert report.scores["hair"].count == 2
    notes = " ".join(report.notes)
    assert "no style fresco" in notes
    assert "can't tell: halo" in notes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no shots"),
        ('{"file": "0.png"}', "line 1: shot Field required"),
        ('{"file": "0.png", "shot": {"prompt": "", "steps": 0}}', r"line 1: shot\.steps"),
        ("not json", "line 1"),
        ('{"file": "../0.png", "shot": {"prompt": ""}}', r"names \.\./0\.png"),
        ('{"file": "absent.png", "shot": {"prompt": ""}}', "names absent.png"),
    ],
)
def test_a_malformed_gallery_is_named(judging: Judging, tmp_path: Path, lines: str, message: str) -> None:
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    draw("discs", tags_of("discs", 0), 0).save(gallery / "0.png")
    (gallery / "shots.jsonl").write_text(lines)
    with pytest.raises(ArtifactError, match=message):
        judging(gallery)


def test_a_damaged_picture_is_named(judging: Judging, tmp_path: Path) -> None:
    gallery = build_gallery(tmp_path / "gallery", seeds=(0,))
    whole = (gallery / "0001.png").read_bytes()
    (gallery / "0001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=r"0001\.png could not be read"):
        judging(gallery)
    Image.new("RGB", (8, 300)).save(gallery / "0001.png")
    with pytest.raises(PictureError, match=r"0001\.png is 8x300"):
        judging(gallery)


def test_transparent_and_grey_pictures_are_judged_too(judging: Judging, tmp_path: Path) -> None:
    gallery = build_gallery(tmp_path / "gallery", seeds=(0,))
    Image.open(gallery / "0000.png").convert("L").save(gallery / "0000.png")
    Image.open(gallery / "0001.png").convert("RGBA").save(gallery / "0001.png")
    assert Report.read(judging(gallery)).pictures == 3
