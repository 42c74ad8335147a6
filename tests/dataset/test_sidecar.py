"""Tags in the encodings that people's files have."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.dataset.finding.sidecar import Text, decode, read_sidecar
from aid.errors import PictureError

FALLBACKS = ("cp932", "gb18030")
JAPANESE, CHINESE = "赤い髪, 笑顔, アニメ塗り", "红色头发, 微笑, 厚涂, 插画"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_needs_no_fallback(encoding: str) -> None:
    text = "1girl, red hair, 微笑, smile, solo"
    content = text.encode(encoding)
    assert decode(content, ()) == Text(text, encoding if encoding in ("utf-16-le", "utf-16-be") else "")
    assert decode(b"\xfe\xff" + "hat".encode("utf-16-be"), ()) == Text("hat")


def test_fallbacks_are_told_apart_and_named() -> None:
    assert decode(JAPANESE.encode("cp932"), FALLBACKS) == Text(JAPANESE, "cp932")
    assert decode(CHINESE.encode("gb18030"), FALLBACKS) == Text(CHINESE, "gb18030")
    assert decode(JAPANESE.encode("cp932"), ()) is None
    assert decode("naïve café".encode("cp1252"), ("cp1252",)) == Text("naïve café", "cp1252")


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\xff\xff")
    with pytest.raises(PictureError, match=r"its tags a\.txt are not text in UTF-8 or cp932 or gb18030"):
        read_sidecar(path, FALLBACKS)
    path.write_bytes(b"\xff\xfeh")
    with pytest.raises(PictureError, match=r"are not text in UTF-8"):
        read_sidecar(path)


@given(st.binary(max_size=64))
def test_any_bytes_are_text_or_refused(content: bytes) -> None:
    text = decode(content, FALLBACKS)
    assert text is None or isinstance(text.content, str)


@given(st.text(max_size=64))
def test_any_text_written_as_utf_8_is_read_back(text: str) -> None:
    found = decode(text.encode(), FALLBACKS)
    assert found is not None and (found.guess or found.content == text.removeprefix("\ufeff"))
