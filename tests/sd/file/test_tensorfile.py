"""Our serializer beside the official one, and every malformed file a clear error."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aid.errors import FileError
from aid.sd.file.tensorfile import DTYPES, open_tensors, read_header, read_tensors, write_tensors

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "ids": torch.arange(5).unsqueeze(0),
    "wide": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 7),
    "brain": torch.ones(3, dtype=torch.bfloat16),
}


def test_official_reader_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, TENSORS, {"b": "2", "a": "1"})
    safetensors.torch.save_file(TENSORS, theirs, metadata={"a": "1"})
    for path, reader in ((ours, safetensors.torch.load_file), (theirs, read_tensors)):
        read = reader(path)
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)
    assert list(read_header(ours).tensors) == list(read_header(theirs).tensors), "the official order"


def test_bytes_are_reproducible_and_aligned(tmp_path: Path) -> None:
    shuffled = dict(reversed(TENSORS.items()))
    write_tensors(tmp_path / "a", TENSORS, {"x": "é", "y": "2"})
    write_tensors(tmp_path / "b", shuffled, {"y": "2", "x": "é"})
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0 and content[8:10] == b'{"'


def test_file_mode_honours_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_tensors(tmp_path / "a", TENSORS, {})
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def expanded(size: int) -> torch.Tensor:
    return torch.ones(1).expand(size)


@pytest.mark.parametrize(
    "tensor",
    [
        expanded(2**40),
        torch.eye(2).to_sparse(),
        torch.empty(3, device="meta"),
        torch.ones(2, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=["expanded", "sparse", "meta", "complex", "quantised"],
)
def test_unpickled_tensors_that_are_not_what_they_claim(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "odd.pt")
    for reader in (read_tensors, open_tensors):
        with pytest.raises(FileError, match=r"odd.pt.*(no plain tensor|would run code)"):
            reader(tmp_path / "odd.pt")


def test_an_archive_that_would_fill_the_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for record in plain.infolist():
            content = bytes(200 << 20) if record.filename.endswith("data/0") else plain.read(record)
            bomb.writestr(record.filename, content, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileError, match=r"bomb.pt would unpack to 200 MB"):
        read_tensors(tmp_path / "bomb.pt")


def test_an_archive_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "claims.pt"
    torch.save({"a": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")  # data.pkl's record in the list of all
    content[at + 20 : at + 24] = (0x7FFF_FFF0).to_bytes(4, "little")  # its size as stored
    path.write_bytes(content)
    tracemalloc.start()
    with suppress(FileError):
        read_tensors(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "end at byte"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "inconsistent"),
        ({"a": {"dtype": "Q4", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "inconsistent"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, b"", "inconsistent"),
        ({"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}, b"1234", "inconsistent"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            },
            b"123456",
            "overlaps",
        ),
        ([1, 2], b"", "not a JSON object"),
        (b"{broken", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (rb'{"__metadata__": {"a": "\ud800"}}', b"", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), b"", "not JSON"),
        ({"__metadata__": {"a": 1}}, b"", "metadata is not text"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, header: object, data: bytes, reason: str) -> None:
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(FileError, match=reason) as error:
        read_tensors(path)
    assert "bad.safetensors" in str(error.value)


def test_a_header_of_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2 << 30) + b"{}")
    with pytest.raises(FileError, match="claims"):
        read_header(tmp_path / "x.safetensors")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_bytes_are_an_error_not_a_crash(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError):
        read_tensors(path)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_round_trip_of_any_names_types_and_shapes(tmp_path: Path, spec: dict) -> None:
    tensors = {name: torch.ones(shape).to(DTYPES[dtype]) for name, (dtype, shape) in spec.items()}
    write_tensors(tmp_path / "t.safetensors", tensors, {})
    read = read_tensors(tmp_path / "t.safetensors") if tensors else {}
    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {
        name: (t.dtype, t.shape) for name, t in tensors.items()
    }


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pt", "evil.safetensors"])
def test_pickles_never_run_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Bomb(marker)}))
    with pytest.raises(FileError, match="run code"):
        read_tensors(tmp_path / name)
    torch.save({"a": Bomb(marker)}, tmp_path / name)
    with pytest.raises(FileError, match="run code"):
        read_tensors(tmp_path / name)
    assert not marker.exists()


def test_a_plain_ckpt_is_read_and_a_truncated_one_named(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3)}, "epoch": 3}, path)
    assert torch.equal(read_tensors(path)["a"], torch.ones(3))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileError, match="truncated"):
        read_tensors(path)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "end", "shape", "dtype", "drop", "twice"]),
            st.integers(0, 5),
            st.integers(-(1 << 65), 1 << 65) | st.integers(-4, 40),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(-9, 9),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_header_that_lies_is_an_error_or_harmless(
    tmp_path: Path, changes: list[tuple[str, int, int]], cut: int
) -> None:
    """Offsets, shapes and formats changed at will: tensors that are read lie in the file, side by side."""
    entries: dict = {
        f"t{index}": {"dtype": "F16", "shape": [4], "data_offsets": [8 * index, 8 * index + 8]}
        for index in range(6)
    }
    for what, index, value in changes:
        entry = entries.get(f"t{index}")
        if what == "twice":
            entries[f"copy{index}"] = entry
        elif what == "drop" or entry is None:
            entries.pop(f"t{index}", None)
        elif what == "dtype":
            entry["dtype"] = [*DTYPES, "F4", None, 3][value % (len(DTYPES) + 3)]
        elif what == "shape":
            entry["shape"] = [value] if value % 3 else [value, 0]
        else:
            entry["data_offsets"][what == "end"] = value
    path = write_raw(tmp_path / "lie.safetensors", entries, bytes(max(0, 48 + cut)))
    try:
        header = read_header(path)
    except FileError as error:
        assert "lie.safetensors is not a whole safetensors file" in str(error)
        return
    ends = [info.end for info in header.tensors.values()]
    assert [info.start for info in header.tensors.values()] == [header.data_start, *ends][: len(ends)]
    assert not ends or ends[-1] == path.stat().st_size
    assert all(header.read(name).shape == info.shape for name, info in header.tensors.items())
