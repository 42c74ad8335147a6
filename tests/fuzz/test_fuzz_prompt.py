"""Any prompt is explained: nothing is raised, and each takes its time."""

from __future__ import annotations

import random
from pathlib import Path

from damage import BYTES, inserting
from fuzzing import Target, fuzz

from aid.core.catalogue import load_catalogue
from aid.sd.prompt.explanation import Knowledge, explain

SAMPLES = (
    "by fuzichoco, (red hair:1.2), [smile], ((blue eyes)), BREAK, white background",
    "a [cat:dog:0.5] AND a [[red|blue] car::3] :1.2 AND <lora:style:0.8:0.5> {by a:0.6 | by b:0.4}",
    "__colour/hair__, aid210, \\(escaped\\), {2$$a|b|c}, # comment",
    "",
)
TOKENS = [word.encode() for word in (
    "(", ")", "[", "]", "{", "}", "|", ":", "\\", "<lora:", ">", " AND ", " BREAK ", ":1.2)", ":0.5]",
    "$$", "__a__",
    "aid210", "by fuzichoco", "\n", "#", "((", "))", "::", ":nan)", ":1e999)", "\U000f0000", "\ue000", "<",
    ", ",
    "\u0130", "ǆ", "\u200d", "﷽", "1", "-", "+", ".", "e",
)]  # fmt: skip
LONGEST = 100_000  # characters; the time grows with them
KNOWN = Knowledge(
    {"aid210": 8, "bad": 75}, ("style",), load_catalogue(), {"colour/hair": ("red", "{a|b}"), "a": ("__a__",)}
)


def grow(chance: random.Random, content: bytes) -> bytes:
    """One pattern many times, up to 20 kB."""
    pattern = b"".join(chance.choice(TOKENS) for _ in range(chance.randrange(1, 5)))
    return pattern * chance.randrange(1, max(2, 20_000 // len(pattern)))


def read(folder: Path) -> None:
    text = (folder / "prompt").read_bytes().decode("utf-8", "surrogateescape")[:LONGEST]
    for emphasis, negative, old in (
        ("Original", False, False),
        ("ComfyUI", True, True),
        ("None", False, True),
    ):
        found = explain(text, 20, KNOWN, 1, negative, old, emphasis)
        assert found.parts and all(note.text and "\n" not in note.text for note in found.notes)
        assert all(note.at < len(text) for note in found.notes)


def test_any_prompt(tmp_path: Path) -> None:
    samples = [{"prompt": sample.encode()} for sample in SAMPLES]
    mutators = {"": (*[inserting(TOKENS)] * 10, grow, *BYTES)}
    target = Target("prompt", samples, read, mutators, names_file=False)
    fuzz(target, tmp_path / "fuzzed")
