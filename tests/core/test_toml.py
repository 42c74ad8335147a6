from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.linear import is_linear

from aid.core.toml import has_endless_key, parse_toml, toml

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(text, values, max_size=5))
def test_whatever_is_written_is_read_back(value: dict[str, object]) -> None:
    assert tomllib.loads(toml(value)) == value


def test_it_reads_like_a_person_wrote_it() -> None:
    document = toml(
        {"title": "A", "size": [1, 2], "none": None, "row": [{"a": 1}, {"b": {"c": "d"}}], "t": {"x": 0.5}}
    )
    assert document == (
        'title = "A"\nsize = [1, 2]\n\n[[row]]\na = 1\n\n[[row]]\nb = { c = "d" }\n\n[t]\nx = 0.5\n'
    )


def test_numbers_beyond_all_bounds_survive() -> None:
    read = tomllib.loads(toml({"up": math.inf, "down": -math.inf, "nothing": math.nan}))
    assert read["up"] == math.inf and read["down"] == -math.inf and math.isnan(read["nothing"])


def test_what_toml_has_no_word_for_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        toml({"a": object()})


@pytest.mark.parametrize(
    "key",
    ["a" + ".a" * 5000, "[" + "a . " * 99 + "a]", '"\\"".' * 70 + "x = 1", "x = {" + "'a'." * 70 + "a=1}"],
)
def test_endless_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="a key of 64 dots"):
        parse_toml(key)


@pytest.mark.parametrize("text", ["..." * 99, "a." * 99])
def test_dots_in_strings_and_comments_are_text(text: str) -> None:
    document = (
        f'x = "{text}"  # {text}\ny = \'{text}\'\nz = """\n"{text}\n"{text}"""\nw = \'\'\'\'{text}\'\'\'\n'
    )
    assert parse_toml(document)["z"] == f'"{text}\n"{text}'


@given(st.text(alphabet="a.\"'\\ \n=[]{}-") | text)
def test_documents_are_parsed_as_by_the_standard_library(document: str) -> None:
    try:
        expected = tomllib.loads(document)
    except ValueError:
        with pytest.raises(ValueError):
            parse_toml(document)
        return
    assert parse_toml(document) == expected


@pytest.mark.parametrize("piece", ["a.", "a ", '"', "'", '"\\', "\t", "a", ".", '"a".', "a.b c."])
def test_endless_keys_are_found_in_linear_time(piece: str) -> None:
    assert is_linear(lambda size: has_endless_key("=" + piece * size), 200_000 // len(piece))
