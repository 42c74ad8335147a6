"""CLIP's tokenizer, from the merge list that ships with the package (OpenAI's, MIT)."""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

from transformers import CLIPTokenizer

CHUNK = 75  # tokens of text in one window; with BOS and EOS 77
BOS, EOS = 49406, 49407


@cache
def load_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer: 49,408 tokens, lower-cased. Read once a process: it never changes."""
    packed = resources.files("aid.sd").joinpath("vocabulary/merges.txt.gz").read_bytes()
    merges = [tuple(line.split()) for line in gzip.decompress(packed).decode().splitlines()]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CHUNK + 2)


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each of the 256 bytes, in vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]
