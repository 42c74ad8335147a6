"""The hashes that tools and sites use, against their formulas on whole files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from aid.errors import FileError
from aid.sd.file.hashes import hash_file
from aid.sd.file.tensorfile import write_tensors

TENSORS = {
    "lora_unet_b.weight": torch.randn(500, 700, generator=torch.Generator().manual_seed(1)),
    "lora_unet_a.weight": torch.randn(9, 7, generator=torch.Generator().manual_seed(2)).half(),
    "lora_unet_a.alpha": torch.tensor(4, dtype=torch.int64),
}
METADATA = {"ss_network_dim": "8", "modelspec.title": 'Ünïcode "quoted"\n', "sshs_model_hash": "stale"}


def of_bytes(content: bytes) -> tuple[str, str]:
    """sha256 of what follows the header, and of 64 kB a megabyte in (8 digits)."""
    after = content[8 + int.from_bytes(content[:8], "little") :]
    return hashlib.sha256(after).hexdigest(), hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("metadata", [METADATA, {"note": "no ss_"}, {"ss_note": "é\\ \x07"}, {}])
def test_every_hash_of_a_safetensors_file(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, metadata)
    content = path.read_bytes()
    assert len(content) > 0x110000
    found = hash_file(path)
    assert found.sha256 == hashlib.sha256(content).hexdigest() and found.autov2 == found.sha256[:10]
    assert (found.autov3, found.autov1) == (of_bytes(content)[0][:12], of_bytes(content)[1])
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    official = of_bytes(safetensors.torch.save(TENSORS, kept))
    assert (found.sshs_model_hash, found.sshs_legacy_hash) == official


def test_a_file_in_another_order_has_the_model_hash_of_the_official_one(tmp_path: Path) -> None:
    """Names in another order, as some writers leave them; built by hand."""
    from tests.sd.file.test_tensorfile import write_raw

    one, two = torch.ones(2), torch.zeros(3)
    entries = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]},
    }
    data = one.numpy().tobytes() + two.numpy().tobytes()
    path = write_raw(tmp_path / "odd.safetensors", entries, data)
    official = of_bytes(safetensors.torch.save({"a": two, "b": one}, {}))
    assert hash_file(path).sshs_model_hash == official[0] != hashlib.sha256(data).hexdigest()


def test_pickles_have_only_the_hashes_of_files(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    found = hash_file(tmp_path / "a.pt")
    assert found.named() == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "AutoV1": of_bytes(content)[1],
        "AutoV2": hashlib.sha256(content).hexdigest()[:10],
    }
    with pytest.raises(FileError, match="could not be read"):
        hash_file(tmp_path / "none")
