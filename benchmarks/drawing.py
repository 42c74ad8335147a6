"""Pictures a second, ours beside diffusers' StableDiffusionPipeline: the starter, one prompt with different
seeds, 32 steps Euler a, guidance 7, in runs of at least four pictures. Both take turns, so that what else the
machine does meets them alike; the figure is the median of their ratios. And what a picture costs beside the
calls of the U-Net and the VAE.

    python benchmarks/drawing.py [--json FILE] [--rounds N] [--device cuda] [--checkpoint FILE]
                                 [--edge PX ...] [--batch N ...]

The goals: 1.3 times diffusers, and at most 3 % beside the calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from reporting import Row, report

from aid import starter
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.generate.material import load_model
from aid.sd.drawing.pipeline import draw
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.sd.picture.file import picture_bytes
from aid.sd.picture.infotext import write_infotext

STEPS = 32
PROMPT, NEGATIVE = "by lorelei, blue hair, smile", "blurry"
GOAL, OVERHEAD = 1.3, 0.03
FEWEST = 4  # pictures of a run


def shots(edge: int, batch: int, first: int) -> list[Shot]:
    return [
        Shot(
            prompt=PROMPT, negative_prompt=NEGATIVE, seed=first + index, width=edge, height=edge, steps=STEPS
        )
        for index in range(batch)
    ]


def ours(model: StableDiffusion, edge: int, batch: int, first: int) -> None:
    """From shots to the bytes of PNGs with their texts."""
    asked = shots(edge, batch, first)
    for picture, shot in zip(draw(model, asked, batch_size=batch), asked, strict=True):
        picture_bytes(picture, write_infotext(shot))


def theirs(pipeline: Any, edge: int, batch: int, count: int) -> None:
    """The same without texts, which diffusers doesn't write."""
    for start in range(0, count, batch):
        generators = [torch.Generator().manual_seed(start + index) for index in range(batch)]
        pictures = pipeline(
            [PROMPT] * batch, negative_prompt=[NEGATIVE] * batch, num_inference_steps=STEPS,
            guidance_scale=7.0, width=edge, height=edge, generator=generators,
        ).images  # fmt: skip
        for picture in pictures:
            picture_bytes(picture, "")


def peer(checkpoint: Path, device: str) -> Any:
    model = load_checkpoint(checkpoint, device)
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace",
        steps_offset=0,
    )  # fmt: skip
    pipeline: Any = StableDiffusionPipeline(
        model.vae, model.text_encoder, model.tokenizer, model.unet, scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def clocked(*owners: tuple[Any, str]) -> Iterator[list[float]]:
    """Seconds that each call of a method takes."""
    spent: list[float] = []
    kept = [(owner, name, getattr(owner, name)) for owner, name in owners]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                spent.append(time.perf_counter() - started)

        return run

    for owner, name, call in kept:
        setattr(owner, name, timed(call))
    try:
        yield spent
    finally:
        for owner, name, _ in kept:
            delattr(owner, name)


def seconds(action: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(checkpoint: Path, edges: list[int], batches: list[int], rounds: int, device: str) -> list[Row]:
    model = load_model(checkpoint, None, "fp32", Workbench(device))
    pipeline = peer(checkpoint, device)
    return [
        row
        for edge in edges
        for batch in batches
        for row in compare(model, pipeline, edge, batch, rounds, device)
    ]


def compare(
    model: StableDiffusion, pipeline: Any, edge: int, batch: int, rounds: int, device: str
) -> list[Row]:
    count = max(batch, FEWEST // batch * batch)
    ours(model, edge, batch, batch)
    theirs(pipeline, edge, batch, batch)
    own, other, beside = [], [], []
    for _ in range(rounds):
        with clocked((model.unet, "forward"), (model.vae, "decode")) as spent:
            own.append(seconds(lambda: ours(model, edge, batch, count), device))
        beside.append((own[-1] - sum(spent)) / sum(spent))
        other.append(seconds(lambda: theirs(pipeline, edge, batch, count), device))
    times = statistics.median(theirs / ours for ours, theirs in zip(own, other, strict=True))
    rate, peers = (count / statistics.median(taken) for taken in (own, other))
    name = f"{edge} px, batch {batch}"
    return [
        Row(f"{name}, pictures a second", rate, "1/s", peers={"diffusers": peers}),
        Row(f"{name}, times diffusers", times, "1", limit=GOAL),
        Row(f"{name}, beside U-Net and VAE", statistics.median(beside), "1", limit=OVERHEAD),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", type=Path, default=starter.BASE)
    parser.add_argument("--edge", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    given = parser.parse_args()
    report(measure(given.checkpoint, given.edge, given.batch, given.rounds, given.device), given.json)


if __name__ == "__main__":
    main()
