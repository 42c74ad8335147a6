"""Words that follow from the data, and tags by category."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aid.core.dataset import Dataset, Record, count_tags, drop_chance, exchange_sides
from aid.dataset.finding.find import find
from aid.dataset.finding.tag import Patterns, TagRules, Tags, read_tags
from aid.dataset.finding.wording import (
    added_words,
    character_features,
    quality_word,
    rating_words,
    size_word,
    without_features,
)
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import FileError


def test_categories_come_off_and_characters_come_first() -> None:
    tags = read_tags(
        "artist: ask, smile, character:hatsune_miku, style: impasto, rating: general, series: vocaloid"
    )
    assert tags == Tags(
        ("hatsune miku", "by ask", "smile", "impasto", "rating: general", "vocaloid"), 1, ("hatsune miku",)
    )
    assert read_tags("1girl, solo ||| smile, hat") == Tags(("1girl", "solo", "smile", "hat"), 2)
    assert read_tags("smile", ["Luka", ""]) == Tags(("luka", "smile"), 1, ("luka",))


def test_rules_by_pattern_and_implication() -> None:
    settings = PrepareSettings(
        undesired_tags=("* logo", "signature"),
        implied_tags={"very long hair": "long hair", "a": "b", "b": "a"},
        first_tags=("*girl",),
    )
    rules = TagRules.of(settings)
    tags = rules.apply_to(read_tags("smile, long_hair, very long hair, a, b, aid logo, Signature, 1girl"))
    assert tags == Tags(("1girl", "smile", "very long hair", "a"), 1)
    assert "girl" in Patterns.of(["*girl"]) and "girls" not in Patterns.of(["*girl"])
    assert "a.b hair" in Patterns.of(["a.b *"]) and "axb hair" not in Patterns.of(["a.b *"])


def test_refused_tags_set_a_picture_aside(tmp_path: Path) -> None:
    for name, tags in (("a", "smile"), ("b", "smile, 4koma comic")):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(tags)
    found = find(PrepareInputs(pictures={"in": tmp_path}), PrepareSettings(refused_tags=("* comic",)))
    assert [candidate.source for candidate in found.candidates] == ["in/a.png"]
    assert found.quarantined["in/b.png"].reason == "has the tag 4koma comic, which is refused"


def test_scores_sizes_and_ratings_in_words() -> None:
    scores = (10, 9, 8.9, 7.5, 6, 5.9, 4, 2.5, 2.4, 1, 0.9)
    assert [quality_word(score).split()[0] for score in scores] == [
        "amazing", "amazing", "best", "best", "high", "normal", "normal", "low", "worst", "worst", "horrible",
    ]  # fmt: skip
    assert [size_word(256, 256), size_word(257, 256), size_word(640, 640), size_word(640, 641)] == [
        "thumbnail", "lowres", "lowres", "",
    ]  # fmt: skip
    assert rating_words("G") == rating_words("safe") == ("rating: general", "safe")
    assert rating_words("explicit") == ("rating: explicit", "nsfw") and rating_words("great") == ()
    settings = PrepareSettings(size_words=True)
    assert added_words((100, 100), 9.5, "s", settings) == (
        "rating: sensitive",
        "thumbnail",
        "amazing quality",
    )
    assert added_words((100, 100), 9.5, "s", PrepareSettings(quality_words=False, rating_words=False)) == ()


def test_a_characters_own_features_go() -> None:
    settings = PrepareSettings(character_features=("* hair",), feature_pictures=4, feature_share=0.5)
    miku = [Tags(("miku", "green hair", "smile"), 1, ("miku",))] * 3
    pictures = [*miku, Tags(("miku", "red hair", "smile"), 1, ("miku",)), Tags(("red hair",))]
    features = character_features(pictures, settings)
    assert features == {"miku": frozenset({"green hair"})}
    assert without_features(miku[0], features).tags == ("miku", "smile")
    both = Tags(("miku", "luka", "green hair"), 2, ("miku", "luka"))
    assert without_features(both, features) == both, "of two characters, whose hair is it?"
    assert character_features(pictures[:3], settings) == {}


def test_the_authors_rule_for_frequent_tags() -> None:
    assert [drop_chance(n) for n in (0, 1, 100, 200, 1000)] == [0, 0, 0, 0.5, 0.9]
    records = [record(("hat", "smile")), record(("hat",)), record((), style="")]
    assert count_tags(records) == {"by ask": 2, "hat": 2, "smile": 1}


@given(st.integers(1, 10**6))
def test_a_frequent_tag_is_left_a_hundred_times(count: int) -> None:
    assert abs(count * (1 - drop_chance(count)) - min(count, 100)) < 1e-6


def test_left_and_right_are_exchanged_at_once() -> None:
    """The author's own code replaced one after the other and ended with `left` twice."""
    assert exchange_sides("left hand up, RIGHT eye, Left-handed, bright, lefty, copyright") == (
        "right hand up, LEFT eye, Right-handed, bright, lefty, copyright"
    )
    mirrored = record(("looking left", "right_arrow")).mirrored
    assert mirrored.tags == ("looking right", "left_arrow") and mirrored.description == "She turns right."


@given(st.text())
def test_exchanging_twice_changes_nothing(text: str) -> None:
    assert exchange_sides(exchange_sides(text)) == text


def record(tags: tuple[str, ...], style: str = "ask") -> Record:
    return Record(
        sha256="0" * 64, source="in/a.png", file="a.webp", style=style, tags=tags, split="train",
        description="She turns left.", width=64, height=64, row=0,
    )  # fmt: skip


def test_kohyas_metadata_and_imagefolders_lists(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.jpg", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (len(name) * 9, 0, 0)).save(tmp_path / name)
    listed = {
        "/home/somebody/train/a": {"caption": "a girl in a hat", "tags": "hat, 1girl", "image_size": [1, 2]},
        str(tmp_path / "deep" / "b.jpg"): {"caption": "smile, solo", "train_resolution": [512, 512]},
        "C:\\pictures\\c.webp": {"tags": "left"},
        "../../etc/passwd": {"tags": "x"},
        "odd": 3,
    }
    path = tmp_path / "meta_lat.json"
    path.write_text(json.dumps(listed))
    settings = PrepareSettings()
    found = find(PrepareInputs(pictures={"in": tmp_path}), settings)
    assert [(c.source, c.tags, c.description) for c in found.candidates] == [
        ("in/a.png", ("hat", "1girl"), "a girl in a hat"),
        ("in/deep/b.jpg", ("smile", "solo"), ""),
        ("in/c.webp", ("left",), ""),
    ]
    assert set(found.quarantined) == {"in/passwd", "in/meta_lat.json:odd"}
    path.unlink()
    lines = [
        {"file_name": "a.png", "text": "a hat"},
        {"image_path": "c.webp", "caption": "Words.", "tags": "hat", "image_size": [64, 64]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = find(PrepareInputs(pictures={"in": tmp_path}), settings)
    assert [(c.tags, c.description) for c in found.candidates] == [(("a hat",), ""), (("hat",), "Words.")]


def test_a_manifests_words_reach_the_records(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (80, 80), "red").save(source / "a.png")
    line = {
        "file": "a.png", "style": "ask", "tags": "smile", "characters": "Luka", "score": 9.1, "rating": "g",
        "description": "A girl on the left.",
    }  # fmt: skip
    (source / "manifest.jsonl").write_text(json.dumps(line))
    out = prepare(PrepareSettings(resolution_px=64), PrepareInputs(pictures={"in": source}), tmp_path / "out")
    [made] = Dataset(out).records
    assert made.caption == "by ask, luka, smile, rating: general, safe, amazing quality"
    assert (made.fixed, made.score, made.description) == (1, 9.1, "A girl on the left.")


@pytest.mark.parametrize("content", ["[", "[1]", '"text"', "[" * 100_000])
def test_metadata_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "meta_cap.json").write_text(content)
    with pytest.raises(FileError, match=r"meta_cap\.json is not (JSON|kohya's metadata)"):
        find(PrepareInputs(pictures={"in": tmp_path}), PrepareSettings())
