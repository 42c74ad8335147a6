"""File names from what people call things."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aid.core.file_name import LONGEST, file_name, file_names


def test_names_stay_what_they_are_where_they_can() -> None:
    assert file_name("big-smile") == "big-smile"
    assert file_name("..a\n name, 花 ") == "a-name-花"
    assert file_names(["Wlop", "wlop", "花", "all", "?"], {"all"}) == [
        "Wlop", "style-0001", "花", "style-0003", "style-0004",
    ]  # fmt: skip
    assert file_names(["花", "style-0002", "花"], ascii_only=True) == [
        "style-0000",
        "style-0002",
        "style-0003",
    ]


@given(st.lists(st.text(max_size=80)), st.booleans())
def test_any_names_become_distinct_plain_parts_of_a_path(texts: list[str], ascii_only: bool) -> None:
    names = file_names(texts, {"all"}, ascii_only)
    assert len(names) == len(texts) == len({name.casefold() for name in names} - {"all"})
    for name in names:
        assert 0 < len(name) <= LONGEST and not set(name) & set("/\\\0\n ") and name[0] not in ".-"
        assert name.isascii() or not ascii_only
