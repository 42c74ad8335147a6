"""Which pictures are asked for: prompts, templates, plans over a dataset, lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aid.core.catalogue import load_catalogue
from aid.core.dataset import Dataset
from aid.core.shot import Shot
from aid.errors import FileError, SettingsError
from aid.generate.plan import compose, read_shots, shots_of_plan, shots_of_prompt
from aid.generate.settings import GenerateSettings, Plan
from aid.sd.picture.infotext import parse_infotext, shot_of, write_infotext

HAIR = ("red hair", "blue hair", "green hair", "black hair", "white hair")
GROUPS = {"hair": HAIR, "mood": ("smile", "frown")}


def planned(folder: Path, **plan: object) -> list[Shot]:
    settings = GenerateSettings(seed=100, plan=Plan.model_validate({"groups": GROUPS, **plan}))
    assert settings.plan is not None
    return shots_of_plan(settings, settings.plan, Dataset(folder), [], 64)


def content(shots: list[Shot], style: str) -> set[tuple[str, ...]]:
    return {shot.tags for shot in shots if shot.style == style}


def test_styles_stand_together_before_the_prompt() -> None:
    settings = GenerateSettings(prompt="red hair", styles=("matcha", "by wlop"), negative_prompt="badv3")
    assert compose(settings, settings.styles, (), ["badv3"]) == ("by matcha, by wlop, red hair", "badv3")


def test_the_template_is_the_cards() -> None:
    settings = GenerateSettings(prompt="1girl", styles=("matcha",), negative_prompt="blurry", template=True)
    positive, negative = compose(settings, settings.styles, (), ["aid210"])
    card = load_catalogue().parameters
    assert (positive, negative) == (card.positive("by matcha", "1girl"), card.negative("blurry"))
    assert "highres, by matcha, best lighting" in positive
    assert negative == "aid210, blurry"


def test_empty_places_of_the_template_leave_no_gap() -> None:
    positive, negative = compose(GenerateSettings(template=True), (), (), [])
    assert positive.endswith("extremely delicate and beautiful")
    assert "highres, best lighting" in positive
    assert negative == ""


def test_brackets_in_names_weigh_nothing_and_in_prompts_do() -> None:
    settings = GenerateSettings(prompt="(smile:1.2)")
    assert compose(settings, ("ink (b)",), ("miku (vocaloid)",), [])[0] == (
        r"by ink \(b\), miku \(vocaloid\), (smile:1.2)"
    )


def test_what_tags_call_is_left_out_and_what_prompts_call_is_not() -> None:
    settings = GenerateSettings(prompt="<lora:own:1>")
    tags = ("smile", "<lora:somebodys:1>", "cat <lora:x:0.5:0.5>")
    assert compose(settings, ("ink",), tags, [])[0] == "by ink, smile, cat, <lora:own:1>"


def test_seeds_count_up_and_sizes_are_the_models_own() -> None:
    settings = GenerateSettings(prompt="cat", styles=("matcha",), count=3, seed=7, height=96)
    shots = shots_of_prompt(settings, [], 64)
    assert [(shot.seed, shot.width, shot.height, shot.style) for shot in shots] == [
        (7, 64, 96, "matcha"), (8, 64, 96, "matcha"), (9, 64, 96, "matcha"),
    ]  # fmt: skip


def test_comments_are_no_part_of_a_picture(dataset_folder: Path) -> None:
    """As A1111 strips them from all four prompts, so that a picture's text has none either."""
    told = {
        "prompt": "# who\nred hair, # or blue\nsmile", "negative_prompt": "blurry # always",
        "hires": {"prompt": "#", "negative_prompt": "bad # too"},
    }  # fmt: skip
    (shot,) = shots_of_prompt(GenerateSettings.model_validate(told), [], 64)
    assert (shot.prompt, shot.negative_prompt) == ("red hair,\nsmile", "blurry")
    assert shot.hires is not None and (shot.hires.prompt, shot.hires.negative_prompt) == ("", "bad")
    (kept,) = shots_of_prompt(GenerateSettings.model_validate({**told, "comments": False}), [], 64)
    assert (kept.prompt, kept.negative_prompt) == (told["prompt"], told["negative_prompt"])
    planned = GenerateSettings(prompt="smile # !", plan=Plan(groups=GROUPS, shots_per_style=1))
    shots = shots_of_plan(planned, planned.plan or Plan(), Dataset(dataset_folder), [], 64)
    assert all(shot.prompt.endswith("smile") for shot in shots)


def test_prompts_are_as_a_pictures_text_tells_them() -> None:
    """So that it is drawn again to the byte."""
    told = GenerateSettings(prompt=" \n a cat, \n\n hat ", negative_prompt="bad\n")
    (shot,) = shots_of_prompt(told, [], 64)
    assert shot_of(parse_infotext(write_infotext(shot))) == shot
    assert (shot.prompt, shot.negative_prompt) == ("a cat,\n\nhat", "bad")
    pasted = GenerateSettings(prompt="a cat\nNegative prompt: bad")
    with pytest.raises(SettingsError, match=r"begins with 'Negative prompt:'.*by itself"):
        shots_of_prompt(pasted, [], 64)


def test_a_plan_draws_tags_that_occur_with_the_style(dataset_folder: Path) -> None:
    shots = planned(dataset_folder, shots_per_style=40)
    assert len(shots) == 120
    assert content(shots, "alpha") == {
        ("red hair", "smile"), ("red hair",), ("blue hair", "smile"), ("blue hair",)
    }  # fmt: skip
    assert {tag for tags in content(shots, "beta") for tag in tags} == {
        "red hair", "green hair", "smile", "frown"
    }  # fmt: skip
    assert content(shots, "gamma (ink)") == {("smile",)}
    assert shots[0].prompt == ", ".join(("by alpha", *shots[0].tags))
    assert [shot.seed for shot in shots[:3]] == [100, 101, 102]


def test_a_plan_is_decided_by_its_seed_and_by_no_other_style(dataset_folder: Path) -> None:
    every = planned(dataset_folder, shots_per_style=20)
    assert planned(dataset_folder, shots_per_style=20) == every
    beta = [shot.tags for shot in every[20:40]]
    assert [shot.tags for shot in planned(dataset_folder, shots_per_style=20, styles=("beta",))] == beta
    assert [shot.tags for shot in planned(dataset_folder, shots_per_style=5, styles=("beta",))] == beta[:5]


def test_no_two_shots_of_a_plan_share_a_seed(dataset_folder: Path) -> None:
    shots = planned(dataset_folder, shots_per_style=5)
    assert [shot.seed for shot in shots] == list(range(100, 115))
    some_empty = planned(dataset_folder, shots_per_style=5, combinations="unseen", groups={"hair": HAIR})
    assert {shot.style for shot in some_empty} == {"alpha", "beta"}
    assert [shot.seed for shot in some_empty] == list(range(100, 110))


def test_unseen_combinations_are_of_seen_parts(dataset_folder: Path) -> None:
    shots = planned(dataset_folder, shots_per_style=30, combinations="unseen")
    assert {tag for tags in content(shots, "alpha") for tag in tags} == {"green hair", "frown"}
    assert {tags[0] for tags in content(shots, "beta")} == {"blue hair"}
    assert content(shots, "gamma (ink)") == {("frown",)}  # it shows no hair at all
    anything = planned(dataset_folder, shots_per_style=60, combinations="any")
    hair = {tag for tags in content(anything, "alpha") for tag in tags if "hair" in tag}
    assert hair == {"red hair", "blue hair", "green hair"}


def test_without_groups_content_is_a_real_pictures(dataset_folder: Path) -> None:
    shots = planned(dataset_folder, shots_per_style=20, groups={})
    assert content(shots, "alpha") == {("red hair", "smile"), ("blue hair",)}
    with pytest.raises(SettingsError, match="without groups"):
        planned(dataset_folder, groups={}, combinations="unseen")


def test_a_plan_leaves_out_pictures_with_a_tag(dataset_folder: Path) -> None:
    contents = content(planned(dataset_folder, groups={}, shots_per_style=30), "alpha")
    unwanted = sorted({tag for tags in contents for tag in tags})[0]
    kept = content(planned(dataset_folder, groups={}, shots_per_style=30, without=(unwanted,)), "alpha")
    assert kept and not any(unwanted in tags for tags in kept)


def test_plans_that_can_not_be_met(dataset_folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"delta has no training picture.*alpha, beta, gamma"):
        planned(dataset_folder, styles=("delta",))
    with pytest.raises(SettingsError, match=r"groups\.hair: no picture .* 'red hairr'.*mean red hair\?"):
        planned(dataset_folder, groups={"hair": ("blue hair", "red hairr")})
    with pytest.raises(SettingsError, match="asks for no picture"):
        planned(dataset_folder, combinations="unseen", groups={"hair": ("white hair",)})


def test_lists_of_shots(tmp_path: Path) -> None:
    shots = [Shot(prompt="cat", seed=1), Shot(prompt="dog\u2028", seed=2)]
    lines = [json.dumps({"file": "a.png", "shot": shots[0].model_dump()}), shots[1].model_dump_json(), ""]
    (tmp_path / "shots.jsonl").write_text("\n".join(lines), "utf-8")
    assert read_shots(tmp_path) == read_shots(tmp_path / "shots.jsonl") == shots
    (tmp_path / "shots.jsonl").write_text('{"prompt": "cat", "sampler": "lms karras"}', "utf-8")
    assert read_shots(tmp_path) == [Shot(prompt="cat", sampler="LMS", schedule="Karras")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "a", "steps": 0}', "line 2: steps is 0"),
        ('{"prompt": "a", "seed": -1}', "line 1: seed is -1: .*a random seed can't be drawn again"),
        ('{"prompt": "a", "colour": 1}', "line 1: colour is 1"),
        ("[1]", "line 1: the line is"),
        ("nonsense", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("", "is empty"),
    ],
)
def test_lists_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "shots.jsonl").write_text(content)
    with pytest.raises(FileError, match=message):
        read_shots(tmp_path)
