from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.core.blocks import BLOCKS, SD1_BLOCKS, block_range, expand
from aid.errors import AidError, SettingsError


def test_there_are_26() -> None:
    assert len(SD1_BLOCKS) == 26 and SD1_BLOCKS[0] == "BASE" and SD1_BLOCKS[13] == "M00"


def test_ranges_and_later_keys_win() -> None:
    weights = expand({"IN": 0.5, "IN03-05": 1.0, "M00": 0.25, "OUT00-OUT02": [0.1, 0.2, 0.3]})
    assert weights["IN02"] == 0.5 and weights["IN04"] == 1.0
    assert [weights[f"OUT0{i}"] for i in range(4)] == [0.1, 0.2, 0.3, 0.0]


@given(st.sampled_from(sorted(BLOCKS)), st.data())
def test_all_numbers_in_order_mean_what_a_table_does(family: str, data: st.DataObject) -> None:
    """26 of SD1 and SD2, 20 of SDXL, as a list and as text."""
    count = {"sd1": 26, "sd2": 26, "sdxl": 20}[family]
    each_way = (count - 2) // 2
    numbers = data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    base, ins, middle, outs = (
        numbers[0],
        numbers[1 : 1 + each_way],
        numbers[1 + each_way],
        numbers[2 + each_way :],
    )
    table = expand({"BASE": base, "IN": ins, "M00": middle, "OUT": outs}, family=family)
    assert expand(numbers, family=family) == table
    assert expand(" , ".join(map(str, numbers)), family=family) == table
    assert expand(numbers, family=family, extra=("VAE",)) == {**table, "VAE": base}
    with pytest.raises(SettingsError, match=f"expected {count} for {family}: BASE, .* The first is BASE's"):
        expand(numbers[1:], family=family)


def test_errors_say_what_was_meant() -> None:
    with pytest.raises(SettingsError, match=r"IN12 is not a block of sd1.*Did you mean IN1"):
        expand({"IN12": 1.0})
    with pytest.raises(SettingsError, match="12, one a block"):
        expand({"OUT": [1.0, 2.0]})
    with pytest.raises(SettingsError, match="backwards"):
        block_range("OUT05-02")


@given(st.text(max_size=12))
def test_any_text_is_a_range_or_a_clear_error(name: str) -> None:
    try:
        assert set(block_range(name)) <= set(SD1_BLOCKS)
    except AidError as error:
        assert str(error)
