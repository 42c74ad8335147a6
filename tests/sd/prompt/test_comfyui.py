"""ComfyUI's weights: its rules, worked out by hand, and hostile input."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.sd.prompt.comfyui import parse_comfyui


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((a:1.5):0.5)", [("a", 1.5)]),
        ("((a) b:0.5)", [("a", 0.5 * 1.1), (" b", 0.5)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("[a] BREAK [b:c:5]", [("[a] BREAK [b:c:5]", 1.0)]),
        (r"\(a\) (b\):2)", [("(a) ", 1.0), ("b)", 2.0)]),
        ("a (b", [("a (b", 1.0)]),
        ("a (b (c)", [("a ", 1.0), ("b (c", 1.1)]),
        ("a) (b:2)", [("a) (b:2)", 1.0)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("(a:inf)", [("a:inf", 1.1)]),
        ("a, embedding:badv3, b", [("a, badv3, b", 1.0)]),
        ("(embedding:badv3:1.2)", [("badv3", 1.2)]),
        ("(a:1.0)embedding:badv3.pt, b", [("abadv3, b", 1.0)]),
        ("((embedding:bad.v3.safetensors, embedding:x.bin y:1.3))", [("bad.v3, x y", 1.3)]),
        (r"(embedding:bad_\(v3\).pt:0.9)\(embedding:x", [("bad_(v3)", 0.9), ("(embedding:x", 1.0)]),
        ("embedding:folder/in/badv3.pt, embedding:style\\badv3", [("badv3, badv3", 1.0)]),
        ("(embedding:12)", [("embedding", 12.0)]),
        ("embedding: a, xembedding:b, a.pt", [("embedding: a, xembedding:b, a.pt", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_comfyui_cases(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parse_comfyui(prompt) == [(text, pytest.approx(weight)) for text, weight in expected]


@given(st.text(alphabet="()\\:1.2ab ") | st.text())
def test_any_text_parses(prompt: str) -> None:
    assert all(math.isfinite(weight) for _, weight in parse_comfyui(prompt))


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        ")",
        "(a",
        "(a:1.2)",
        "\\(",
        "a:",
        "embedding:",
        "embedding:.pt",
        " embedding:.pt",
        " embedding:a/",
        "embedding:/",
    ],
)
def test_time_is_linear(piece: str) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        parse_comfyui(piece * count + ")" * count)
        return time.process_time() - start

    count = 50_000 // len(piece)
    assert seconds(count) < 24 * min(seconds(count // 8) for _ in range(2)) + 0.02
