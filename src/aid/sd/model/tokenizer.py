"""CLIP's tokenizer, from the merge list that ships with the package (OpenAI's, MIT).

SD1, SD2 and both encoders of SDXL share its 49,408 tokens, lower-cased. `tokenize` needs neither torch nor
transformers, and is there in a quarter of a second.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CHUNK = 75  # tokens of text in one window; with BOS and EOS 77
BOS, EOS = 49406, 49407
START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # Radford et al. 2021


def tokenize(texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without BOS and EOS. Half of a surrogate pair is a question mark."""
    whole = [text.encode("utf-8", "replace").decode() for text in texts]
    return [found.ids for found in _tokenizer().encode_batch(whole, add_special_tokens=False)]


def token_words(ids: Sequence[int]) -> list[str]:
    """How each id is spelt, `</w>` marking the end of a word; bytes have GPT-2's letters."""
    return list(map(_word, ids))


@cache
def _word(id: int) -> str:
    return _tokenizer().id_to_token(id) or ""


@cache
def load_tokenizer() -> CLIPTokenizer:
    """The same as transformers' class, for those who ask for one. Read once a process: it never changes."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CHUNK + 2)


@cache
def _tokenizer() -> Tokenizer:
    vocabulary, merges = _vocabulary()
    model = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END)
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (START, END)])
    return made


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    packed = resources.files("aid.sd").joinpath("vocabulary/merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return {word: index for index, word in enumerate(words)}, merges


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each of the 256 bytes, in vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]
