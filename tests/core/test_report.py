from __future__ import annotations

import pytest

from aid.core.report import mean, proportion


def test_wilson_matches_the_textbook() -> None:
    score = proportion(8, 10)  # Wilson 1927 as tabulated: 0.490 to 0.943
    assert (score.low, score.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_certainty_still_has_an_interval() -> None:
    score = proportion(20, 20)
    assert score.value == 1.0 and 0.8 < score.low < 0.9 and score.high == 1.0


def test_mean_of_equal_values_is_sure() -> None:
    score = mean([2.0] * 5)
    assert score.value == score.low == score.high == 2.0
