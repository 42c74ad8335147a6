"""Damaged embeddings: weights of every kind, and pictures that carry one in their text or their sides."""

from __future__ import annotations

import base64
import io
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage import PNG, SAFETENSORS, TORCH, change_json, in_chunk
from fuzzing import Target, fuzz
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.sd.embedding.file import Embedding, load_embedding, save_embedding
from aid.sd.embedding.folder import find_embeddings, load_embeddings

VECTORS = torch.randn((2, 8), generator=torch.Generator().manual_seed(1))
HIDDEN = {"string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}, "name": "word", "step": 3}


def packed(tree: Any) -> bytes:
    return tree if isinstance(tree, bytes) else json.dumps(tree).encode()


def text_picture(content: bytes) -> bytes:
    """A1111's first container: base64 of JSON in a PNG's text."""
    text, stream = PngInfo(), io.BytesIO()
    text.add_text("sd-ti-embedding", base64.b64encode(content).decode())
    Image.new("RGB", (8, 8)).save(stream, "png", pnginfo=text)
    return stream.getvalue()


def panel_picture(content: bytes) -> bytes:
    """Its second: nibbles of compressed JSON in panels at both sides."""
    data = np.frombuffer(zlib.compress(content, 9), np.uint8)
    height = 16
    cells = np.resize(data, -(-len(data) // (height * 3)) * height * 3)
    hide = np.fromiter(_mask(cells.size), np.uint8, cells.size)
    low, high = (((part ^ hide) | 0x20).reshape(height, -1, 3) for part in (cells & 0x0F, cells >> 4))
    line, middle = np.zeros((height, 1, 3), np.uint8), np.full((height, 10, 3), 201, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.concatenate([low, line, middle, line, high], axis=1)).save(stream, "png")
    return stream.getvalue()


def _mask(count: int) -> Iterator[int]:
    state = 0
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255 & 0x0F


BOMBS = (b"[" * 100_000, b"0" * (8 << 20), b"[" + b"0," * (1 << 20) + b"0]", b'{"TORCHTENSOR": 1}')


def change_hidden(chance: random.Random, content: bytes) -> bytes:
    """The JSON in a picture, not the picture."""
    hidden = chance.choice(BOMBS) if chance.random() < 0.05 else change_json(chance, packed(HIDDEN))
    return chance.choice((text_picture, panel_picture))(hidden)


def change_base64(chance: random.Random, content: bytes) -> bytes:
    return chance.choice((content[:40], content + b"=", content.replace(b"A", b"-"), content[:30] + b"\xff"))


PICTURES = (*[change_hidden] * 6, in_chunk((change_base64,), (b"tEXt",)), *PNG)


def read(folder: Path) -> None:
    """As a model of this width would, as a folder, and as a prompt's explanation counts vectors."""
    paths = find_embeddings(folder)
    widths = (8, 10) if paths[0].stem == "pair" else (8,)
    if not load_embeddings(paths, *widths).embeddings:
        load_embeddings(paths)
        load_embedding(paths[0], *widths)


def samples(folder: Path) -> Iterator[dict[str, bytes]]:
    save_embedding(Embedding("word", VECTORS), folder, {"a": "b"}, 3, "0123456789", "base")
    save_embedding(Embedding("pair", VECTORS, torch.ones(2, 10)), folder, {})
    stream = io.BytesIO()
    torch.save({"<word>": VECTORS}, stream)
    yield {"word.safetensors": (folder / "word.safetensors").read_bytes()}
    yield {"word.pt": (folder / "word.pt").read_bytes()}
    yield {"word.bin": stream.getvalue()}
    for name in ("pair.safetensors", "pair.pt"):  # SDXL's
        yield {name: (folder / name).read_bytes()}
    yield {"text.png": text_picture(packed(HIDDEN))}
    yield {"panel.png": panel_picture(packed(HIDDEN))}


def test_damaged_embeddings(tmp_path: Path) -> None:
    mutators = {".safetensors": SAFETENSORS, ".png": PICTURES, "": TORCH}
    target = Target("embedding", list(samples(tmp_path)), read, mutators, memory_mb=256)
    fuzz(target, tmp_path / "fuzzed")
