from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.core.toml import toml

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
