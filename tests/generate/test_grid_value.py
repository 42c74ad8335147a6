"""Values of an axis as people type them: ranges, counts, lists, quotes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.errors import SettingsError
from aid.generate.grid.settings import GridSettings
from aid.generate.grid.value import MOST, numbers, whole_numbers, words, written


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", [1]),
        ("1-5", [1, 2, 3, 4, 5]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("1-9(+2)", [1, 3, 5, 7, 9]),
        ("1-10 (+4)", [1, 5, 9]),
        ("10-5 (-3)", [10, 7]),
        ("3-10[4]", [3, 5, 7, 10]),
        ("1-10 [5]", [1, 3, 5, 7, 10]),
        ("-3--1", [-3, -2, -1]),
        ("20, 30,,1-3", [20, 30, 1, 2, 3]),
        ("7[1]"[:1], [7]),
        ("4-9[1]", [4]),
        ("", []),
    ],
)
def test_whole_numbers(text: str, values: list[int]) -> None:
    assert whole_numbers(text) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7, 7.5", [7, 7.5]),
        ("0-1(+0.1)", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("1-2(+0.3)", [1, 1.3, 1.6, 1.9]),
        ("2-1 (-0.25)", [2, 1.75, 1.5, 1.25, 1]),
        ("0-1[3]", [0, 0.5, 1]),
        (".5-2.", [0.5, 1.5]),
    ],
)
def test_numbers(text: str, values: list[float]) -> None:
    assert numbers(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ten", "'ten' is no number"),
        ("1.5", "no whole number"),
        ("1-5(-1)", "never reaches"),
        ("1-5(0)", "never reaches"),
        ("1-5[0]", "no value"),
        ("1-99999999999999999999", "at most 10,000"),
        ("1-2[999999999]", "at most 10,000"),
        ("1e9", "is no number"),
        ("٣٣٣-[", "is no number"),
    ],
)
def test_what_is_no_number_is_named(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        whole_numbers(text)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\x00", codec="utf-8")), min_size=1))
def test_any_list_of_words_is_read_back(values: list[str]) -> None:
    stripped = [" ".join(value.split()) for value in values]
    assert words(written(stripped)) == stripped


@given(st.text(max_size=60))
def test_any_text_is_values_or_an_error_of_ours(text: str) -> None:
    for read in (words, whole_numbers, numbers):
        try:
            assert len(read(text)) <= MOST * 30
        except SettingsError as error:
            assert error.found


@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 30))
def test_ranges_keep_within_their_ends(start: int, end: int, step: int) -> None:
    sign = "+" if end >= start else "-"
    for text in (f"{start}-{end}({sign}{step})", f"{start}-{end}[{step}]"):
        found = whole_numbers(text)
        assert found[0] == start and all(min(start, end) <= value <= max(start, end) for value in found)
    assert whole_numbers(f"{start}-{end}") == list(range(start, end + 1) or range(start, end - 1, -1))


def test_tables_mean_the_same_as_text() -> None:
    table = GridSettings.model_validate({"x": {"steps": [10, 20]}, "y": {"replace": ["cat", "a, b"]}})
    assert table == GridSettings(x="steps=10,20", y='replace="cat","a, b"')
    assert GridSettings.model_validate({"x": {"steps": "1-3"}}).x == "steps=1-3"


@pytest.mark.parametrize(
    "given_", [{"x": {"steps": [1], "seed": [2]}}, {"x": {"steps": [[1]]}}, {"count": 2}, {"plan": {}}]
)
def test_what_is_no_grid(given_: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one axis|texts and numbers|Extra inputs are not permitted"):
        GridSettings.model_validate(given_)
