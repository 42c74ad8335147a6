"""Learning rates in steps, as A1111 writes them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.core.rate import read_rates, stepped_rate


def test_each_rate_holds_up_to_its_step_and_the_last_to_the_end() -> None:
    rates = read_rates("0.005:100, 1e-3 :1000,1e-5")
    found = {index: stepped_rate(rates, index) for index in (0, 99, 100, 999, 1000, 10**6)}
    assert found == {0: 0.005, 99: 0.005, 100: 1e-3, 999: 1e-3, 1000: 1e-5, 10**6: 1e-5}
    assert stepped_rate(read_rates(".005"), 7) == stepped_rate(read_rates("5e-3:100"), 700) == 0.005
    assert stepped_rate(read_rates("0.005:100, 1e-3:-1"), 700) == 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "0.005:100,",
        "0:9, 1",
        "1:5, 2:5, 3",
        "1:9, 2:5, 3",
        "1, 2:5",
        "-1",
        "1:-1, 2",
        "1:-1, 2:5, 3",
        "1:-2",
    ],
)
def test_what_is_no_course_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        read_rates(text)


@given(st.text(alphabet="0123456789.,:e- ", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        rates = read_rates(text)
        assert all(stepped_rate(rates, index) in {rate for rate, _ in rates} for index in range(200))
