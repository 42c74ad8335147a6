"""Folders, manifests, credits and sidecars, friendly and hostile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aid.dataset.finding.find import Candidate, Found, find, read_folder_name
from aid.dataset.finding.manifest import Entry, read_entry
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import FileError


def put(path: Path, tags: str | bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)
    if tags is not None:
        path.with_suffix(".txt").write_bytes(tags.encode() if isinstance(tags, str) else tags)
    return path


def look(root: Path, **more: Path) -> Found:
    return find(PrepareInputs(pictures={"in": root}, regularisation=more), PrepareSettings())


def by_source(found: Found) -> dict[str, Candidate]:
    return {candidate.source: candidate for candidate in found.candidates}


def reasons(found: Found) -> dict[str, str]:
    return {source: aside.reason for source, aside in found.quarantined.items()}


def test_folder_names() -> None:
    assert read_folder_name("10_by fuzichoco") == ("fuzichoco", 10)
    assert read_folder_name("By_Demizu_Posuka") == ("demizu posuka", None)
    assert read_folder_name("_") == read_folder_name("_anything") == ("", None)
    assert read_folder_name("3__none") == ("", 3)
    assert read_folder_name("pixel-art") == ("pixel-art", None)


def test_folders_and_sidecars(tmp_path: Path) -> None:
    put(tmp_path / "by ask" / "deep" / "a.png", "Red_Hair, by ask, smile")
    put(tmp_path / "by ask" / "b.webp")
    put(tmp_path / "20_fuzichoco" / "c.png").with_suffix(".caption").write_text("hat")
    put(tmp_path / "_" / "d.png", "\ufeffhat".encode("utf-16"))
    put(tmp_path / "old" / "e.png")
    found = by_source(look(tmp_path))
    assert list(found) == [
        "in/20_fuzichoco/c.png", "in/_/d.png", "in/by ask/b.webp", "in/by ask/deep/a.png", "in/old/e.png",
    ]  # fmt: skip
    assert [(c.style, c.tags) for c in found.values()] == [
        ("fuzichoco", ("hat",)), ("", ("hat",)), ("ask", ()), ("ask", ("red hair", "smile")), ("old", ()),
    ]  # fmt: skip
    assert look(tmp_path).repeats == {"fuzichoco": 20}
    assert [c.repeats for c in found.values()] == [20, 1, 1, 1, 1]


def test_credits_are_inherited_and_map_styles(tmp_path: Path) -> None:
    for name in ("one/a.png", "two/b.png", "two/deep/c.png"):
        put(tmp_path / name)
    (tmp_path / "credit.toml").write_text('licence = "CC0-1.0"\ncredit = "all"\n[styles]\none = "by First"\n')
    (tmp_path / "two" / "credit.toml").write_text('credit = "two"\nstyle = ""\n')
    (tmp_path / "two" / "deep" / "credit.toml").write_text('licence = "MIT"\nstyle = "deep"\n')
    assert [(c.style, c.licence, c.credit) for c in look(tmp_path).candidates] == [
        ("first", "CC0-1.0", "all"),
        ("", "CC0-1.0", "two"),
        ("deep", "MIT", "two"),
    ]
    for wrong in ("license = 'MIT'", "licence = 1", "licence = ", "\xff", "styles = {a = 1}"):
        (tmp_path / "two" / "credit.toml").write_bytes(wrong.encode("latin-1"))
        with pytest.raises(FileError, match=r"two/credit\.toml is not a credit file"):
            look(tmp_path)


def test_a_flat_folder_is_one_style_but_not_beside_others(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    assert look(tmp_path).candidates[0].style == "in"
    for name, style in (("_any", ""), ("demizu posuka", "demizu posuka")):
        assert find(PrepareInputs(pictures={name: tmp_path}), PrepareSettings()).candidates[0].style == style
    put(tmp_path / "ask" / "b.png")
    assert reasons(look(tmp_path)) == {"in/a.png": "lies beside style folders, in none of them"}


def test_replay_comes_last_and_is_marked(tmp_path: Path) -> None:
    put(tmp_path / "new" / "ask" / "a.png")
    put(tmp_path / "old" / "ask" / "a.png")
    found = look(tmp_path / "new", aaa=tmp_path / "old")
    assert [(c.source, c.regularisation) for c in found.candidates] == [
        ("in/ask/a.png", False),
        ("aaa/ask/a.png", True),
    ]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    put(tmp_path / "ask" / "a.png", "hat")
    put(tmp_path / "ask" / ".hidden.png")
    put(tmp_path / ".cache" / "b.png")
    for name in (
        "ask/notes.pdf",
        "ask/notes.txt",
        "ask/noend",
        "ask/orphan.txt",
        "ask/README.txt",
        "ask/Thumbs.db",
    ):
        (tmp_path / name).write_bytes(b"x")
    found = look(tmp_path)
    assert list(by_source(found)) == ["in/ask/a.png"]
    assert reasons(found) == {
        "in/ask/noend": "is not a picture (no suffix)",
        "in/ask/notes.pdf": "is not a picture (.pdf)",
        "in/ask/orphan.txt": "is a caption without a picture of its name beside it",
    }


def test_links_pipes_and_odd_names_are_set_aside(tmp_path: Path) -> None:
    outside, root = put(tmp_path / "outside" / "secret.png", "secret"), tmp_path / "root"
    inside = put(root / "ask" / "a.png")
    (root / "ask" / "inner.png").symlink_to(inside)
    (root / "ask" / "outer.png").symlink_to(outside)
    (root / "ask" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "ask" / "loop.png").symlink_to(root / "ask" / "loop.png")
    (root / "linked").symlink_to(outside.parent)
    os.mkfifo(root / "ask" / "pipe.png")
    put(root / "ask" / "b.png")
    (root / "ask" / "b.txt").symlink_to(outside.with_suffix(".txt"))
    put(root / "ask" / "line\nbreak.png")
    put(root / "ask" / "c.png").rename(root / "ask" / "\udcff.png")
    found = look(root)
    assert list(by_source(found)) == ["in/ask/a.png", "in/ask/inner.png", "in/ask/line\nbreak.png"]
    assert reasons(found) == {
        "in/linked": "is a linked folder, not followed",
        "in/ask/b.png": "is a link that leaves its folder",
        "in/ask/gone.png": "is not a plain file",
        "in/ask/loop.png": "is not a plain file",
        "in/ask/outer.png": "is a link that leaves its folder",
        "in/ask/pipe.png": "is not a plain file",
        "in/ask/\\udcff.png": "has a name that is not UTF-8",
    }
    json.dumps(reasons(found), ensure_ascii=False).encode()
    (root / "manifest.jsonl").symlink_to(put(outside.with_name("manifest.png")))
    with pytest.raises(FileError, match=r"manifest\.jsonl is a link that leaves its folder"):
        look(root)


def test_sidecars_that_are_no_text_are_named(tmp_path: Path) -> None:
    put(tmp_path / "ask" / "a.png", b"\xff\x00\x01\x80hair")
    put(tmp_path / "ask" / "b.png", "x" * 70000)
    put(tmp_path / "ask" / "c.png", "fine")
    found = look(tmp_path)
    assert list(by_source(found)) == ["in/ask/c.png"]
    assert reasons(found) == {
        "in/ask/a.png": "its tags a.txt are not text in UTF-8 or cp932 or gb18030",
        "in/ask/b.png": "its tags b.txt are longer than 65536 bytes",
    }


def test_manifest(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.png", "deep/c.png"):
        put(tmp_path / name, "from sidecar")
    put(tmp_path.parent / "outside.png")
    (tmp_path / "deep" / "credit.toml").write_text('licence = "MIT"')
    lines = [
        {"file": "a.png", "style": "by Ask", "tags": "Red_Hair, smile", "licence": "CC0-1.0", "credit": "A"},
        {"file": "deep/b.png", "tags": ["hat", "Long_Hair"]},
        {"file": "./deep//c.png", "style": ""},
        {"file": "../outside.png", "style": "Out"},
        {"file": str(tmp_path.parent / "outside.png")},
        {"file": "C:\\outside.png"},
        {"file": "missing.png", "style": "ask"},
        {"file": "deep/../a.png"},
        {"file": ".hidden.png"},
        {"file": "a\x00.png"},
        {"file": "x" * 300 + ".png"},
        {"file": "deep"},
        {"file": ""},
        {"file": "a.png", "tagz": "typo"},
        {"file": "a.png", "licence": "\ud800"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n\nnot json\n[1]\n"
    (tmp_path / "manifest.jsonl").write_text(text)
    found = look(tmp_path)
    assert [(c.source, c.style, c.tags, c.licence, c.credit) for c in found.candidates] == [
        ("in/a.png", "ask", ("red hair", "smile"), "CC0-1.0", "A"),
        ("in/deep/b.png", "deep", ("hat", "long hair"), "MIT", ""),
        ("in/deep/c.png", "", ("from sidecar",), "MIT", ""),
    ]
    assert list(found.styles) == ["ask", "out"], "a refused line's style was still meant"
    refused = [4, 5, 6, 8, 9, 10, 13, 14, 15, 17, 18]
    named = {f"in/manifest.jsonl:{line}" for line in refused}
    assert set(found.quarantined) == named | {"in/missing.png", f"in/{'x' * 300}.png", "in/deep"}
    assert "'../outside.png' is not a path inside the folder" in reasons(found)["in/manifest.jsonl:4"]


@given(st.binary() | st.text().map(lambda file: json.dumps({"file": file}).encode()))
def test_no_manifest_line_leads_outside(line: bytes) -> None:
    entry = read_entry(line)
    if isinstance(entry, Entry):
        path = os.path.normpath(os.path.join("/pictures/in", entry.file))  # noqa: PTH118
        assert path.startswith("/pictures/in/") and "\0" not in path


def test_inputs_that_can_t_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not a folder; expected a folder of pictures"):
        look(put(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="both have an input named in"):
        look(tmp_path, **{"in": tmp_path})
    for name in ("a/b", "..", ""):
        with pytest.raises(ValueError, match="expected up to 64 letters"):
            PrepareInputs(pictures={name: tmp_path})
