"""Who is held out, and that nobody moves."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aid.dataset.split import split


def hashes(count: int, salt: str = "") -> list[str]:
    return [hashlib.sha256(f"{salt}{index}".encode()).hexdigest() for index in range(count)]


def sides(sha256s: list[str], styles: list[str], fraction: float = 0.1, minimum: int = 2) -> dict[str, str]:
    return dict(zip(sha256s, split(sha256s, styles, range(len(sha256s)), fraction, minimum), strict=True))


def test_fraction_is_met() -> None:
    held = Counter(sides(hashes(5000), ["a"] * 5000).values())["held"]
    assert 420 < held < 580  # binomial, 4 standard deviations


@given(st.integers(20, 120), st.integers(0, 60), st.text(max_size=4))
def test_new_pictures_move_no_old_ones(old: int, new: int, salt: str) -> None:
    sha256s = hashes(old + new, salt)
    before = sides(sha256s[:old], ["a"] * old, minimum=0)
    after = sides(sha256s[::-1], ["a"] * (old + new), minimum=0)
    assert {sha256: after[sha256] for sha256 in before} == before


def test_the_minimum_holds_but_never_takes_more_than_half() -> None:
    for count, held in ((1, 0), (2, 1), (3, 1), (4, 2), (40, 2)):
        sha256s = hashes(count)
        assert Counter(sides(sha256s, ["a"] * count, fraction=0.0).values())["held"] == held
    assert "held" not in sides(hashes(40), [""] * 40, fraction=0.0).values(), "no style needs no minimum"


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), min_size=1), st.floats(0, 0.5))
def test_a_group_is_never_parted(pictures: list[tuple[int, str]], fraction: float) -> None:
    groups = [group for group, _ in pictures]
    leader = [groups.index(group) for group in groups]
    result = split(hashes(len(pictures)), [style for _, style in pictures], leader, fraction, 2)
    assert all(side == result[first] for side, first in zip(result, leader, strict=True))
    for style in "ab":
        mine = [side for side, (_, other) in zip(result, pictures, strict=True) if other == style]
        assert 2 * mine.count("held") <= len(mine)
