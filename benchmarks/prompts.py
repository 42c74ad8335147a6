"""Prompts by chance and by malice: 100,000 random ones are read without a crash, and a prompt of 100 kB takes
less than a second whatever it is made of, and 16 times as long as one of 6 kB.

    python benchmarks/prompts.py [--count 100000] [--seed 0] [--json FILE]

Each prompt is explained: short forms expanded, adapters, AND, edits and weights read, and all its words cut
into chunks of tokens, which is what happens before a text encoder runs. Times are the processor's.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reporting import Row, report

from aid.core.catalogue import load_catalogue
from aid.sd.prompt.explanation import Knowledge, explain

KNOWN = Knowledge(
    {"aid210": 8, "bad": 75}, ("style",), load_catalogue(), {"hair": ("red", "{a|b}"), "a": ("__a__",)}
)
STEPS = 20
PIECES = st.sampled_from([
    "(", ")", "[", "]", "{", "}", "|", ":", "\\", "<lora:", "<lora:style:0.8>", ">", " AND ", " BREAK ",
    ":1.2)", ":0.5]", "::3]", "0.5", "3", "$$", "__hair__", "__a__", "aid210", "by fuzichoco", "red hair, ",
    "a", " ", ", ", "\n", "#", "漢", "\u0130", "\u200d", "\ud800", "\U000f0000", "nan", "1e999",
])  # fmt: skip
PROMPTS = st.text() | st.lists(PIECES, max_size=60).map("".join)
SLICE = 5000  # prompts of one seed; the next ones have the next
SIZE, TIMES = 100_000, 16
LIMIT_SECONDS = 1.0
SHAPES: dict[str, Callable[[int], str]] = {
    "words": lambda n: ("by fuzichoco, (red hair:1.2), 1girl, " * (n // 37 + 1))[:n],
    "one word": lambda n: "a" * n,
    "emoji": lambda n: "\U0001f600" * (n // 4),
    "han": lambda n: "漢" * (n // 3),
    "nested weights": lambda n: "(" * (n // 2) + "a" + ")" * (n // 2),
    "unclosed": lambda n: "[(" * (n // 2),
    "unclosed edits": lambda n: "[a:" * (n // 3),
    "nested edits": lambda n: "[x:" * (n // 6) + "a" + ":1]" * (n // 6),
    "alternation": lambda n: "[a|b]" * (n // 5),
    "bars": lambda n: "[" + "|" * n + "]",
    "calls": lambda n: "<lora:style:1>" * (n // 14),
    "open calls": lambda n: "<a:" * (n // 3),
    "calls among oddities": lambda n: "<lora:style:1>[a:b:c]" * (n // 21),
    "parts": lambda n: "a AND " * (n // 6),
    "breaks": lambda n: "a BREAK " * (n // 8),
    "embeddings": lambda n: "aid210 " * (n // 7),
    "choices": lambda n: "{a|b}" * (n // 5),
    "open choices": lambda n: "{a|" * (n // 3),
    "mixes": lambda n: "{a:0.6|b:0.4}" * (n // 13),
    "wildcards": lambda n: "__hair__" * (n // 8),
    "backslashes": lambda n: "\\" * n,
    "space": lambda n: " " * n + ":",
    "a number": lambda n: "[a:b:" + "1" * n + "]",
}


def read_random(count: int, seed: int) -> tuple[int, float]:
    """How many prompts were explained, and the seconds that this took; raises what explaining raised."""
    done, seconds = 0, 0.0

    @hypothesis.seed(seed)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(PROMPTS, st.booleans(), st.booleans(), st.sampled_from(["Original", "ComfyUI", "None"]))
    def read(prompt: str, negative: bool, old: bool, emphasis: str) -> None:
        nonlocal done, seconds
        began = time.process_time()
        made = explain(prompt, STEPS, KNOWN, done, negative, old, emphasis)
        seconds += time.process_time() - began
        assert made.parts and all(spans[-1].last == STEPS - 1 for _, spans in made.parts)
        assert all(note.at < len(prompt) and "\n" not in note.text for note in made.notes)
        done += 1

    read()
    return done, seconds


def best_seconds(text: str) -> float:
    """Of two runs."""
    times = []
    for _ in range(2):
        gc.collect()
        began = time.process_time()
        explain(text, STEPS, KNOWN)
        times.append(time.process_time() - began)
    return min(times)


def growth() -> list[Row]:
    """The slowest shape at 100 kB, and the one whose time grows fastest: its exponent is 1 if linear."""
    explain("a (b:1.2)", STEPS, KNOWN)
    long = {name: best_seconds(made(SIZE)) for name, made in SHAPES.items()}
    short = {name: best_seconds(made(SIZE // TIMES)) for name, made in SHAPES.items()}
    exponents = {name: math.log(long[name] / max(short[name], 1e-4), TIMES) for name in SHAPES}
    slowest, steepest = max(long, key=long.__getitem__), max(exponents, key=exponents.__getitem__)
    return [
        Row(f"100 kB of words, of {len(SHAPES)} shapes", long["words"], "s", LIMIT_SECONDS),
        Row(f"the slowest of them: {slowest}", long[slowest], "s", LIMIT_SECONDS),
        Row(f"exponent of growth, the steepest: {steepest}", exponents[steepest], "", 1.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = growth()
    slices = range(0, chosen.count, SLICE)
    read = [read_random(min(SLICE, chosen.count - at), chosen.seed + at // SLICE) for at in slices]
    done, seconds = sum(count for count, _ in read), sum(took for _, took in read)
    rows.append(Row(f"{done} random prompts, each", seconds / max(1, done) * 1e3, "ms"))
    report(rows, chosen.json)
    if rows[1].ours > LIMIT_SECONDS:
        raise SystemExit(f"100 kB took {rows[1].ours:.1f} s")


if __name__ == "__main__":
    main()
