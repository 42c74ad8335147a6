"""Damaged manifests, sidecars, credits and names in the folders that `prepare` takes in."""

from __future__ import annotations

from pathlib import Path

from damage import BYTES, LINES, TOML
from fuzzing import Target, fuzz

from aid.dataset.finding.find import find
from aid.dataset.finding.manifest import read_manifest
from aid.dataset.settings import PrepareInputs, PrepareSettings

MANIFEST = b"""{"file": "a/0.png", "style": "x", "tags": "1girl, smile", "licence": "CC0-1.0", "credit": "A"}
{"file": "a/1.png", "shot": {"prompt": "p", "tags": ["b"]}}

{"file": "a/2.png", "tags": ["one", "two"]}
"""
TREE = {
    "10_x/0.png": b"", "10_x/0.txt": b"1girl, ^_^, long_hair\n(o)_(o)", "y/1.webp": b"",
    "y/1.caption": "\ufeffred hair, \\(a\\)".encode(),
    "y/credit.toml": b'licence = "CC0-1.0"\ncredit = "A"\n',
    "credit.toml": b'[styles]\n"10_x" = "other"\n', "Thumbs.db": b"x",
}  # fmt: skip


def read(folder: Path) -> None:
    for _ in read_manifest(folder / "manifest.jsonl") if (folder / "manifest.jsonl").exists() else ():
        pass
    inputs = PrepareInputs(pictures={"in": folder}, vae=folder / "vae")
    found = find(inputs, PrepareSettings(resolution_px=64))
    for one in found.candidates:
        assert one.path.resolve().is_relative_to(folder.resolve())
        assert all(tag and tag.isprintable() and tag == tag.strip() for tag in one.tags), one.tags
        str(one.source).encode()
    for name, aside in found.quarantined.items():
        assert name.isprintable() and aside.reason, (name, aside)


def test_damaged_manifests_and_sidecars(tmp_path: Path) -> None:
    pictures = {f"a/{index}.png": b"" for index in range(3)}
    samples = [{"manifest.jsonl": MANIFEST, **pictures}, TREE]
    mutators = {".jsonl": LINES, ".toml": TOML, "": BYTES}
    fuzz(Target("manifest", samples, read, mutators), tmp_path / "fuzzed")
