"""Damaged pictures: their pixels, their text, and the shot that the text describes."""

from __future__ import annotations

import io
import random
from pathlib import Path

from damage import BYTES, EXIF, PNG, WORDS, in_chunk
from fuzzing import Target, each, fuzz
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.core.lineage import lineage_of
from aid.core.picture import open_picture, open_small
from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.sd.inspection import inspect
from aid.sd.picture.file import Format, picture_bytes
from aid.sd.picture.infotext import Weights, parse_infotext, shot_of, write_infotext
from aid.sd.picture.text import picture_text

LINEAGE = '{"key": "k", "nodes": {"k": {"verb": "generate", "settings": {}, "inputs": {}}}}'
SHOT = Shot(prompt="by a, (hair:1.2), \n<lora:x:0.5>", negative_prompt='bad, "q"', seed=3, clip_skip=2)
TEXT = write_infotext(SHOT, Weights("0123456789", "model", "", "", {"bad": "0123456789ab"}))
NOVELAIS = '{"uc": "b", "steps": 28, "scale": 5.0, "seed": 7, "sampler": "k_euler", "strength": 0.69}'


def encoded(format: Format, mode: str = "RGB") -> bytes:
    return picture_bytes(Image.effect_noise((24, 16), 60).convert(mode), TEXT, LINEAGE, format)


def plain(format: str, mode: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((24, 16), 60).convert(mode).save(stream, format)
    return stream.getvalue()


def novelais() -> bytes:
    texts, stream = PngInfo(), io.BytesIO()
    for name, value in {"Software": "NovelAI", "Description": "a", "Comment": NOVELAIS}.items():
        texts.add_text(name, value)
    Image.new("RGB", (8, 8)).save(stream, "png", pnginfo=texts)
    return stream.getvalue()


SAMPLES = [
    {"a.png": encoded("png")}, {"a.png": encoded("png", "P")}, {"a.png": plain("png", "RGBA")},
    {"a.jpg": encoded("jpeg")}, {"a.webp": encoded("webp")}, {"a.gif": plain("gif", "P")},
    {"a.bmp": plain("bmp", "RGB")}, {"a.tif": plain("tiff", "I;16")}, {"a.png": novelais()},
]  # fmt: skip


def change_words(chance: random.Random, content: bytes) -> bytes:
    """A field's value, as A1111's text has it."""
    words = content.split(chance.choice((b": ", b", ", b"\n")))
    words[chance.randrange(len(words))] = chance.choice((
        b"", b"1", b"-1", b"1e400", b"nan", b"99999999999999999999999", b'"', b'"\\"', b"0x0", b"64x63",
        b"Euler",
        b"x" * 200_000, b"\xff", b"\\u0000", chance.choice(WORDS).encode("utf-8", "replace"),
    ))  # fmt: skip
    return chance.choice((b": ", b", ", b"\n")).join(words)


def read(folder: Path) -> None:
    path = next(folder.iterdir())
    each(inspect, picture_text, lineage_of, open_picture, lambda one: open_small(one, 8))(path)
    try:
        shot_of(parse_infotext(picture_text(path).parameters))
    except SettingsError as error:  # is told about the text alone
        assert "\n" not in str(error) and len(str(error)) < 2000, error


def test_damaged_pictures(tmp_path: Path) -> None:
    text = in_chunk((change_words, *BYTES), (b"tEXt", b"iTXt"))
    mutators = {".png": (text, text, text, *PNG), "": EXIF}
    target = Target("picture", SAMPLES, read, mutators, memory_mb=512)
    fuzz(target, tmp_path / "fuzzed")
