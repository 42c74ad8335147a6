"""Which style comes up how often: exact, even and by rules that others wrote down."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.core.dataset import Record
from aid.errors import SettingsError
from aid.train.settings import BalanceSettings, FinetuneSettings
from aid.train.step.order import Order
from aid.train.step.plan import order_styles as order_by
from aid.train.step.share import author_repeats, repeated, shares_of

STYLES = ("ann", "bob", "cleo", "dora")


def records(counts: dict[str, int], tags: tuple[str, ...] = (), fixed: int = 0) -> list[Record]:
    made: list[Record] = []
    for style, count in counts.items():
        for index in range(count):
            made.append(
                Record(
                    sha256="", source=f"{style}/{index}", file="", style=style, tags=tags, fixed=fixed,
                    split="train", width=(64, 96)[index % 2], height=64, row=len(made),
                )
            )  # fmt: skip
    return made


COUNTS = st.dictionaries(st.sampled_from(STYLES), st.integers(1, 40), min_size=1)
ROUNDS = st.lists(st.lists(st.floats(0, 4), min_size=4, max_size=4), min_size=1, max_size=12)


@given(COUNTS, ROUNDS, st.integers(1, 60), st.integers(1, 7))
def test_each_style_has_its_share_to_within_half_a_picture(
    counts: dict[str, int], rounds: list[list[float]], places: int, size: int
) -> None:
    order = Order(records(counts), size, 0, places=places, live=True)
    due, seen = Counter[str](), Counter[str]()
    for weights in rounds:
        shares = {style: weights[index] + 0.01 for index, style in enumerate(counts)}
        first = order.end
        order.lay(shares)
        for step in range(first, order.end):
            batch = order.batch(step)
            assert len(batch) <= size and len({record.width for record in batch}) == 1
            seen.update(record.style for record in batch)
        for style in counts:
            due[style] += order.places * shares[style] / sum(shares.values())  # type: ignore[assignment]
            assert abs(seen[style] - due[style]) <= 0.5 + 1e-6


@given(COUNTS, st.integers(0, 5))
def test_a_style_uses_all_its_pictures_before_any_again(counts: dict[str, int], seed: int) -> None:
    order = order_styles(records(counts), settings("equal", seed), 3)
    seen = Counter(record.source for step in range(40) for record in order.batch(step))
    for style, count in counts.items():
        own = [seen[f"{style}/{index}"] for index in range(count)]
        cut = 1 + 3  # the round that the 40th step lies in may have more of them
        assert max(own) - min(own) <= cut


def order_styles(made: list[Record], chosen: FinetuneSettings, size: int) -> Order:
    return order_by(made, chosen, size, 0)


def settings(rule: str, seed: int = 0) -> FinetuneSettings:
    balance = BalanceSettings.model_validate({"rule": rule})
    return FinetuneSettings(steps=9, batch_size=3, seed=seed, balance=balance)


def test_equal_is_equal_and_by_count_counts() -> None:
    made = records({"ann": 4, "bob": 44})
    for rule, expected in (("by_count", {"ann": 4, "bob": 44}), ("equal", {"ann": 24, "bob": 24})):
        order = order_styles(made, settings(rule), 4)
        order.batch(0)
        assert order.rounds[0].counts == expected
        assert Counter(r.style for step in range(order.end) for r in order.batch(step)) == expected


def test_a_round_is_even_at_every_step() -> None:
    order = order_styles(records({"ann": 2, "bob": 78}), settings("equal"), 4)
    seen = Counter[str]()
    for step in range(20):
        seen.update(record.style for record in order.batch(step))
        assert abs(seen["ann"] - seen["bob"]) <= 8, "each bucket may hold back three"


def test_steps_can_be_asked_for_in_any_order() -> None:
    made = records({"ann": 5, "bob": 9})
    forth, back = (order_styles(made, settings("equal"), 4) for _ in range(2))
    ahead = [forth.batch(step) for step in range(30)]
    assert [back.batch(step) for step in reversed(range(30))] == ahead[::-1]


def test_a_live_order_waits_for_its_shares() -> None:
    order = Order(records({"ann": 8}), 4, 0, live=True)
    assert not order.known(0)
    order.lay({"ann": 1.0})
    assert order.known(0) and order.known(order.end - 1) and not order.known(order.end)


@pytest.mark.parametrize(
    ("artist", "count", "repeats"),
    [("ann", 24, 1), ("ann", 25, 4), ("ann", 30, 3), ("ann", 60, 1), ("ann", 400, 1), ("", 30, 1)],
)
def test_the_authors_repeats_of_artists(artist: str, count: int, repeats: int) -> None:
    assert set(author_repeats(records({artist: count}))) == {repeats}


@pytest.mark.parametrize(
    ("tags", "count", "repeats"),
    [
        (("miku",), 49, 2),  # 100 / 49 of the artist; too few of the character
        (("miku",), 50, 10),  # 2 * 20, clamped
        (("miku", "luka"), 400, 6),  # 2.5 * 2.5, cut off
        (("miku", "amazing quality"), 2000, 5),
        (("miku", "high quality"), 2000, 1),
        (("miku", "best quality"), 500, 5),  # 2 * 2.5
        (("miku", "worst quality"), 50, 0),
    ],
)
def test_the_authors_repeats_of_characters_and_quality(
    tags: tuple[str, ...], count: int, repeats: int
) -> None:
    fixed = sum("quality" not in tag for tag in tags)
    assert set(author_repeats(records({"ann": count}, tags, fixed))) == {repeats}


def test_by_the_authors_rule_the_repeats_share_an_epoch() -> None:
    made = records({"ann": 25, "bob": 100}) + records({"cleo": 30}, ("low quality",))
    shares = shares_of(repeated(made, "author"), "author")
    assert shares == {"ann": 100, "bob": 100}
    order = order_styles(made, settings("author"), 5)
    order.batch(0)
    assert sum(order.rounds[0].counts.values()) == pytest.approx(len(made), abs=1)


def test_a_picture_comes_up_as_often_as_its_folder_says() -> None:
    made = [
        record.model_copy(update={"repeats": {"ann": 4, "bob": 1, "cleo": 0}[record.style]})
        for record in records({"ann": 6, "bob": 6, "cleo": 3})
    ]
    order = order_styles(made, settings("repeats"), 3)
    steps = range(2000)
    seen = Counter(record.source for step in steps for record in order.batch(step))
    often, seldom = ([n for name, n in seen.items() if name.startswith(style)] for style in ("ann", "bob"))
    assert len(often) == len(seldom) == 6 and set(seen) == {r.source for r in made if r.style != "cleo"}
    assert max(often) - min(often) <= 4 and max(seldom) - min(seldom) <= 1
    assert sum(often) == pytest.approx(4 * sum(seldom), rel=0.01)


def test_a_folder_s_number_that_is_no_count_is_told() -> None:
    made = [record.model_copy(update={"repeats": 12345678}) for record in records({"ann": 2})]
    with pytest.raises(SettingsError, match=r"ann/0 comes up 12345678 times.*1000 at most"):
        order_styles(made, settings("repeats"), 4)


def test_where_no_picture_comes_up_the_error_says_why() -> None:
    never = [record.model_copy(update={"repeats": 0}) for record in records({"ann": 2, "bob": 1})]
    with pytest.raises(
        SettingsError, match=r"none of the 3 pictures comes up: every folder.* 0 times.*1_NAME"
    ):
        order_styles(never, settings("repeats"), 4)
    with pytest.raises(SettingsError, match=r"none of the 30 pictures comes up: all are .*low quality"):
        order_styles(records({"ann": 30}, ("low quality",)), settings("author"), 4)
