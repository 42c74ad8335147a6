"""Large files' hashes outlive the process, and never the file that they are of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from aid.core import known_hash
from aid.core.known_hash import known_sha256


def identity(path: Path) -> known_hash.Identity:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def test_a_large_file_is_hashed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hash, "LARGE_BYTES", 1)
    file, memory = tmp_path / "model", tmp_path / "cache" / "aid" / "hashes.json"
    file.write_bytes(b"one")
    assert known_sha256(file, identity(file)) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(known_hash, "sha256_file", lambda path: pytest.fail("it was known"))
        assert known_sha256(file, identity(file)) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert known_sha256(file, identity(file)) == hashlib.sha256(b"two").hexdigest()
    for damage in (b"", b"[1]", b"{", b"\xff"):
        memory.write_bytes(damage)
        assert known_sha256(file, identity(file)) == hashlib.sha256(b"two").hexdigest()


def test_small_files_and_a_read_only_home_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model"
    file.write_bytes(b"one")
    for large in (64 << 20, 1):
        monkeypatch.setattr(known_hash, "LARGE_BYTES", large)
        assert known_sha256(file, identity(file)) == hashlib.sha256(b"one").hexdigest()
    assert (tmp_path / "cache").is_file()
