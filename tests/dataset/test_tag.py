"""Tags as people's sidecars really spell them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from aid.dataset.finding.tag import TagRules, normalise, normalise_style, parse_tags
from aid.dataset.settings import PrepareSettings


def test_danbooru_spelling() -> None:
    text = "1girl, Long_Hair,  hatsune_miku_(vocaloid), ^_^, >_<, o_o, (o)_(o), blue__eyes\nsmile,1girl"
    assert parse_tags(text) == (
        "1girl", "long hair", "hatsune miku (vocaloid)", "^_^", ">_<", "o_o", "(o)_(o)", "blue eyes", "smile",
    )  # fmt: skip


def test_words_of_pony_diffusion_keep_their_underscores() -> None:
    tags = parse_tags("Score_9, score_8_up, source_anime, rating_safe, score_sheet, source_(x)")
    assert tags == ("score_9", "score_8_up", "source_anime", "rating_safe", "score sheet", "source (x)")
    left = TagRules.of(PrepareSettings(undesired_tags=("score_*", "rating_safe"))).apply(tags)
    assert left == ("source_anime", "source (x)")


def test_escaped_brackets_and_control_characters() -> None:
    assert parse_tags(r"ganyu_\(genshin_impact\), a\\(b\\)") == ("ganyu (genshin impact)", "a(b)")
    assert parse_tags("red\x00hair, \x1b[31mevil\x7f,\u200b,\r\n,，") == ("red hair", "[31mevil", "，")


def test_rules_replace_drop_and_leave_the_trigger_out() -> None:
    settings = PrepareSettings(
        undesired_tags=("Bad_Tag",), tag_replacements={"fuzichico": "fuzichoco, rename", "Signed": ""}
    )
    tags = parse_tags("by_ask, bad tag, fuzichico, signed, smile, rename, by other")
    assert TagRules.of(settings).apply(tags, "ask") == ("fuzichoco", "rename", "smile", "by other")


def test_style_names() -> None:
    assert [normalise_style(name) for name in ("By_Demizu_Posuka", "pixel-art", "by", "standby", "a, b")] == [
        "demizu posuka", "pixel-art", "", "standby", "a b",
    ]  # fmt: skip


@given(st.text())
@example("İ_İİ")
@example("ǰ_ǰ_")
def test_normalising_twice_changes_nothing(tag: str) -> None:
    once = normalise(tag)
    assert normalise(once) == once
    assert once.isprintable() and once == once.strip() and "  " not in once


@given(st.text())
def test_parsed_tags_survive_a_caption(text: str) -> None:
    tags = parse_tags(text)
    assert len(set(tags)) == len(tags) and "" not in tags
    assert parse_tags(", ".join(tags)) == tags
