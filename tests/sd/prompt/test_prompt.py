"""A1111's grammar of parts, edits and adapters: its documented cases, its corners, and hostile input.

What A1111 makes of the edits below was found by running its grammar through a general parser (lark).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linear import is_linear

from aid.sd.prompt.editing import schedule
from aid.sd.prompt.prompt import LoraCall, Part, Pass, extract_loras, plan_prompt, read_prompt

PIECES = st.sampled_from(
    [
        "(",
        ")",
        "[",
        "]",
        ":",
        "|",
        "a",
        "b ",
        " AND ",
        " BREAK ",
        "<lora:x:",
        ">",
        "0.5",
        "3",
        "\\",
        "\n",
        "漢",
    ]
)
PROMPTS = st.text() | st.lists(PIECES, max_size=60).map("".join)


def ends(text: str, steps: int = 10, **words: object) -> list[tuple[int, str]]:
    entries, _ = schedule(text, Pass(steps, **words))  # type: ignore[arg-type]
    return [tuple(entry) for entry in entries]


EDITS = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [b::.5] c", [(5, "a b c"), (10, "a  c")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-3]", [(10, "b")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:1e0]", [(1, "a"), (10, "b")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a\\:b:c:2]", [(2, "a\\:b"), (10, "c")]),
    ("[::5]", [(5, ""), (10, "")]),
    ("[]", [(10, "[]")]),
    ("[a:b:" + "9" * 400 + "]", [(10, "a")]),
]


@pytest.mark.parametrize(("prompt", "expected"), EDITS)
def test_edits_as_a1111_plans_them(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert ends(prompt) == expected


def test_alternation_takes_turns() -> None:
    assert ends("[a|(b:1.1)]", 4) == [(1, "a"), (2, "(b:1.1)"), (3, "a"), (4, "(b:1.1)")]
    assert ends("[fe|]male", 3) == [(1, "female"), (2, "male"), (3, "female")]
    assert [text for _, text in ends("[fe|||]male", 5)] == ["female", "male", "male", "male", "female"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a:b:3]]", [(3, "a]"), (10, "b]")]),
        ("([a:b:3], c", [(3, "(a, c"), (10, "(b, c")]),
        ("[[a:b:3], c", [(3, "[a, c"), (10, "[b, c")]),
        ("[a:b:c]", [(10, "[a:b:c]")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[(a:b:c):d:5] [x:y:3]", [(3, "[(a:b:c):d:5] x"), (10, "[(a:b:c):d:5] y")]),
        ("a | b [c:d:3]", [(10, "a | b [c:d:3]")]),
        ("[a|b:5] [c:d:3]", [(10, "[a|b:5] [c:d:3]")]),
        ("[a|b", [(10, "[a|b")]),
        ("[c:d:3] a\\", [(10, "[c:d:3] a\\")]),
    ],
)
def test_malformed_edits_as_a1111_reads_them(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert ends(prompt) == expected


def test_the_old_rule_and_the_hires_pass() -> None:
    assert ends("[a:b:0.5]", old=True) == [(5, "a"), (10, "b")]
    assert ends("[a:b:1.0]", old=True) == [(1, "a"), (10, "b")]
    assert ends("[a:b:2.7]", old=True) == [(2, "a"), (10, "b")]
    assert ends("[a:b:.5] c", first_pass_steps=10) == [(10, "b c")]
    assert ends("[a:b:1.5] c", first_pass_steps=10) == [(5, "a c"), (10, "b c")]
    assert ends("[a:b:13] c", first_pass_steps=10) == [(3, "a c"), (10, "b c")]
    assert ends("[a:b:13]", 6, first_pass_steps=10, old=True) == [(10, "a")]


def test_the_sampler_sees_each_end_one_call_late() -> None:
    """A1111 counts ends from 1 and calls from 0: a for 6 calls, and alternation begins with two of a."""
    (edit,), (turns,) = plan_prompt("[a:b:5]", 10), plan_prompt("[a|b]", 6)
    assert "".join(edit.at(step) for step in range(10)) == "aaaaaabbbb"
    assert "".join(turns.at(step) for step in range(6)) == "aababa"
    assert turns.at(99) == "a"


def test_and_joins_parts_with_weights() -> None:
    parts = plan_prompt("a cat :1.2 AND a dog AND(a [b:c:.5]:-1)AND x: .5 ", 10)
    assert [part.weight for part in parts] == [1.2, 1.0, 1.0, 0.5]
    assert [part.at(0) for part in parts] == ["a cat", " a dog", "(a b:-1)", " x"]
    assert plan_prompt("BRAND ANDY", 5) == [Part(1.0, ((5, "BRAND ANDY"),))]  # type: ignore[arg-type]
    assert plan_prompt("all of it:2", 5)[0].weight == 2.0


def test_a_negative_prompt_knows_neither_and_nor_adapters() -> None:
    read = read_prompt("a AND b:2 <lora:x:1> [c:d:5]", Pass(10), negative=True)
    assert [part.at(0) for part in read.parts] == ["a AND b:2 <lora:x:1> c"]
    assert read.loras == ()


def test_adapters_are_called_at_one_weight_or_two() -> None:
    text = "a <lora:x> <lora:y:0.5>b<lora:z z:0.5:-1><lyco:w:te=0.2:unet=0.3> <lora::1>c<lora:v:0.8:te=0.5>"
    rest, loras = extract_loras(text)
    assert rest == "a  b c"
    assert loras == [
        LoraCall("x"), LoraCall("y", 0.5, 0.5), LoraCall("z z", 0.5, -1.0), LoraCall("w", 0.2, 0.3),
        LoraCall("v", 0.5, 0.5),
    ]  # fmt: skip


def noted(text: str, **words: bool) -> list[tuple[int, str]]:
    return [tuple(note) for note in read_prompt(text, Pass(20), **words).notes]


@pytest.mark.parametrize(
    ("prompt", "at", "said"),
    [
        ("ab (c", 3, "never closed"),
        ("a [b", 2, "never closed"),
        ("a [b:c", 2, "edits nothing"),
        ("a [b: [c: [d:e", 2, "3 [ from here on are never closed, so they edit nothing"),
        ("<lora:x:1> (a BREAK b)", 14, "BREAK inside"),
        ("(a:1.2.3)", 2, "no number"),
        ("a [b:c:d]", 2, "`d` is not a number"),
        ("a [b:c:d:3]", 2, "at most two colons"),
        ("a [x:1.3]", 2, "no weight but an edit"),
        ("[a:b:3] x | y", 10, "whole prompt is plain text"),
        ("[a:b:3] c\\", 9, "whole prompt is plain text"),
        ("x <hypernet:y:1>", 2, "isn't supported"),
        ("x <lora:y:abc>", 2, "no number"),
        ("x <lora:y:1e300>", 2, "no number"),
        ("x <lora:y:1:dyn=8>", 2, "`dyn=8` has no effect"),
        ("x <lora:y:1:1:8>", 2, "`8` has no effect"),
        ("x <lora:y:a=b=c>", 2, "its weight is no number: `a=b=c`"),
        ("x <lora:y:1:te=soft>", 2, "its weight is no number: `soft`"),
        ("x <lora:y:1:1:a=b=c>", 2, "`a=b=c` has no effect"),
        ("x (a AND b)", 0, "AND divides"),
    ],
)
def test_oddities_are_explained_where_they_stand(prompt: str, at: int, said: str) -> None:
    assert any(place == at and said in text for place, text in noted(prompt)), noted(prompt)


@pytest.mark.parametrize("prompt", ["", "1girl, (red:1.2) [hair]", "a BREAK b", "[a:b:.5] [c|d]", r"x \(y\)"])
def test_nothing_is_said_of_what_is_right(prompt: str) -> None:
    assert noted(prompt) == []


@given(PROMPTS, st.integers(1, 40), st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_text_is_read(prompt: str, steps: int, old: bool, negative: bool) -> None:
    read = read_prompt(prompt, Pass(steps, old), negative)
    assert read.parts
    for part in read.parts:
        lasts = [entry.last for entry in part.schedule]
        assert lasts == sorted(set(lasts)) and lasts[-1] == steps and lasts[0] >= 1
        assert abs(part.weight) < float("inf")
    assert all(0 <= note.at <= len(prompt) for note in read.notes)


@given(st.text(alphabet="ab ,()[]1.5\n").filter(lambda text: ":" not in text))
@settings(deadline=None)
def test_text_without_edits_is_kept(prompt: str) -> None:
    assert ends(prompt) == [(10, prompt)]


HOSTILE: dict[str, Callable[[int], str]] = {
    "nested": lambda n: "(" * n + "a" + ")" * n,
    "unclosed": lambda n: "[(" * n,
    "unclosed edits": lambda n: "[a:" * n,
    "nested edits": lambda n: "[x:" * n + "a" + ":1]" * n,
    "stray then edits": lambda n: "[[a:b:1]" * n,
    "alternation": lambda n: "[a|b]" * n,
    "calls": lambda n: "<a:" * n + ">",
    "open calls": lambda n: "<a:" * n,
    "calls among oddities": lambda n: "<lora:a:1>[a:b:c]" * n,
    "parts": lambda n: "a AND " * n,
    "backslashes": lambda n: "\\" * n,
    "space": lambda n: " " * n + ":",
    "a number": lambda n: "[a:b:" + "1" * n + "]",
    "a weight": lambda n: "a:" + "1" * n,
    "bars": lambda n: "[" + "|" * n + "]",
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_time_is_linear(shape: str) -> None:
    made = HOSTILE[shape]
    assert is_linear(lambda size: read_prompt(made(size), Pass(8)), 100_000 // len(made(100)) * 100)
