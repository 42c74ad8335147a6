"""The judge: taught on real pictures, examined on held-out ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from drawn_world import BENCH, HAIR, STYLES
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.interrupting import Interrupting

from aid.cli.lines import Lines
from aid.core.artifact import SCRATCH
from aid.core.files import write_lines
from aid.core.lineage import read_lineage
from aid.core.workbench import Workbench
from aid.errors import ArtifactError, PictureError, SettingsError
from aid.evaluate.judge_run import judge
from aid.evaluate.settings import JudgeInputs, JudgeSettings
from aid.evaluate.training import fair_order
from aid.judging.examination import Card
from aid.judging.judge import load_judge

SHORT = JudgeSettings(epochs=5, batch_size=24, width=4, save_every=2)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 9))
def test_rare_styles_are_taught_as_often_as_others(counts: list[int], seed: int) -> None:
    styles = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = fair_order(styles, torch.Generator().manual_seed(seed))
    often = torch.bincount(styles[order], minlength=len(counts))
    assert len(order) == len(styles) and often.max() - often.min() <= 1
    turns = torch.bincount(order, minlength=len(styles))
    for style in range(len(counts)):
        own = turns[styles == style]
        assert own.max() - own.min() <= 1, "no picture comes up again before all the others have"
    if len(set(counts)) == 1:
        assert sorted(order.tolist()) == list(range(len(styles)))


def card_of(folder: Path) -> Card:
    return Card.model_validate_json((folder / "judge.json").read_bytes())


def test_it_tells_styles_and_colours_of_pictures_it_has_never_seen(arbiter: Path) -> None:
    card = card_of(arbiter)
    assert card.panel.styles == STYLES
    assert card.panel.groups == {"hair": HAIR, "frown/smile": ("frown", "smile")}
    assert card.panel.tags == ("glasses",)
    assert (card.train_pictures, card.held_pictures) == (108, 54)
    assert {"style", "hair", "glasses", "without glasses"} < card.examined.ceilings.keys()
    for question in ("style", "hair", "glasses", "without glasses"):
        score = card.examined.ceilings[question]
        assert score.value >= 0.9, question
        assert score.low < score.value <= score.high


def test_ceilings_leave_out_what_a_style_never_shows(arbiter: Path) -> None:
    card = card_of(arbiter)
    assert card.examined.ceilings["style"].count == 54
    assert (
        card.examined.ceilings["glasses"].count + card.examined.ceilings["without glasses"].count == 36
    )  # not `hatched`
    assert sum(card.examined.confusion["discs"].values()) == card.examined.styles["discs"].count == 18
    assert card.examined.cell("discs", "glasses") is not None
    everywhere = card.examined.cell("hatched", "glasses")  # never examined there: what it sees elsewhere
    assert everywhere is not None
    assert everywhere.count == card.examined.ceilings["glasses"].count


def test_an_interrupted_run_continues_bit_for_bit(dataset: Path, tmp_path: Path) -> None:
    inputs = JudgeInputs(dataset=dataset)
    whole = judge(SHORT, inputs, tmp_path / "whole", BENCH)
    for epochs in (4, 1):
        with pytest.raises(KeyboardInterrupt):
            judge(SHORT, inputs, tmp_path / "cut", Workbench("cpu", 1, Interrupting(epochs, "judge")))
    last = Interrupting(label="judge")
    cut = judge(SHORT, inputs, tmp_path / "cut", Workbench("cpu", 1, last))
    assert last.done == [2]  # the last state that the first run saved before it stopped
    assert not (cut / SCRATCH).exists()
    assert read_lineage(cut).files == read_lineage(whole).files


def test_the_seed_decides(dataset: Path, tmp_path: Path) -> None:
    settings = SHORT.model_copy(update={"epochs": 1})
    made = [
        judge(
            settings.model_copy(update={"seed": seed}),
            JudgeInputs(dataset=dataset),
            tmp_path / str(seed),
            BENCH,
        )
        for seed in (1, 2)
    ]
    one, two = (load_file(folder / "judge.safetensors") for folder in made)
    assert not torch.equal(one["network.head.weight"], two["network.head.weight"])


def test_groups_can_be_given_and_more_pictures_added(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SHORT.model_copy(update={"epochs": 1, "groups": {"colour": HAIR}, "tags": ("smile",)})
    inputs = JudgeInputs(dataset=dataset, extra={"more": dataset})
    card = card_of(judge(settings, inputs, tmp_path / "out", Workbench("cpu", 1, Lines())))
    assert list(card.examined.ceilings) == ["style", "colour", "smile", "without smile"]
    assert card.train_pictures == 216
    right, told = card.examined.ceilings, capsys.readouterr().err
    assert f"real pictures: style {right['style'].value:.1%}, colour {right['colour'].value:.1%}\n" in told
    assert ("its word on styles says little" in told) == (right["style"].value < 0.5)


def test_pictures_of_no_style_teach_tags_alone(dataset: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (dataset / "records.jsonl").read_text().splitlines()]
    plain = tmp_path / "dataset"
    plain.mkdir()
    (plain / "pictures").symlink_to(dataset / "pictures")
    write_lines(plain / "records.jsonl", [{**row, "style": ""} for row in rows])
    settings = SHORT.model_copy(update={"epochs": 1})
    card = card_of(judge(settings, JudgeInputs(dataset=plain), tmp_path / "out", BENCH))
    assert card.panel.styles == ()
    assert "hair" in card.examined.ceilings
    assert "style" not in card.examined.ceilings


def test_datasets_that_cannot_teach_are_named(dataset: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (dataset / "records.jsonl").read_text().splitlines()]
    untested = tmp_path / "dataset"
    (untested / "pictures").mkdir(parents=True)
    write_lines(untested / "records.jsonl", [{**row, "split": "train"} for row in rows])
    with pytest.raises(ArtifactError, match="has 0 held pictures"):
        judge(SHORT, JudgeInputs(dataset=untested), tmp_path / "out", BENCH)
    write_lines(untested / "records.jsonl", rows)
    with pytest.raises(PictureError, match=r"boxes-0\.png could not be read"):
        judge(SHORT, JudgeInputs(dataset=untested), tmp_path / "out", BENCH)
    bad = SHORT.model_copy(update={"groups": {"hair": ("red hair",)}})
    with pytest.raises(SettingsError, match="hair has 1 tag"):
        judge(bad, JudgeInputs(dataset=dataset), tmp_path / "out", BENCH)
    for unknown in ({"tags": ("glases",)}, {"groups": {"eyes": ("glasses", "glases")}}):
        with pytest.raises(SettingsError, match=r"'glases'.* mean glasses\?"):
            judge(SHORT.model_copy(update=unknown), JudgeInputs(dataset=dataset), tmp_path / "out", BENCH)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_is_not_whole_is_refused(arbiter: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a judge"):
        load_judge(tmp_path, BENCH)
    card = card_of(arbiter)
    (tmp_path / "judge.safetensors").write_bytes((arbiter / "judge.safetensors").read_bytes())
    for width in (4, 10**6, 10**30):
        (tmp_path / "judge.json").write_text(card.model_copy(update={"width": width}).model_dump_json())
        with pytest.raises(ArtifactError, match=r"judge\.safetensors does not fit"):
            load_judge(tmp_path, BENCH)
    (tmp_path / "judge.json").write_text(card.model_copy(update={"width": 0}).model_dump_json())
    with pytest.raises(ArtifactError, match="is not a judge"):
        load_judge(tmp_path, BENCH)
