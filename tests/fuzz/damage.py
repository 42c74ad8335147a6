"""Ways to damage a file: any bytes, and within the structure of a format."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fuzzing import Mutator

NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32, 2**40, 2**53,
    2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
)  # fmt: skip
WORDS = (
    "", " ", "\0", "\n", "a\nb", "../x", "/etc/passwd", "..", ".", "NaN", "é", "\u2028", "\ud800",
    "\U0001f600",
    "x" * 3000, "None", "{}", "[", "1e999", "-0", "0x1", "F32", "I64", "BOOL", "F8_E4M3", "%s", "{0}",
    "\x1b[0m",
)  # fmt: skip
DEEP = 20_000


def _deep(kind: str) -> Any:
    value: Any = 0
    for _ in range(200):
        value = [value] if kind == "list" else {"a": value}
    return value


def odd_value(chance: random.Random) -> Any:
    """Something that hardly any field expects."""
    kind = chance.randrange(9)
    if kind < 3:
        return chance.choice(NUMBERS)
    if kind < 5:
        return chance.choice(WORDS)
    simple = (None, True, False, 0.5, -1.5, 1e308, float("nan"), float("inf"), [], {}, [[]], [1, "a", None])
    if kind < 8:
        return chance.choice(simple)
    return _deep(chance.choice(("list", "dict")))


# Any bytes


def cut(chance: random.Random, content: bytes) -> bytes:
    """The end is missing."""
    return content[: chance.randrange(len(content) + 1)]


def remove(chance: random.Random, content: bytes) -> bytes:
    start, size = _span(chance, content)
    return content[:start] + content[start + size :]


def repeat(chance: random.Random, content: bytes) -> bytes:
    start, size = _span(chance, content)
    return (
        content[: start + size]
        + content[start : start + size] * chance.choice((1, 1, 2, 50))
        + content[start + size :]
    )


def flip(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8)) if changed else 0):
        changed[_at(chance, content)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwrite(chance: random.Random, content: bytes) -> bytes:
    """A number of another size, in either order of bytes."""
    size = chance.choice((1, 2, 4, 8))
    number = (chance.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, chance.choice(("little", "big")))
    start = _at(chance, content)
    return content[:start] + number + content[start + size :]


def insert(chance: random.Random, content: bytes) -> bytes:
    start = _at(chance, content)
    return content[:start] + chance.randbytes(chance.choice((1, 2, 8, 100))) + content[start:]


def replace_all(chance: random.Random, content: bytes) -> bytes:
    return chance.choice(
        (b"", b"\0", b"{}", b"[]", b"PK\x03\x04", b"\x80\x02.", b"[" * DEEP, chance.randbytes(300))
    )


BYTES: tuple[Mutator, ...] = (cut, remove, repeat, flip, flip, overwrite, overwrite, insert, replace_all)


def inserting(tokens: Sequence[bytes]) -> Mutator:
    """Words of a format put anywhere."""

    def put(chance: random.Random, content: bytes) -> bytes:
        start = _at(chance, content)
        return content[:start] + chance.choice(tokens) * chance.choice((1, 1, 1, 3)) + content[start:]

    return put


def _at(chance: random.Random, content: bytes) -> int:
    """A place, more often near the beginning, where the structure is."""
    reach = chance.choice((16, 256, len(content), len(content)))
    return chance.randrange(max(1, min(reach, len(content))))


def _span(chance: random.Random, content: bytes) -> tuple[int, int]:
    return _at(chance, content), chance.choice((1, 2, 4, 8, 64, max(1, len(content) // 3)))


# JSON


def change_tree(chance: random.Random, tree: Any) -> Any:
    """The tree with one value, key or item changed, added or lost."""
    holder, key = None, None
    node = tree
    while isinstance(node, (dict, list)) and node and chance.random() < 0.85:
        holder = node
        key = chance.choice(sorted(node)) if isinstance(node, dict) else chance.randrange(len(node))
        node = holder[key]
    if holder is None:
        return odd_value(chance)
    action = chance.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[chance.choice(WORDS)] = holder.pop(key)
    elif action == 2 and isinstance(holder, list):
        holder.extend([node] * chance.choice((1, 3, 1000)))
    elif action == 3 and isinstance(holder, dict):
        holder[key] = holder[chance.choice(sorted(holder))]
    elif action == 4 and isinstance(node, (int, float)) and not isinstance(node, bool):
        holder[key] = node + chance.choice((-1, 1, 0.5, 2**31))
    else:
        holder[key] = odd_value(chance)
    return tree


def json_bytes(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def change_json(chance: random.Random, content: bytes) -> bytes:
    try:
        return json_bytes(change_tree(chance, json.loads(content)))
    except (ValueError, RecursionError, TypeError):
        return flip(chance, content)


def change_line(change: Mutator) -> Mutator:
    """`change` for one of the lines."""

    def one(chance: random.Random, content: bytes) -> bytes:
        lines = content.split(b"\n")
        at = chance.randrange(len(lines))
        lines[at] = change(chance, lines[at])
        return b"\n".join(lines)

    return one


def shuffle_lines(chance: random.Random, content: bytes) -> bytes:
    """A line twice, gone, or elsewhere."""
    lines = content.split(b"\n")
    line = lines.pop(chance.randrange(len(lines)))
    for _ in range(chance.choice((0, 1, 2, 500))):
        lines.insert(chance.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


# safetensors


def in_header(change: Callable[[random.Random, Any], Any]) -> Mutator:
    """`change` for the header of a safetensors file, whose length then fits again."""

    def changed(chance: random.Random, content: bytes) -> bytes:
        try:
            length = struct.unpack("<Q", content[:8])[0]
            tree = change(chance, json.loads(content[8 : 8 + length]))
            header = json_bytes(tree)
        except (ValueError, struct.error, RecursionError, TypeError, OverflowError):
            return flip(chance, content)
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]

    return changed


def change_metadata(chance: random.Random, tree: Any) -> Any:
    """Only in the metadata; text that is JSON is changed inside."""
    told = tree.setdefault("__metadata__", {}) if isinstance(tree, dict) else {}
    if not isinstance(told, dict) or not told:
        return tree
    key = chance.choice(sorted(told))
    try:
        told[key] = json.dumps(change_tree(chance, json.loads(told[key])))
    except (ValueError, TypeError, RecursionError):
        told[key] = chance.choice(WORDS)
    return tree


def swap_entries(chance: random.Random, tree: Any) -> Any:
    """Two tensors under each other's names."""
    names = sorted(tree) if isinstance(tree, dict) else []
    if len(names) > 1:
        one, other = chance.sample(names, 2)
        tree[one], tree[other] = tree[other], tree[one]
    return tree


def spoil_values(chance: random.Random, content: bytes) -> bytes:
    """NaN and infinity of every format among the values."""
    try:
        start = 8 + struct.unpack("<Q", content[:8])[0]
    except struct.error:
        return content
    spoil = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\x00\x7e\x00\x7e", b"\xff" * 8))
    at = start + 4 * chance.randrange(max(1, (len(content) - start) // 4))
    return content[:at] + spoil + content[at + len(spoil) :]


SAFETENSORS: tuple[Mutator, ...] = (
    in_header(change_tree), in_header(change_tree), in_header(change_tree), in_header(change_metadata),
    in_header(swap_entries), spoil_values, *BYTES,
)  # fmt: skip


# Pickles, bare and in torch's archives


def change_numbers(chance: random.Random, content: bytes) -> bytes:
    """Sizes, strides, offsets and counts of a pickle."""
    found: list[tuple[str, int]] = []
    with suppress(Exception):
        found = [
            (op.name, at) for op, _, at in pickletools.genops(content) if at is not None and "INT" in op.name
        ]
    places = [(name, at) for name, at in found if name in ("BININT", "BININT1", "BININT2")]
    if not places:
        return overwrite(chance, content)
    name, at = chance.choice(places)
    width = {"BININT": 4, "BININT1": 1, "BININT2": 2}[name]
    number = chance.choice(NUMBERS)
    big = number.to_bytes(17, "little", signed=True).rstrip(b"\0") + b"\0"
    return content[:at] + b"\x8a" + bytes([len(big)]) + big + content[at + 1 + width :]


PICKLE_WORDS = (
    b"cos\nsystem\n", b"c__builtin__\neval\n", b"cbuiltins\nexec\n", b"(", b")", b"R", b"b", b"0", b".",
    b"}", b"t",
    b"s", b"u", b"h\x00", b"j\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 8,
    b"\x8b\xff\xff\xff\x7f",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nempty\n", b"N",
    b"K\x01", b"Q",
    b"X\x05\x00\x00\x00touchq\x00", b"\x85", b"\x86", b"\x87", b"2", b"l", b"]", b"e", b"a", b"\x94",
    b"\x95" + b"\xff" * 8,
)  # fmt: skip
put_word = inserting(PICKLE_WORDS)
PICKLE: tuple[Mutator, ...] = (change_numbers, change_numbers, put_word, put_word, *BYTES)


def in_archive(changes: Sequence[Mutator]) -> Mutator:
    """One record of a zip archive changed, compressed, twice, under another name, or gone."""

    def changed(chance: random.Random, content: bytes) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                records = [(one.filename, archive.read(one)) for one in archive.infolist()]
        except Exception:
            return flip(chance, content)
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        stream, at, action = io.BytesIO(), chance.randrange(max(1, len(records))), chance.randrange(8)
        with zipfile.ZipFile(stream, "w") as archive:
            for index, (name, record) in enumerate(records):
                kind = zipfile.ZIP_DEFLATED if index == at and action == 0 else zipfile.ZIP_STORED
                if index == at and action == 1:
                    record = record + b"\0" * chance.choice((1, 64, 1 << 22))
                    kind = zipfile.ZIP_DEFLATED
                elif index == at and action == 2:
                    name = chance.choice(("archive/data/99", "../x", "archive/data.pkl", "x", name + "\0"))
                elif index == at and action == 3:
                    continue
                elif action > 3 and name.endswith("data.pkl"):
                    record = chance.choice(changes)(chance, record)
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), record, kind)
        return stream.getvalue()

    return changed


TORCH: tuple[Mutator, ...] = (*[in_archive(PICKLE)] * 8, *BYTES)


# Pictures


def in_chunk(changes: Sequence[Mutator], kinds: Sequence[bytes] = ()) -> Mutator:
    """One chunk of a PNG changed (of `kinds`, if any is there), with a right checksum."""

    def changed(chance: random.Random, content: bytes) -> bytes:
        chunks = _chunks(content)
        wanted = [index for index, (kind, _) in enumerate(chunks) if not kinds or kind in kinds]
        if not wanted:
            return flip(chance, content)
        at = chance.choice(wanted)
        chunks[at] = (chunks[at][0], chance.choice(changes)(chance, chunks[at][1]))
        if chance.random() < 0.1:
            chunks.insert(chance.randrange(len(chunks) + 1), chunks[at])
        return content[:8] + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    return changed


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 8 <= len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def change_size(chance: random.Random, content: bytes) -> bytes:
    """A PNG's header calls for a picture of other sizes."""
    sizes = (0, 1, 9, 4000, 60_000, 2**31 - 1)
    return struct.pack(">II", chance.choice(sizes), chance.choice(sizes)) + content[8:]


def near(word: bytes, change: Mutator) -> Mutator:
    """`change` for the 200 bytes from a word on."""

    def changed(chance: random.Random, content: bytes) -> bytes:
        at = content.find(word)
        if at < 0:
            return change(chance, content)
        return content[:at] + change(chance, content[at : at + 200]) + content[at + 200 :]

    return changed


PNG: tuple[Mutator, ...] = (
    in_chunk(BYTES), in_chunk(BYTES), in_chunk((change_size,), (b"IHDR",)),
    in_chunk(BYTES, (b"tEXt", b"iTXt", b"zTXt", b"eXIf")), *BYTES,
)  # fmt: skip
EXIF: tuple[Mutator, ...] = (*(near(b"Exif", change) for change in BYTES), *BYTES)


# Text


def change_toml(chance: random.Random, content: bytes) -> bytes:
    """A value, a key, or a table's name."""
    lines = content.split(b"\n")
    at = chance.randrange(len(lines))
    key, sign, value = lines[at].partition(b"=")
    odd = chance.choice((
        b"1", b"-1", b"0.0", b"1e400", b"nan", b"inf", b"true", b'""', b'"x"', b"[]", b"{}", b"[[1]]",
        b'["a", 1]',
        b"1979-05-27", b"99999999999999999999", b'"\\u0000"', b'"""\na\nb"""', b"[" * 3000, b"{a=" * 300,
        b'"../x"',
        b'"@x"', b'"aid:x"', b'"$x"', b'"~x"', b"x.y", b"1_000", b"0x1", b'"' + b"y" * 3000 + b'"',
    ))  # fmt: skip
    if sign and chance.random() < 0.7:
        lines[at] = key + b"= " + odd
    elif sign:
        lines[at] = chance.choice((b"x", b"", b'""', b"a.b", key.strip() + b".z", b'"a\\nb"')) + b" =" + value
    else:
        lines[at] = chance.choice(
            (b"[x]", b"[[step]]", b"[]", b"[[x.y]]", b"a" + b".a" * 3000 + b"=1", lines[at] + b"]")
        )
    return b"\n".join(lines)


TOML: tuple[Mutator, ...] = (change_toml, change_toml, change_toml, shuffle_lines, *BYTES)
JSON: tuple[Mutator, ...] = (change_json, change_json, change_json, *BYTES)
LINES: tuple[Mutator, ...] = (change_line(change_json),) * 4 + (shuffle_lines, *BYTES)
