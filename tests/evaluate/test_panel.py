"""Which questions a dataset's tags suggest, and how answers are counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.errors import SettingsError
from aid.judging.panel import Verdict, answers, assemble, derive, has_tag

Pictures = list[tuple[str, Sequence[str]]]


def portraits() -> Pictures:
    """Two styles; colour, length, expression and glasses independent; `ink` has no length."""
    return [
        (
            style,
            (
                f"{colour} hair",
                *((f"{length} hair",) if style == "oil" else ()),
                expression,
                *(("glasses",) if index % 3 == 0 else ()),
                "portrait",
            ),
        )
        for style in ("ink", "oil")
        for index in range(6)
        for colour in ("black", "blonde", "red")
        for length in ("long", "short")
        for expression in ("smile", "frown")
    ]


def test_alternatives_are_found_by_last_word_and_by_what_never_goes_together() -> None:
    groups, tags = derive(portraits(), 0.02, 0.005, 32)
    assert groups == {
        "hair": ("black hair", "blonde hair", "red hair"),
        "long/short hair": ("long hair", "short hair"),
        "frown/smile": ("frown", "smile"),
    }
    assert tags == ("glasses",)  # `portrait` is always there


def test_a_few_mistagged_pictures_do_not_split_a_group() -> None:
    pictures = [*portraits() * 5, ("oil", ("black hair", "red hair", "long hair", "smile"))]
    groups, _ = derive(pictures, 0.02, 0.005, 32)
    assert groups["hair"] == ("black hair", "blonde hair", "red hair")


def test_only_the_most_frequent_single_tags_are_kept() -> None:
    pictures: Pictures = [
        ("", [f"t{number}" for number in range(1, 6) if row % number == 0]) for row in range(100)
    ]
    _, tags = derive(pictures, 0.02, 0.005, 2)
    assert tags == ("t2", "t3")


words = st.sampled_from(["red", "blue", "long", "hair", "style", "eyes", "withheld", "without", ""])
tag = st.lists(words, max_size=2).map(" ".join)
picture = st.tuples(st.sampled_from(["", "ink", "oil"]), st.lists(tag, max_size=5, unique=True))


@given(st.lists(picture, max_size=25))
def test_what_is_derived_always_makes_a_panel(pictures: Pictures) -> None:
    groups, tags = derive(pictures, 0.02, 0.005, 32)
    panel = assemble(pictures, groups, tags)
    named = [*panel.tags, *(tag for options in panel.groups.values() for tag in options)]
    assert len(named) == len(set(named))
    assert len(panel.questions()) == len(set(panel.questions()))
    for options in panel.groups.values():
        for _, of_picture in pictures:
            assert len(set(options).intersection(of_picture)) <= 1  # 25 pictures: no overlap is noise


def test_a_picture_is_asked_only_what_its_style_can_show() -> None:
    pictures = portraits()
    panel = assemble(pictures, *derive(pictures, 0.02, 0.005, 32))
    seen = Verdict(
        style="oil",
        choices={"hair": "red hair", "long/short hair": "long hair", "frown/smile": "smile"},
        present={"glasses": True},
    )
    oil = answers(panel, ("oil", ("red hair", "short hair", "glasses")), seen)
    assert oil == {"style": True, "hair": True, "long/short hair": False, "glasses": True}
    ink = answers(panel, ("ink", ("black hair", "long hair", "smile")), seen)
    assert ink == {"style": False, "hair": False, "frown/smile": True, "without glasses": False}
    strange = answers(panel, ("fresco", ("red hair", "long hair")), seen)
    assert strange == {"hair": True, "long/short hair": True, "without glasses": False}
    assert answers(panel, ("oil", ()), seen) == {"style": True}
    assert "hair" not in answers(panel, ("oil", ("red hair", "black hair")), seen)


def test_any_tag_can_be_looked_up() -> None:
    pictures = portraits()
    panel = assemble(pictures, *derive(pictures, 0.02, 0.005, 32))
    seen = Verdict(style="oil", choices=dict.fromkeys(panel.groups, "red hair"), present={"glasses": False})
    assert has_tag(panel, "red hair", seen) is True
    assert has_tag(panel, "black hair", seen) is False
    assert has_tag(panel, "glasses", seen) is False
    assert has_tag(panel, "hat", seen) is None


@pytest.mark.parametrize(
    ("groups", "tags", "message"),
    [
        ({"hair": ("red hair",)}, (), "hair has 1 tag"),
        ({"hair": ("red hair", "black hair")}, ("red hair",), "red hair is in two groups"),
        ({"style": ("ink", "oil")}, (), "style is the name of a score"),
        ({"glasses": ("red hair", "black hair")}, ("glasses",), "glasses has the name of a tag"),
    ],
)
def test_groups_that_cannot_be_meant_are_named(
    groups: dict[str, tuple[str, ...]], tags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        assemble(portraits(), groups, tags)
