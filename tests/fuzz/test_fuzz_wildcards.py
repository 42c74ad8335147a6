"""Damaged files of wildcards, and prompts that use them."""

from __future__ import annotations

from pathlib import Path

from damage import BYTES, inserting
from fuzzing import Target, fuzz

from aid.sd.prompt.sugar import expand, read_wildcards

SAMPLES = (
    {
        "hair.txt": b"red hair\n# a comment\n\n{blue|green:2} hair\n2$$__deep/eyes__, (long hair:1.2)\n",
        "deep/eyes.txt": b"\xef\xbb\xbfbrown eyes\r\n{2$$a|b|c} eyes\r\n",
    },
    {"a.txt": b"__a__ __b__\n{__b__|x}", "b.txt": "__a__\n漢字 \\(x\\)\n[a:__b__:0.5]".encode()},
)
TOKENS = (
    b"__a__", b"__hair__", b"__", b"{", b"}", b"|", b"$$", b"2$$", b"1-3$$", b":0.5", b"\n", b"\r", b"#",
    b"\\", b"{a:0.5|b:0.5}", b"__deep/*__", b"__*__", b"\xff", b"\xed\xa0\x80", b"\0",
)  # fmt: skip
PROMPT = "__hair__, {__deep/eyes__|__a__}, __b__, __*__, __none__"


def read(folder: Path) -> None:
    wildcards = read_wildcards(folder)
    assert all(line and line == line.strip() for lines in wildcards.values() for line in lines)
    for seed in range(3):
        made = expand(PROMPT, seed, wildcards)
        assert all(note.text and "\n" not in note.text for note in made.notes)


def test_damaged_wildcards(tmp_path: Path) -> None:
    mutators = {"": (*[inserting(TOKENS)] * 6, *BYTES)}
    fuzz(Target("wildcards", SAMPLES, read, mutators), tmp_path / "fuzzed")
