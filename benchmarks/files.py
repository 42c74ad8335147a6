"""Opening and converting real-size single files, beside plain copying and safetensors' own functions.

    python benchmarks/files.py [--family sd1 --family sdxl] [--folder FOLDER] [--runs 2] [--json FILE]

Each file is made here, of random fp16 values (2.1 GB for SD1.5, 6.9 GB for SDXL), and FOLDER must hold it
three times. Each job is a process of its own: its memory is what it takes at its highest beyond what the
imports took, and its time ends when the result is on the disk. What is timed finds the file in the page
cache, as far as that reaches. Whatever comes out is compared with the file, bit for bit. At the end, unless
SD1.5 is left out, `outputs.py` compares what diffusers and AID compute with each other's files.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import outputs
from reporting import Row, report

MIB = 1 << 20
SPARE_MIB, TIMES_LARGEST = 300.0, 1.2  # what a conversion may use beyond its imports
ONE = 0x3C00  # in fp16
PEER = "load_file + save_file"
TITLE = {"modelspec.title": "random"}


def make_file(family: str, path: Path) -> None:
    """The keys and shapes of a released file, in random fp16 values from 0 to 1 (every bit pattern, the
    smallest included), and its position ids; one tensor at a time."""
    import torch

    from aid.sd.file.tensorfile import Stored, write_stored
    from aid.sd.model.architecture import REAL
    from aid.sd.model.checkpoint import _assemble
    from aid.sd.model.layouts import PLACES
    from aid.sd.model.weights import Weights

    architecture = REAL[family]
    generator = torch.Generator().manual_seed(1)

    def random(shape: tuple[int, ...]) -> Stored:
        def read() -> torch.Tensor:
            bits = torch.empty(shape, dtype=torch.int16).random_(0, ONE, generator=generator)
            return bits.view(torch.float16)

        return Stored(torch.float16, shape, read)

    with torch.device("meta"):
        model = _assemble(architecture)
    tensors = {}
    for part, module in model.parts().items():
        for key, tensor in module.state_dict().items():
            place = PLACES[part](key, architecture.family)
            tensors[place.key] = random(place.shape(tuple(tensor.shape)))
    write_stored(path, Weights(path, architecture, tensors, TITLE).whole(), TITLE)


# The jobs, each in a process of its own


def make(family: Path, target: Path) -> None:
    make_file(family.name, target)


def look(source: Path, target: Path) -> None:
    from aid.sd.inspection import inspect

    inspect(source, hashes=False)


def convert(source: Path, target: Path, *options: str) -> None:
    """As a person does."""
    from aid.cli import root

    root.main(["convert", str(source), str(target), *options], prog_name="aid", standalone_mode=False)


def convert_to_fp32(source: Path, target: Path) -> None:
    convert(source, target, "--dtype", "fp32")


def convert_to_bf16(source: Path, target: Path) -> None:
    convert(source, target, "--dtype", "bf16")


def copy(source: Path, target: Path) -> None:
    """Read and write the same bytes, through a buffer of 16 MiB."""
    with open(source, "rb", buffering=0) as reading, open(target, "wb", buffering=0) as writing:
        while block := reading.read(16 * MIB):
            writing.write(block)
        os.fsync(writing.fileno())


def safetensors_copy(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(source), target)
    with open(target, "rb") as stream:
        os.fsync(stream.fileno())


JOBS: dict[str, Callable[[Path, Path], None]] = {
    job.__name__: job
    for job in (make, look, convert, convert_to_fp32, convert_to_bf16, copy, safetensors_copy)
}


@dataclass(frozen=True)
class Cost:
    seconds: float
    memory_mib: float
    """At its highest, beyond the imports."""
    process_mib: float
    """At its highest, all in all."""


def run_job(name: str, source: Path, target: Path, runs: int = 1) -> Cost:
    """What the job itself took; the least of some runs."""
    costs = []
    for _ in range(runs):
        remove(target)
        words = [sys.executable, __file__, "--job", name, str(source), str(target)]
        told = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]
        costs.append(Cost(*map(float, told.split())))
    best = Cost(*(min(getattr(one, field) for one in costs) for field in Cost.__dataclass_fields__))
    print(f"{name} {source.name}: {best}", file=sys.stderr, flush=True)
    return best


def do_job(name: str, source: Path, target: Path) -> None:
    import safetensors.torch  # noqa: F401

    import aid.cli.converting
    import aid.sd.conversion
    import aid.sd.inspection
    import aid.sd.model.checkpoint  # noqa: F401

    with suppress(OSError):  # where the peak can't be set back, what the imports took for a moment counts
        Path("/proc/self/clear_refs").write_text("5")
    before, began = memory_mib("VmRSS"), time.monotonic()
    JOBS[name](source, target)
    seconds, peak = time.monotonic() - began, memory_mib("VmHWM")
    print(seconds, peak - before, peak)


def memory_mib(field: str) -> float:
    """Of this process; what wait4 tells counts its parent in."""
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def holds_twice(path: Path) -> bool:
    """Whether there is memory enough for a file as it is read and as it is written, and as much to spare."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return free > 3 * path.stat().st_size


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# What is told


def median_seconds(action: Callable[[], object], runs: int = 15) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def opening(family: str, path: Path, target: Path) -> list[Row]:
    from safetensors import safe_open

    from aid.sd.file.tensorfile import read_header
    from aid.sd.inspection import inspect

    def bare() -> object:
        with open(path, "rb") as stream:
            return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))

    def theirs() -> object:
        with safe_open(path, "pt") as opened:
            return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118

    limit, peers = median_seconds(bare) * 1e3, {"safe_open": median_seconds(theirs) * 1e3}
    header = median_seconds(lambda: read_header(path)) * 1e3
    blocks = median_seconds(lambda: inspect(path, hashes=False)) * 1e3
    cost = run_job("look", path, target)
    return [
        Row(f"{family}, header of {path.stat().st_size / 1e9:.2f} GB", header, "ms", limit, peers),
        Row(f"{family}, architecture, blocks, metadata", blocks, "ms", limit, peers),
        memory_row(family, "the same", cost, SPARE_MIB),
    ]


def memory_row(family: str, name: str, cost: Cost, allowed_mib: float, peer: Cost | None = None) -> Row:
    peers = {"whole process": cost.process_mib}
    if peer is not None:
        peers[PEER] = peer.memory_mib
    return Row(f"{family}, {name}, memory", cost.memory_mib, "MiB", allowed_mib, peers)


def require_same(path: Path, source: Path) -> None:
    if not filecmp.cmp(path, source, shallow=False):
        raise SystemExit(f"{path} differs from {source}")


def require_cast(path: Path, source: Path, dtype: str) -> None:
    """Every tensor is the source's in another precision, bit for bit."""
    import torch

    from aid.sd.file.precision import PRECISIONS
    from aid.sd.file.tensorfile import read_header

    made, given = read_header(path), read_header(source)
    for name, info in given.tensors.items():
        kept = info.dtype == torch.int64
        wanted = given.read(name) if kept else given.read(name).to(PRECISIONS[dtype])
        if made.tensors[name].dtype != wanted.dtype or not torch.equal(made.read(name), wanted):
            raise SystemExit(f"{name} differs in {path}")
    if made.tensors.keys() != given.tensors.keys():
        raise SystemExit(f"{path} has other tensors than {source}")


def measure(family: str, folder: Path, runs: int) -> list[Row]:
    from aid.sd.file.tensorfile import read_header

    source, target = folder / f"{family}.safetensors", folder / "out.safetensors"
    made = run_job("make", Path(family), source)
    largest = max(info.end - info.start for info in read_header(source).tensors.values()) / MIB
    allowed = TIMES_LARGEST * largest + SPARE_MIB
    rows = [*opening(family, source, target), memory_row(family, "random file made", made, allowed)]
    plain = run_job("copy", source, target, runs)
    peer = run_job("safetensors_copy", source, target, runs) if holds_twice(source) else None

    def row(name: str, cost: Cost, times_bytes: float = 1.0) -> None:
        rows.append(
            Row(
                f"{family}, {name}",
                cost.seconds,
                "s",
                plain.seconds * times_bytes,
                {PEER: peer.seconds} if peer is not None and times_bytes == 1 else {},
            )
        )
        rows.append(memory_row(family, name, cost, allowed, peer))

    row("convert, file to file", run_job("convert", source, target, runs))
    require_same(target, source)
    remove(target)
    row("file to folder", run_job("convert", source, folder / "folder", runs))
    row("folder to file", run_job("convert", folder / "folder", target, runs))
    require_same(target, source)
    remove(folder / "folder")
    for dtype, times_bytes in (("bf16", 1.0), ("fp32", 2.0)):
        row(f"to {dtype}", run_job(f"convert_to_{dtype}", source, target, runs), times_bytes)
        require_cast(target, source, dtype)
    remove(target)
    remove(source)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=["sd1", "sdxl"])
    parser.add_argument("--folder", type=Path, help="where the files go, and are removed again")
    parser.add_argument("--runs", type=int, default=2, help="of each conversion; the fastest counts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        name, source, target = chosen.job
        do_job(name, Path(source), Path(target))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for family in chosen.family or ["sd1", "sdxl"]:
            rows += measure(family, Path(folder), chosen.runs)
        rows += outputs.measure(Path(folder)) if "sd1" in (chosen.family or ["sd1"]) else []
    report(rows, chosen.json)
    outputs.require_close(rows)
    over = [row for row in rows if row.unit == "MiB" and row.limit and row.ours > row.limit]
    if over:
        raise SystemExit(f"too much memory: {', '.join(row.name for row in over)}")


if __name__ == "__main__":
    main()
