"""Opening and converting real-size single files, beside plain copying and safetensors' own functions.

    python benchmarks/files.py [--family sd1 --family sdxl] [--folder FOLDER] [--json FILE]

Each file is made here, of random fp16 values (2.1 GB for SD1.5, 6.9 GB for SDXL), and FOLDER must hold it
twice. Whatever is timed has the file in the page cache and ends with its result on the disk; each job is a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from reporting import Row, report

MIB = 1 << 20
SPARE_MIB, TIMES_LARGEST = 300.0, 1.2  # what a conversion may use beyond an empty process


def make_file(family: str, path: Path) -> None:
    """The keys and shapes of a released file, in small random values, and its position ids."""
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
            return torch.empty(shape).normal_(0, 0.02, generator=generator).half()

        return Stored(torch.float16, shape, read)

    with torch.device("meta"):
        model = _assemble(architecture)
    tensors = {}
    for part, module in model.parts().items():
        for key, tensor in module.state_dict().items():
            place = PLACES[part](key, architecture.family)
            tensors[place.key] = random(place.shape(tuple(tensor.shape)))
    metadata = {"modelspec.title": "random"}
    write_stored(path, Weights(path, architecture, tensors, metadata).whole(), metadata)


def nothing(source: Path, target: Path) -> None:
    """Only the imports."""
    import aid.sd.model.convert  # noqa: F401


def convert(source: Path, target: Path) -> None:
    from aid.sd.model.convert import Conversion
    from aid.sd.model.convert import convert as run

    run(source, target, Conversion())


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
    job.__name__: job for job in (nothing, convert, copy, safetensors_copy)
}


def run_job(name: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds that the job itself took, and MiB at its process's peak; the better of two runs."""
    seconds, peaks = [], []
    for _ in range(1 if name == "nothing" else 2):
        target.unlink(missing_ok=True)
        words = [sys.executable, __file__, "--job", name, str(source), str(target)]
        told = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.split()
        seconds.append(float(told[0]))
        peaks.append(float(told[1]))
    return min(seconds), min(peaks)


def do_job(name: str, source: Path, target: Path) -> None:
    nothing(source, target)
    import safetensors.torch  # noqa: F401

    began = time.monotonic()
    JOBS[name](source, target)
    print(time.monotonic() - began, _peak_mib())


def _peak_mib() -> float:
    """Of this process since it began; what wait4 tells counts its parent in."""
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def median_seconds(action: Callable[[], object], runs: int = 15) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def opening(family: str, path: Path) -> list[Row]:
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
    return [
        Row(f"{family}, header of {path.stat().st_size / 1e9:.1f} GB", header, "ms", limit, peers),
        Row(f"{family}, architecture, blocks, metadata", blocks, "ms", limit, peers),
    ]


def measure(family: str, folder: Path) -> list[Row]:
    from aid.sd.file.tensorfile import read_header

    source, target = folder / f"{family}.safetensors", folder / "out.safetensors"
    make_file(family, source)
    largest = max(info.end - info.start for info in read_header(source).tensors.values()) / MIB
    try:
        rows = opening(family, source)
        found = {name: run_job(name, source, target) for name in JOBS if name != "convert"}
        found["convert"] = run_job("convert", source, target)
        if not filecmp.cmp(source, target, shallow=False):
            raise SystemExit("the converted file differs")
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    empty = found["nothing"][1]
    name = "load_file + save_file"
    seconds, memory = found["convert"][0], found["convert"][1] - empty
    peer_seconds, peer_memory = found["safetensors_copy"][0], found["safetensors_copy"][1] - empty
    allowed = TIMES_LARGEST * largest + SPARE_MIB
    return [
        *rows,
        Row(f"{family}, convert", seconds, "s", found["copy"][0], {name: peer_seconds}),
        Row(f"{family}, convert, memory beyond imports", memory, "MiB", allowed, {name: peer_memory}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=["sd1", "sdxl"])
    parser.add_argument("--folder", type=Path, help="where the files go, and are removed again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        name, source, target = chosen.job
        do_job(name, Path(source), Path(target))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        rows = [row for family in chosen.family or ["sd1", "sdxl"] for row in measure(family, Path(folder))]
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
