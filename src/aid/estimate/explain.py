"""What a recipe would take, step by step, without running it: `aid make RECIPE --dry-run`.

Every figure is an estimate. Time is a step's FLOPs over a rate: the CPU's is measured on the spot, the
GPU's assumed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from aid.errors import AidError
from aid.estimate.scene import Scene, Work
from aid.estimate.work import WORK
from aid.make import Recipe, Step
from aid.sd.model.cost import COSTS

REACHED = 0.4  # of the CPU's measured rate, by whole networks: what the starter's training reached
GPU_RATES = {2: 25e12, 4: 12e12}  # FLOP/s by bytes a number
GPU = "a GPU that sustains 25 TFLOP/s in 16 bits and 12 in 32, assumed of a card of 24 GB"
GPU_BYTES = 24e9
RUNTIME_BYTES = 0.55e9  # Python, torch and diffusers, and what small tensors leave


@dataclass(frozen=True)
class Row:
    """One step explained. `state` is kept, runs, later (what earlier steps give will decide), waits (for
    `missing` inputs), or follows (a step that waits). Bytes and seconds are estimates, 0 for what is kept;
    `scratch` is freed at the end."""

    step: str
    verb: str
    summary: str
    state: str
    inputs: dict[str, str]
    missing: dict[str, str]
    sizes: str
    memory_bytes: int = 0
    disk_bytes: int = 0
    scratch_bytes: int = 0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    notes: tuple[str, ...] = ()


def explain(recipe: Recipe, rate: float) -> list[Row]:
    """Every step, whether or not its inputs are there; `rate` is the CPU's, FLOP/s (see `measured_rate`).

    Reads headers, counts files and hashes what is made already; runs nothing.
    """
    profiles = (getattr(step.settings, "memory_profile", None) or "" for step in recipe.steps)
    is_xl = any(profile.startswith("sdxl") for profile in profiles)
    scene = Scene(model=COSTS["sdxl" if is_xl else "sd1"])
    return [_explain(step, scene, rate) for step in recipe.steps]


def measured_rate(seconds: float = 0.2) -> float:
    """FLOP/s of this CPU now, in 3x3 convolutions of 2 GFLOP, the best of those done in `seconds`."""
    x, weight, best = torch.ones(27, 128, 16, 16), torch.ones(128, 128, 3, 3), 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        best = max(best, 2 * weight.numel() * 27 * 16 * 16 / (time.perf_counter() - start))
    return best


def _explain(step: Step, scene: Scene, rate: float) -> Row:
    paths = step.inputs.paths()
    makers = {name: maker for name, path in paths.items() if (maker := scene.maker(path))}
    missing = {name: str(path) for name, path in paths.items() if name not in makers and not path.exists()}
    state, notes = _state(step, missing, any(maker in scene.changed for maker in makers.values()))
    if state != "waits" and any(maker in scene.waiting for maker in makers.values()):
        state = "follows"
    inputs = {name: scene.told(path) for name, path in paths.items()}
    work: Work = WORK[step.verb](step.settings, step.inputs, scene)
    scene.names[step.out], scene.made[step.out] = step.name, work.made
    if state != "kept":
        scene.changed.add(step.out)
    if state in ("waits", "follows"):
        scene.waiting.add(step.out)
    row = Row(step.name, step.verb, step.entry.summary, state, inputs, missing, work.sizes)
    return row if state == "kept" else _with_figures(row, work, notes, rate)


def _state(step: Step, missing: Mapping[str, str], upstream: bool) -> tuple[str, tuple[str, ...]]:
    """Whether the step will run, and what stands in its way."""
    if missing or not step.out.exists():
        return "waits" if missing else "runs", ()
    if upstream:
        return "later", ()
    try:
        return "kept" if step.current() else "runs", ()
    except AidError as error:
        return "runs", (str(error),)


def _with_figures(row: Row, work: Work, notes: tuple[str, ...], rate: float) -> Row:
    memory = RUNTIME_BYTES + work.memory
    if memory > GPU_BYTES:
        notes = (
            *notes,
            "a GPU of 24 GB can't hold this: see training's memory profiles, or take smaller batches",
        )
    return replace(
        row,
        memory_bytes=round(memory),
        disk_bytes=round(work.disk),
        scratch_bytes=round(work.scratch),
        cpu_seconds=work.seconds + work.flops / (REACHED * rate),
        gpu_seconds=work.seconds + work.flops / GPU_RATES[work.number_bytes],
        notes=(*filter(None, work.notes), *notes),
    )
