"""Merging real-size files, beside the limit (their bytes read and written) and what people merge with.

    python benchmarks/merging.py [--case NAME ...] [--peer NAME[=COMMAND] ...] [--folder FOLDER] [--runs 3]
        [--json FILE]

Files of random values are made here, in their real formats and shapes (2.1 GB for SD1.5 in fp16, 6.9 GB for
SDXL), and removed again. Each job is a process of its own with the page cache warm; a case's jobs take turns,
and the median counts. `limit` reads what the merge needs and writes its result in pieces of 256 KiB into a
preallocated file, synced to the disk as AID's is.

Any other program can be a peer, too: --peer 'copy=cp {style} {out}'. A shell runs the command, in which the
names of the case's files (style, detail, composition, fourth; lora0 ...) and `out` stand for their paths.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from reporting import Row, report

from aid.core.lineage import SETTLED_NS

PIECE = 256 << 10
RESULT = "peer.safetensors"
MIB = 1 << 20
ITEM = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """A released file's keys and shapes, position ids last."""
    import torch

    from aid.sd.model.architecture import REAL
    from aid.sd.model.checkpoint import _assemble
    from aid.sd.model.layouts import PLACES, POSITIONS

    with torch.device("meta"):
        model = _assemble(REAL[family])
    found = {}
    for part, module in model.parts().items():
        for key, tensor in module.state_dict().items():
            if not key.endswith("position_ids"):
                place = PLACES[part](key, family)
                found[place.key] = place.shape(tuple(tensor.shape))
    return found | {POSITIONS[family]: (1, 77)}


def sized(size: float) -> dict[str, tuple[int, ...]]:
    """SD1's small tensors, and in M00 as many of 64 MiB as make a file of that many bytes in fp16."""
    every = shapes("sd1").items()
    small = {key: shape for key, shape in every if math.prod(shape) < 1 << 20 or "token_embedding" in key}
    left = round((size - 2 * sum(map(math.prod, small.values()))) / (64 * MIB))
    return small | {f"model.diffusion_model.middle_block.1.filler.{i}": (32 * MIB,) for i in range(left)}


def make_file(path: Path, layout: Mapping[str, Any], format: str, seed: int) -> None:
    """Normal values of spread .02, from a pool of 4 million taken from a random place each time."""
    import torch

    chance = random.Random(seed)
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[format]
    pool = torch.empty(1 << 22).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed)).to(dtype)
    raw = memoryview(pool.view(torch.uint8).numpy())
    names = {name: "I64" if name.endswith("position_ids") else format for name in layout}
    entries: dict[str, Any] = {}
    at = 0
    for name in sorted(layout, key=lambda name: (-ITEM[names[name]], name)):
        count = 1
        for edge in layout[name]:
            count *= edge
        end = at + count * ITEM[names[name]]
        entries[name] = {"dtype": names[name], "shape": list(layout[name]), "data_offsets": [at, end]}
        at = end
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name, entry in entries.items():
            if names[name] == "I64":
                stream.write(b"".join(i.to_bytes(8, "little") for i in range(77)))
                continue
            left = entry["data_offsets"][1] - entry["data_offsets"][0]
            while left:
                start = chance.randrange(len(raw) // 8) * 8
                left -= stream.write(raw[start : start + min(left, len(raw) - start)])


@dataclass(frozen=True)
class Case:
    """A merge: the parents' family and formats, and the settings, as `aid merge --settings` reads them."""

    family: str
    formats: tuple[str, ...]
    settings: str
    peers: tuple[str, ...] = ()
    dora: bool = False
    """Whether adapters have magnitudes for inputs, and are on convolutions too."""
    loras: int = 0
    """How many of rank 32 are baked."""
    portable: bool = False
    """By numpy, as where there was no compiler."""
    gigabytes: int = 0
    """Read and written together; 0: as large as the family's are."""

    def layout(self) -> dict[str, tuple[int, ...]]:
        share = self.gigabytes * 1e9 / (len(self.formats) + 1)
        return sized(share) if self.gigabytes else shapes(self.family)

    def models(self, folder: Path) -> dict[str, Path]:
        return {
            name: folder / f"{self.family}{self.gigabytes or ''}-{format}-{name}.safetensors"
            for name, format in zip(NAMES, self.formats, strict=False)
        }

    def adapters(self, folder: Path) -> dict[str, Path]:
        kind = "dora" if self.dora else "lora"
        return {f"{kind}{i}": folder / f"{self.family}-{kind}{i}.safetensors" for i in range(self.loras)}

    def files(self, folder: Path) -> dict[str, Path]:
        return self.models(folder) | self.adapters(folder)


NAMES = ("style", "detail", "composition", "fourth", "fifth")
MBW = """
primary = "style"
steps = ["detail", "composition"]
[weights.detail]
BASE = 0.3
IN = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.8, 0.7, 0.6]
M00 = 0.5
OUT = [0.4, 0.3, 0.2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
[weights.composition]
BASE = 0.65
IN = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3, 0.4]
M00 = 0.25
OUT = [0.5, 0.6, 0.7, 0.8, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
"""


def chain(mode: str, models: tuple[str, ...], **numbers: float) -> str:
    lines = "".join(f"{name} = {value}\n" for name, value in numbers.items())
    return f"[[chain]]\nmode = {mode!r}\nmodels = {list(models)!r}\n{lines}"


CASES = {
    "mbw of three": Case("sd1", ("F16",) * 3, MBW, ("loop", "mecha")),
    "card's (0/1)": Case("sd1", ("F16",) * 3, 'preset = "aid-v1"\n'),
    "mbw of three, fp32": Case("sd1", ("F32",) * 3, MBW),
    "mbw of three, bf16": Case("sd1", ("BF16",) * 3, MBW),
    "mbw of three, mixed": Case("sd1", ("F16", "F32", "BF16"), MBW),
    "mbw of three, numpy": Case("sd1", ("F16",) * 3, MBW, portable=True),
    "add difference": Case("sd1", ("F16",) * 3, chain("add_difference", NAMES[:3], alpha=0.7)),
    "ties of four": Case("sd1", ("F16",) * 4, chain("ties", NAMES[:4], alpha=0.5, beta=0.2)),
    "dare of four": Case("sd1", ("F16",) * 4, chain("dare", NAMES[:4], alpha=0.5, beta=0.3)),
    "slerp": Case("sd1", ("F16",) * 2, chain("slerp", NAMES[:2], alpha=0.4)),
    "cosine_b": Case("sd1", ("F16",) * 2, chain("cosine_b", NAMES[:2], alpha=0.2)),
    "train difference": Case("sd1", ("F16",) * 3, chain("train_difference", NAMES[:3], alpha=0.7)),
    "tensor": Case("sd1", ("F16",) * 2, chain("tensor", NAMES[:2], alpha=0.3, beta=0.2)),
    "extract": Case("sd1", ("F16",) * 3, chain("extract", NAMES[:3], alpha=0.5, beta=0.2)),
    "smooth_add": Case("sd1", ("F16",) * 3, chain("smooth_add", NAMES[:3], alpha=0.7)),
    "five LoRA": Case("sd1", ("F16",), 'primary = "style"\n', loras=5),
    "DoRA by inputs": Case("sd1", ("F16",), 'primary = "style"\n', loras=1, dora=True),
    "sdxl, five LoRA": Case("sdxl", ("F16",), 'primary = "style"\n', loras=5),
    "sdxl, two": Case("sdxl", ("F16",) * 2, chain("weighted_sum", NAMES[:2], alpha=0.4), ("loop",)),
    "sdxl, slerp": Case("sdxl", ("F16",) * 2, chain("slerp", NAMES[:2], alpha=0.4)),
    "sdxl, cosine_b": Case("sdxl", ("F16",) * 2, chain("cosine_b", NAMES[:2], alpha=0.2)),
    "sdxl, dare": Case("sdxl", ("F16",) * 2, chain("dare", NAMES[:2], alpha=0.5, beta=0.3)),
    "sdxl, ties of three": Case("sdxl", ("F16",) * 3, chain("ties", NAMES[:3], alpha=0.5, beta=0.2)),
    "sdxl, three": Case("sdxl", ("F16",) * 3, chain("triple_sum", NAMES[:3], alpha=0.3, beta=0.3)),
    **{
        f"growth, {size} GB": Case(
            "sd1", ("F16",) * 2, chain("weighted_sum", NAMES[:2], alpha=0.4), gigabytes=size
        )
        for size in (1, 2, 5, 10, 20)
    },
}


def make_lora(path: Path, family: str, seed: int, dora: bool) -> None:
    """Rank 32 on every layer that kohya's trainer puts one on."""
    import torch

    from aid.sd.adapter.file import save_adapter
    from aid.sd.adapter.target import kohya_targets, skeleton
    from aid.sd.model.architecture import REAL

    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, target in kohya_targets(skeleton(REAL[family]), convolutions=dora).items():
        narrow = [1] * (len(target.shape) - 2)
        tensors[f"{name}.lora_down.weight"] = 0.02 * torch.randn(32, *target.shape[1:], generator=chance)
        tensors[f"{name}.lora_up.weight"] = 0.02 * torch.randn(target.shape[0], 32, *narrow, generator=chance)
        tensors[f"{name}.alpha"] = torch.tensor(16.0)
        if dora:
            tensors[f"{name}.dora_scale"] = 1 + 0.1 * torch.randn(
                1, target.shape[1], *narrow, generator=chance
            )
    save_adapter(path, tensors, {})


def limit(models: Mapping[str, Path], target: Path) -> None:
    """Read all of every file and write as much as the first holds."""
    files = [os.open(path, os.O_RDONLY) for path in models.values()]
    sizes = [os.fstat(file).st_size for file in files]
    total = sizes[0]
    rows = [memoryview(bytearray(PIECE * 4)) for _ in files]
    with open(target, "wb", buffering=0) as stream:
        os.posix_fallocate(stream.fileno(), 0, total)
        for at in range(0, total, PIECE):
            count = min(PIECE, total - at)
            for file, row, size in zip(files, rows, sizes, strict=True):
                os.preadv(file, [row[: count * size // total]], at * size // total)
            os.pwrite(stream.fileno(), rows[0][:count], at)
        os.fsync(stream.fileno())


def loop(models: Mapping[str, Path], target: Path) -> None:
    """What a person writes: everything loaded, a loop in torch, everything saved."""
    import torch
    from safetensors.torch import load_file, save_file

    first, *others = [load_file(path) for path in models.values()]
    for key, tensor in first.items():
        if tensor.is_floating_point():
            share = 1 / (len(others) + 1)
            total = tensor.float() * share
            for other in others:
                total += other[key].float() * share
            first[key] = total.to(tensor.dtype)
    save_file(first, target)
    with open(target, "rb") as stream:
        os.fsync(stream.fileno())
    assert torch


def mecha(models: Mapping[str, Path], target: Path) -> None:
    """sd-mecha, from PyPI."""
    import sd_mecha
    import torch

    first, *others = [sd_mecha.model(str(path)) for path in models.values()]
    for number, other in enumerate(others, 2):
        first = sd_mecha.weighted_sum(first, other, alpha=1 / number)
    sd_mecha.merge(first, output=target, output_dtype=torch.float16, merge_device="cpu", threads=1)


def by_command(command: str, models: Mapping[str, Path], target: Path) -> None:
    """Any program; one that adds an ending to the result's name may."""
    paths = {name: shlex.quote(str(path)) for name, path in {**models, "out": target}.items()}
    try:
        words = command.format(**paths)
    except KeyError as missing:
        raise SystemExit(f"{missing} is none of the case's files; expected {', '.join(paths)}") from None
    subprocess.run(words, shell=True, check=True, stdout=sys.stderr)
    if not any(target.parent.glob(f"{target.name}*")):
        raise SystemExit(f"{words} left no {target}; expected the merge, written to {{out}}")


Peer = Callable[[Mapping[str, Path], Path], None]
PEERS: dict[str, Peer] = {"loop": loop, "mecha": mecha}
SLOW = 15.0  # seconds; a peer that takes longer runs once


def job(text: str) -> Peer:
    """By its name, or the command that it is."""
    return {"limit": limit, **PEERS}.get(text) or partial(by_command, text)


def named(text: str) -> tuple[str, str]:
    """A peer's name and its job."""
    name, _, command = text.partition("=")
    if not command and name not in PEERS:
        raise argparse.ArgumentTypeError(f"{text} is no peer; expected {', '.join(PEERS)} or NAME=COMMAND")
    return name, command or name


START = """
import sys
from aid.cli import main
from aid.merge.arithmetic import sums
if PORTABLE:
    sums.kernel = lambda: None
sys.path.insert(0, sys.argv.pop(1))
from merging import tell_peak
try:
    main()
finally:
    tell_peak()
"""


def tell_peak() -> None:
    """Of this process or the largest that it ran; what wait4 tells of them counts its own parent in."""
    status = Path("/proc/self/status").read_text()
    own = int(status.split("VmHWM:")[1].split()[0])
    print("VmHWM:", max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss), "kB", file=sys.stderr)


class Cost(NamedTuple):
    """Seconds of the wall's clock and of processors', and MiB at the peak."""

    wall: float
    cpu: float
    peak: float


def timed(words: list[str]) -> Cost:
    began, before = time.monotonic(), _child_seconds()
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    peak = int(done.stderr.rsplit("VmHWM:", 1)[1].split()[0]) / 1024
    return Cost(seconds, _child_seconds() - before, peak)


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commands(name: str, case: Case, folder: Path, peers: Mapping[str, str]) -> dict[str, list[str]]:
    settings = folder / "settings.toml"
    settings.write_text(case.settings)
    given = [word for model, path in case.models(folder).items() for word in ("--models", f"{model}={path}")]
    given += [word for lora, path in case.adapters(folder).items() for word in ("--loras", f"{lora}={path}")]
    start = START.replace("PORTABLE", str(case.portable))
    aid = [sys.executable, "-c", start, str(Path(__file__).parent), "merge", "--settings", str(settings)]
    jobs = {"aid": [*aid, *given, "--out", str(folder / "out")]}
    for peer, own in {"limit": "limit", **peers}.items():
        jobs[peer] = [sys.executable, __file__, "--job", own, name, str(folder)]
    return jobs


def measure(name: str, case: Case, folder: Path, runs: int, peers: Mapping[str, str]) -> list[Row]:
    """`peers` are jobs by their names."""
    costs: dict[str, list[Cost]] = {}
    for _ in range(runs + 1):  # the first fills the page cache and the memory of hashes
        for own, words in commands(name, case, folder, peers).items():
            if own in peers and own in costs and costs[own][0].wall > SLOW:
                continue
            costs.setdefault(own, []).append(timed(words))
            clean(folder)

    def row(title: str, unit: str, figure: Callable[[Cost], float], limit: float | None = None) -> Row:
        found = {own: statistics.median(map(figure, each[1:] or each)) for own, each in costs.items()}
        beside = {own: found[own] for own in peers}
        return Row(title, found["aid"], unit, found["limit"] if limit is None else limit, beside)

    return [
        row(name, "s", lambda cost: cost.wall),
        row(f"{name}, processors", "s", lambda cost: cost.cpu),
        row(f"{name}, memory", "MiB", lambda cost: cost.peak, 64.0),
    ]


def clean(folder: Path) -> None:
    shutil.rmtree(folder / "out", ignore_errors=True)
    for left in folder.glob(f"{RESULT}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def prepare(case: Case, folder: Path) -> None:
    """Make the case's files, unless the last case had them, and remove all others."""
    wanted = case.models(folder)
    for stale in set(folder.glob("*.safetensors")) - set(case.files(folder).values()):
        stale.unlink()
    layout = case.layout()
    for number, (path, format) in enumerate(zip(wanted.values(), case.formats, strict=True)):
        if not path.exists():
            make_file(path, layout, format, number)
    for number, path in enumerate(case.adapters(folder).values()):
        if not path.exists():
            make_lora(path, case.family, number, case.dora)
    time.sleep(2 * SETTLED_NS / 1e9)  # the hash of a younger file isn't remembered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument(
        "--peer", action="append", type=named, metavar="NAME[=COMMAND]", help="in place of the case's own"
    )
    parser.add_argument("--folder", type=Path, help="where the files go, and are removed again")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave the files for another run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        own, name, folder = chosen.job
        job(own)(CASES[name].files(Path(folder)), Path(folder) / RESULT)
        tell_peak()
        return
    rows = []
    if chosen.folder:
        chosen.folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=chosen.folder)) if not chosen.keep else chosen.folder
    try:
        for name in chosen.case or CASES:
            case = CASES[name]
            prepare(case, place)
            peers = dict(chosen.peer or [(peer, peer) for peer in case.peers])
            rows += measure(name, case, place, chosen.runs, peers)
            report(rows[-3:], None)
    finally:
        if not chosen.keep:
            shutil.rmtree(place)
    if chosen.json:
        report(rows, chosen.json)


if __name__ == "__main__":
    main()
