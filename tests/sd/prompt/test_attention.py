"""A1111's attention grammar: its documented cases, its corners, and hostile input."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.sd.prompt.attention import BREAK, escape, parse_attention

GRAMMAR = st.text(alphabet="()[]:\\ ab,1.5-+\n") | st.text()

A1111 = [  # A1111's own examples, and cases worked out by its rules
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (r"a\b \\", [("ab \\", 1.0)]),
    ("[x:1.3]", [("x:1.3", 1 / 1.1)]),
    ("(a: 1.5 )b", [("a", 1.5), ("b", 1.0)]),
    ("x:1.3)", [("x:1.3)", 1.0)]),
    ("(a:-0.5)", [("a", -0.5)]),
    ("", [("", 1.0)]),
    ("()", [("", 1.0)]),
    ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
    ("aBREAK b", [("aBREAK b", 1.0)]),
    ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.2), ("b", 1.2)]),
    ("((((a:%s):%s):%s):0)" % (("9" * 200,) * 3), [("a", 0.0)]),
    ("(a:1.2.3) b", [("a:1.2.3", 1.1), (" b", 1.0)]),
]


@pytest.mark.parametrize(("prompt", "expected"), A1111)
def test_a1111_cases(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parse_attention(prompt) == expected


def test_nesting_multiplies_to_the_last_bit() -> None:
    assert parse_attention("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ]


@given(GRAMMAR)
def test_any_text_parses_and_neighbours_differ(prompt: str) -> None:
    parsed = parse_attention(prompt)
    assert parsed
    assert all(math.isfinite(weight) for _, weight in parsed)
    assert all(one[1] != two[1] for one, two in pairwise(parsed))


@given(st.text(alphabet="ab ,:.1\\()[]\n"))
def test_escaped_text_means_itself(text: str) -> None:
    assert parse_attention(escape(text)) == [(text, 1.0)]


@given(st.lists(st.sampled_from(["(", ")", "[", "]", "a", " b", ":1.5)", ":-2)", ":0)"]), max_size=60))
def test_deep_nesting_agrees_with_exact_products(pieces: list[str]) -> None:
    """The one-pass sum of logarithms, used for absurd depths, against multiplication in order."""
    from aid.sd.prompt import attention

    scan = attention._scan("".join(pieces))
    weights = [weight for _, weight in scan.segments]
    exact = attention._weigh(list(weights), scan.ranges)
    assert attention._weigh_deep(list(weights), scan.ranges) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    "prompt",
    [
        "(a" * 30_000 + ")" * 30_000,
        "([" * 30_000,
        " " * 100_000 + "x",
        "BREAK " * 20_000,
        ":1" * 50_000,
        "(a:" + "1" * 100_000 + ")",
        "(a:1.1" * 10_000 + ":1.1)" * 10_000,
    ],
)
def test_time_is_linear(prompt: str) -> None:
    start = time.process_time()
    parse_attention(prompt)
    assert time.process_time() - start < 2  # quadratic would take minutes
