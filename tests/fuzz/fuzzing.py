"""Feeds a reader with damaged files for a while, and checks that each gives one clear error and nothing else.

    AID_FUZZ_SECONDS=30 pytest tests/fuzz               # how long each target runs; 2 seconds by default
    AID_FUZZ_INPUTS=20000 pytest tests/fuzz             # how many inputs it gets at most
    AID_FUZZ_SEED=5 AID_FUZZ_FIRST=1234 pytest ...      # begin at the input that a failure named

Input number k depends on the seed and on k alone. What must hold for each: only an AidError comes out, in
one line that names the file; the time of the processor and the memory stay within bounds; nothing is
written, run or sent.
"""

from __future__ import annotations

import base64
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from aid.errors import AidError

Sample = Mapping[str, bytes]
"""File name -> content."""
Mutator = Callable[[random.Random, bytes], bytes]
Mutators = Mapping[str, Sequence[Mutator]]
"""File suffix -> what may be done to such a file."""

MOST_MESSAGE = 2000  # characters
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARM = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.remove", "os.rename", "os.mkdir",
    "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill",
    "subprocess.Popen", "pty.spawn", "shutil.", "socket.connect", "socket.bind", "webbrowser.open",
)  # fmt: skip
SEARCH_SECONDS = 10.0  # for the smallest file that fails in the same way


class TooSlow(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


@dataclass(frozen=True)
class Target:
    """A reader of the files in a folder, valid samples of them, and the ways to damage one."""

    name: str
    samples: Sequence[Sample]
    read: Callable[[Path], object]
    mutators: Mutators
    memory_mb: int = 64
    """Beyond what the process holds before an input."""
    cpu_seconds: float = 10.0
    """For each input, of a few kB: far more than any takes, also where other work takes turns on the core."""
    names_file: bool = True


@dataclass(frozen=True)
class Failure:
    kind: str
    text: str


def fuzz(target: Target, folder: Path) -> None:
    """Fails the test, with the seed and the smallest input found, at the first input that isn't handled."""
    seconds = float(os.environ.get("AID_FUZZ_SECONDS", "2"))
    seed, first = (int(os.environ.get(f"AID_FUZZ_{name}", "0")) for name in ("SEED", "FIRST"))
    for sample in target.samples:
        attempt(target, sample, folder)  # what is imported for the first time may do as it likes
        refused, failure = attempt(target, sample, folder)
        assert not (refused or failure), f"{target.name}: valid {', '.join(sample)}: {refused or failure}"
    last = first + int(os.environ.get("AID_FUZZ_INPUTS", sys.maxsize))
    end, count, refusals = time.monotonic() + seconds, first, 0
    with _guarded(target.memory_mb):
        while count < last and time.monotonic() < end:
            sample = mutated(target, random.Random(f"{target.name}:{seed}:{count}"))
            refused, failure = attempt(target, sample, folder)
            if failure:
                small = smallest(target, sample, failure, folder)
                pytest.fail(_report(target.name, seed, count, failure, small), pytrace=False)
            refusals += bool(refused)
            count += 1
    print(f"{target.name}: {count - first} inputs, {refusals} refused")
    assert refusals or not target.names_file, "no damage was ever noticed"


def each(*readers: Callable[[Path], object]) -> Callable[[Path], None]:
    """All of them, whatever the others say; the first refusal counts."""

    def read(path: Path) -> None:
        refused: list[AidError] = []
        for reader in readers:
            try:
                reader(path)
            except AidError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    return read


def mutated(target: Target, chance: random.Random) -> Sample:
    """A sample with one to four damages, most in one file."""
    sample = dict(chance.choice(target.samples))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        name = chance.choice(sorted(sample))
        known = target.mutators.get(Path(name).suffix, ())
        sample[name] = chance.choice((*known, *target.mutators.get("", ())))(chance, sample[name])
    return sample


def attempt(target: Target, sample: Sample, folder: Path) -> tuple[str, Failure | None]:
    """The message with which the sample was refused, if it was, and what went wrong, if anything did."""
    _lay(sample, folder)
    before, refused = _resident(reset=True), ""
    try:
        with _watched(target.cpu_seconds) as harm, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                target.read(folder)
            except AidError as error:
                refused = str(error)
                if memory := _asked_for_memory(error):
                    return refused, Failure("memory", memory)
    except TooSlow:
        return "", Failure("slow", f"more than {target.cpu_seconds} s of the processor's time")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "", Failure(
            type(error).__name__, f"{_place(error)}: {type(error).__name__}: {str(error)[:500]}"
        )
    if harm:
        return refused, Failure("harm", f"{harm[:3]}")
    if warned:
        return refused, Failure("warning", str(warned[0].message)[:500])
    grown = (_resident(peak=True) - before) >> 10
    if grown > target.memory_mb:
        return refused, Failure("memory", f"{grown} MB beyond the {before >> 10} MB before")
    return refused, _judged(target, refused, sample, folder)


def _judged(target: Target, refused: str, sample: Sample, folder: Path) -> Failure | None:
    """Whether the message is as all are to be, and the folder as it was."""
    if refused and ("\n" in refused or "\r" in refused or len(refused) > MOST_MESSAGE):
        return Failure("message", f"{len(refused)} characters, not one short line: {refused[:300]!r}")
    if refused and target.names_file and not any(name in refused for name in (*sample, folder.name)):
        return Failure("unnamed", refused[:300])
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    if found.keys() != set(sample) or any(found[name].stat().st_size != len(sample[name]) for name in sample):
        return Failure("written", f"{sorted(found)} of {sorted(sample)}")
    return None


def smallest(target: Target, sample: Sample, failure: Failure, folder: Path) -> Sample:
    """The sample with as much cut out of each file as leaves it failing in the same way."""
    end = time.monotonic() + SEARCH_SECONDS
    small = dict(sample)
    for name in sorted(small):
        size = max(1, len(small[name]) // 2)
        while size and time.monotonic() < end:
            at = 0
            while at < len(small[name]) and time.monotonic() < end:
                shorter = {**small, name: small[name][:at] + small[name][at + size :]}
                found = attempt(target, shorter, folder)[1]
                if found and found.kind == failure.kind:
                    small = shorter
                else:
                    at += size
            size //= 2
    return small


def _report(name: str, seed: int, count: int, failure: Failure, small: Sample) -> str:
    files = "\n".join(
        f"{file}: {base64.b64encode(content).decode()[:6000]}" for file, content in small.items()
    )
    again = f"AID_FUZZ_SEED={seed} AID_FUZZ_FIRST={count}"
    return f"{name}: {failure.kind}: {failure.text}\nagain: {again}\nsmallest input found, base64:\n{files}"


def _lay(sample: Sample, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in sample.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _place(error: BaseException) -> str:
    """Where in the package it came from."""
    trace, place = error.__traceback__, "?"
    while trace:
        code = trace.tb_frame.f_code
        if "/aid/" in code.co_filename:
            place = f"{code.co_filename.rpartition('/aid/')[2]}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return place


def _asked_for_memory(error: BaseException) -> str:
    """A refusal must not come from memory that ran out."""
    cause: BaseException | None = error
    while cause is not None:
        told = str(cause).lower()
        if isinstance(cause, MemoryError) or "allocate memory" in told or "not enough memory" in told:
            return f"{type(cause).__name__}: {str(cause)[:300]}"
        cause = cause.__cause__ or cause.__context__
    return ""


_harm: list[str] | None = None


def _hook(event: str, given: tuple[object, ...]) -> None:
    if _harm is None:
        return
    if event == "open":
        path, mode, flags = given
        writes = isinstance(flags, int) and flags & WRITING and not str(path).startswith("/dev/")
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            _harm.append(f"opened {path} to write")
    elif event.startswith(HARM):
        _harm.append(event)


sys.addaudithook(_hook)


@contextmanager
def _watched(cpu_seconds: float) -> Iterator[list[str]]:
    """What is done to the world inside; raises TooSlow after so much of the processor's time."""
    global _harm
    noticed: list[str] = []

    def stop(_number: int, _frame: object) -> None:
        raise TooSlow

    former = signal.signal(signal.SIGPROF, stop)
    _harm = noticed
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield noticed
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _harm = None
        signal.signal(signal.SIGPROF, former)


@contextmanager
def _guarded(memory_mb: int) -> Iterator[None]:
    """No allocation may take the process far beyond what it has: the address space is kept from growing."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    size = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (memory_mb + 256 << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _resident(reset: bool = False, peak: bool = False) -> int:
    """Memory of the process in kB, now or at its highest since the last reset; 0 where nobody tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        wanted = "VmHWM" if peak else "VmRSS"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(wanted))
    except (OSError, StopIteration):
        return 0
