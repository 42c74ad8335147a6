"""Captions as a step sees them: every option alone, and what no option may do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from aid.core.dataset import Record
from aid.sd.model.checkpoint import load_checkpoint
from aid.sd.prompt.attention import parse_attention
from aid.sd.prompt.text import Conditioning, encode_prompts
from aid.train.settings import CaptionSettings
from aid.train.step.caption import Captions, allowed, choose, come_again
from aid.train.step.condition import Remembered, encode_captions, encode_weighted

TAGS = ("red hair", "smile", "glasses")
WHOLE = CaptionSettings(shuffle=False, dropout=0.0)


def record(tags: tuple[str, ...] = TAGS, fixed: int = 0, description: str = "") -> Record:
    return Record(
        sha256="", source="", file="", style="lorelei", tags=tags, fixed=fixed, description=description,
        split="train", width=64, height=64, row=0,
    )  # fmt: skip


def written(one: Record, times: int = 1, step: int = 0, epoch: int = 0, **settings: Any) -> Counter[str]:
    counts = settings.pop("counts", {})
    captions = Captions(WHOLE.model_copy(update=settings), counts)
    chance = random.Random(1)
    return Counter(captions.write(one, step, epoch, chance) for _ in range(times))


def only(counter: Counter[str]) -> str:
    (text,) = counter
    return text


@given(st.integers(0, 10**6), st.integers(0, 4), st.floats(0, 1))
def test_kept_tags_stay_in_front_and_nothing_is_invented(seed: int, keep: int, tag_dropout: float) -> None:
    settings = CaptionSettings(keep=keep, dropout=0.0, tag_dropout=tag_dropout)
    tags = Captions(settings, {}).write(record(), 0, 0, random.Random(seed)).split(", ")
    full = ["by lorelei", *TAGS]
    assert tags[:keep] == full[:keep] or not keep
    assert set(tags) - {""} <= set(full)


def test_dropout_is_total_and_as_often_as_told() -> None:
    empty = written(record(), 4000, dropout=0.25)[""]
    assert 880 < empty < 1120  # 1000 expected, 27 a standard deviation


def test_every_nth_epoch_is_silent() -> None:
    assert [written(record(), epoch=epoch, dropout_every=3)[""] for epoch in range(6)] == [0, 0, 1, 0, 0, 1]


def test_prefix_and_suffix_stand_around_everything() -> None:
    assert only(written(record(), prefix="best", suffix="end")) == f"best, by lorelei, {', '.join(TAGS)}, end"


def test_what_the_dataset_fixes_is_kept() -> None:
    texts = written(record(fixed=2), 50, tag_dropout=1.0)
    assert only(texts) == "by lorelei, red hair, smile"


def test_frequent_tags_are_left_out_by_the_authors_rule() -> None:
    texts = written(record(), 4000, frequent_count=100, counts={"smile": 400, "glasses": 100})
    without = sum(count for text, count in texts.items() if "smile" not in text)
    assert 2880 < without < 3120  # 3000 expected: 1 - 100/400
    assert all("glasses" in text and text.startswith("by lorelei, red hair") for text in texts)


def test_tags_come_in_during_the_warm_up() -> None:
    settings = WHOLE.model_copy(update={"warmup_steps": 10, "warmup_tags": 1})
    assert [allowed(5, step, settings) for step in (0, 3, 5, 10, 99)] == [1, 2, 3, 5, 5]
    assert only(written(record(), warmup_steps=10)) == "by lorelei, red hair"


def test_wildcards_are_chosen_evenly_and_nest() -> None:
    texts = written(record(("{red|blue} hair",)), 1000, wildcards=True)
    assert set(texts) == {"by lorelei, red hair", "by lorelei, blue hair"} and min(texts.values()) > 430
    assert only(written(record(("{red|blue} hair",)))) == "by lorelei, {red|blue} hair"
    assert {choose("{a|{b|c}}", random.Random(seed)) for seed in range(40)} == {"a", "b", "c"}


def test_tags_joined_by_the_second_separator_stay_together() -> None:
    texts = written(record(("a ;;; b", "c")), 50, shuffle=True, secondary_separator=";;;")
    assert set(texts) == {"by lorelei, a, b, c", "by lorelei, c, a, b"}


def test_a_description_takes_the_place_of_tags_as_often_as_told() -> None:
    texts = written(record(description="a woman with red hair"), 1000, description_share=0.5)
    assert 430 < texts["by lorelei, a woman with red hair"] < 570 and len(texts) == 2


def test_captions_that_come_again_are_encoded_once_and_alike(lively_checkpoint: Path) -> None:
    model, asked = load_checkpoint(lively_checkpoint), list[str]()

    def encode(captions: Sequence[str]) -> Conditioning:
        asked.extend(captions)
        return encode_captions(model, captions, 1)

    remembered = Remembered(encode)
    first, again = remembered(["a", "b", "a"]), remembered(["b", "a"])
    assert asked == ["a", "b"] and not first.context.requires_grad
    assert torch.equal(first.context[[1, 0]], again.context)
    torch.testing.assert_close(first.context, encode_captions(model, ["a", "b", "a"], 1).context)
    assert come_again(WHOLE) and not come_again(WHOLE.model_copy(update={"tag_dropout": 0.1}))


def test_only_written_weights_weigh() -> None:
    one = record(("(red hair:1.3)", "miku (vocaloid)", "[x]", "(plain)"))
    whole = r"by lorelei, (red hair:1.3), miku \(vocaloid\), \[x\], \(plain\)"
    assert only(written(one, weighted=True)) == whole
    read = [(text.strip(" ,"), weight) for text, weight in parse_attention(whole)]
    assert read == [("by lorelei", 1.0), ("red hair", 1.3), ("miku (vocaloid), [x], (plain)", 1.0)]


def test_weights_reach_the_context_and_plain_captions_stay_what_they_were(lively_checkpoint: Path) -> None:
    model = load_checkpoint(lively_checkpoint)
    captions = ["by lorelei, red hair", ", ".join(["many words"] * 60), ""]
    plain = encode_captions(model, captions, 2).context
    torch.testing.assert_close(encode_weighted(model, captions, 2).context, plain, rtol=1e-4, atol=1e-5)
    heavy = ["by lorelei, (red hair:1.5)", *captions[1:]]
    found = encode_weighted(model, heavy, 2).context
    assert not torch.allclose(found[0], plain[0], atol=1e-3)
    expected = encode_prompts(model, heavy[:1]).context
    torch.testing.assert_close(found[0, :77], expected[0], rtol=1e-4, atol=1e-5)
