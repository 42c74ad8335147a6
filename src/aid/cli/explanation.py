"""How `aid make RECIPE --dry-run` tells what it would do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from aid.estimate.explain import GPU, Row, explain, measured_rate
from aid.make import Recipe

STATES = {
    "kept": "kept: it is there and fits",
    "runs": "runs",
    "later": "is there; runs if the steps before it give anything new",
    "waits": "waits for what is missing",
    "follows": "runs once the steps before it have what they wait for",
}
LINE = 110  # characters


def print_explanation(recipe: Recipe, runs: Path, as_json: bool) -> None:
    """Every step, what is missing, and the whole; nothing is run."""
    rate = measured_rate()
    rows = explain(recipe, rate)
    if as_json:
        steps = [dataclasses.asdict(row) for row in rows]
        told = {
            "title": recipe.title,
            "cpu_flops": rate,
            "gpu": GPU,
            "missing": missing(rows),
            "steps": steps,
        }
        click.echo(json.dumps(told, ensure_ascii=False, indent=1))
        return
    click.echo(f"{recipe.title}\n")
    noted: set[str] = set()
    for number, row in enumerate(rows, 1):
        click.echo(f"{number:2}. {row.step}: {row.verb}. {row.summary}")
        new = [note for note in row.notes if note not in noted]
        noted.update(new)
        for line in (*_step_lines(row), *(f"note: {note}" for note in new)):
            click.echo(textwrap.fill(line, LINE, initial_indent="      ", subsequent_indent="        "))
    for line in _whole(rows, runs, rate):
        click.echo(f"\n{textwrap.fill(line, LINE, break_on_hyphens=False)}")


def missing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Each missing path with the inputs, `step.input`, that it is for."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, path in row.missing.items():
            found.setdefault(path, []).append(f"{row.step}.{name}")
    return found


def _step_lines(row: Row) -> Iterator[str]:
    told = [
        f"{name} = {path}{' (missing)' if name in row.missing else ''}" for name, path in row.inputs.items()
    ]
    yield f"{STATES[row.state]}; from {', '.join(told) or 'nothing'}"
    yield row.sizes
    if row.state != "kept":
        scratch = f" (and {_bytes(row.scratch_bytes)} while it runs)" if row.scratch_bytes else ""
        yield (
            f"about {_bytes(row.memory_bytes)} of memory, {_bytes(row.disk_bytes)} of disk{scratch}, "
            f"{_time(row.cpu_seconds)} on this CPU or {_time(row.gpu_seconds)} on a GPU"
        )


def _whole(rows: Sequence[Row], runs: Path, rate: float) -> Iterator[str]:
    if lacking := missing(rows):
        yield "Missing: " + "; ".join(f"{path} (for {', '.join(uses)})" for path, uses in lacking.items())
    if words := [f"--input {path[1:]}=PATH" for path in lacking if path.startswith("$")]:
        yield f"Give them with {' '.join(words)}"
    memory = max(row.memory_bytes for row in rows)
    disk = sum(row.disk_bytes for row in rows) + max(row.scratch_bytes for row in rows)
    cpu, gpu = sum(row.cpu_seconds for row in rows), sum(row.gpu_seconds for row in rows)
    kept = sum(row.state == "kept" for row in rows)
    yield (
        f"The whole: {len(rows) - kept} of {len(rows)} steps, at most {_bytes(memory)} of memory, "
        f"{_bytes(disk)} of disk, {_time(cpu)} on this CPU or {_time(gpu)} on a GPU. {_machine(runs)}"
    )
    yield (
        f"These are estimates, and can be off by half or double. CPU: {rate / 1e9:.0f} GFLOP/s in "
        "convolutions, measured just now, of which networks reach about 40 %. "
        f"GPU: {GPU}; small models keep none busy and take longer."
    )


def _machine(runs: Path) -> str:
    folder = next(parent for parent in (runs.absolute(), *runs.absolute().parents) if parent.exists())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(folder).free
    return f"This machine has {_bytes(memory)} of memory and {_bytes(free)} of free disk."


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
