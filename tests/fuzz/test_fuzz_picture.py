"""Damaged pictures: their pixels, their text, what is shown of it, and the shot that it describes."""

from __future__ import annotations

import io
import json
import random
import re
from contextlib import redirect_stdout
from pathlib import Path

from damage import BYTES, EXIF, PNG, WORDS, in_chunk
from fuzzing import Target, each, fuzz
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.cli.inspecting import inspect_file
from aid.core.lineage import lineage_of
from aid.core.picture import open_picture, open_small
from aid.core.shot import Shot
from aid.core.workbench import Silence, Workbench
from aid.errors import AidError
from aid.generate.again import again
from aid.sd.picture.file import Format, picture_bytes
from aid.sd.picture.infotext import Weights, parse_infotext, write_infotext
from aid.sd.picture.text import picture_text

LINEAGE = '{"key": "k", "nodes": {"k": {"verb": "generate", "settings": {}, "inputs": {}}}}'
SHOT = Shot(prompt="by a, (hair:1.2), \n<lora:x:0.5>", negative_prompt='bad, "q"', seed=3, clip_skip=2)
TEXT = write_infotext(SHOT, Weights("0123456789", "model", "", "", {"bad": "0123456789ab"}))
OLD = "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 768x640, First pass size: 0x0"
NOVELAIS = '{"uc": "b", "steps": 28, "scale": 5.0, "seed": 7, "sampler": "k_euler", "strength": 0.69}'


def encoded(format: Format, mode: str = "RGB", text: str = TEXT) -> bytes:
    return picture_bytes(Image.effect_noise((24, 16), 60).convert(mode), text, LINEAGE, format)


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
    {"a.png": encoded("png", text=OLD)},
]  # fmt: skip


VALUE = re.compile(rb"(?<=: )[^,\n}]*")  # of a field, or in JSON
NINES = b"9" * 400, b"9" * 7000  # no float, and no number that Python reads from a text
ODD = (
    b"", b"1", b"-1", b"1e400", b"nan", b"99999999999999999999999", *NINES, b'"', b'"\\"', b"0x0", b"64x63",
    *(one + b"x8" for one in NINES), *(b"v1.6." + one for one in NINES), b"Euler", b"x" * 200_000, b"\xff",
    b"\\u0000", b"\\ud800", b'"\\ud800"', b'"a, \\udfff"',
    *(word.encode("utf-8", "replace") for word in WORDS),
)  # fmt: skip


def change_value(chance: random.Random, content: bytes) -> bytes:
    """A field's value, as A1111's text or NovelAI's JSON has it."""
    found = [match.span() for match in VALUE.finditer(content)]
    start, end = chance.choice(found or [(0, len(content))])
    return content[:start] + chance.choice(ODD) + content[end:]


def change_words(chance: random.Random, content: bytes) -> bytes:
    """What lies between the marks of such a text."""
    words = content.split(chance.choice((b": ", b", ", b"\n")))
    words[chance.randrange(len(words))] = chance.choice(ODD)
    return chance.choice((b": ", b", ", b"\n")).join(words)


class Terminal(Silence):
    """Shows what UTF-8 can write, as a terminal does."""

    def say(self, text: str) -> None:
        text.encode()


def show(path: Path) -> None:
    """As `aid inspect` shows it, to a person and as JSON."""
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        inspect_file(path, False, True)
        inspect_file(path, True, True)


def answer(path: Path) -> None:
    """As the studio tells it."""
    text = parse_infotext(picture_text(path).parameters)
    json.dumps([text.prompt, text.negative_prompt, text.fields], ensure_ascii=False).encode()


def draw_again(path: Path) -> None:
    """Up to the weights, of which there are none; a picture of another kind is refused before."""
    try:
        again(path, [], path.parent, Workbench("cpu", progress=Terminal()))
    except AidError as error:  # of the text alone, or of what is missing
        assert "\n" not in str(error) and len(str(error)) < 2000, error
    else:
        raise AssertionError("drawn without a model")


def read(folder: Path) -> None:
    path = next(folder.iterdir())
    each(show, answer, lineage_of, open_picture, lambda one: open_small(one, 8), draw_again)(path)


def test_damaged_pictures(tmp_path: Path) -> None:
    text = in_chunk((*[change_value] * 10, change_words, *BYTES), (b"tEXt", b"iTXt"))
    mutators = {".png": (*[text] * 10, *PNG), "": EXIF}
    target = Target("picture", SAMPLES, read, mutators, memory_mb=512)
    fuzz(target, tmp_path / "fuzzed")
