"""Pictures a second, ours beside diffusers' StableDiffusionPipeline and beside the bare calls of the U-Net
and the VAE: the starter, one prompt with different seeds, 32 steps Euler a, guidance 7, to PNGs on the disk.
The three take turns, so that what else the machine does meets them alike; figures are medians of their
ratios. Then where a picture's time goes, each part without the parts that it calls.

    python benchmarks/drawing.py [--json FILE] [--rounds N] [--device cuda] [--checkpoint FILE]
                                 [--edge PX ...] [--batch N ...]

The goals: 1.3 times diffusers, and at most 3 % beyond the bare calls. The parts are told on a CPU only: a
GPU's calls return before they are done.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from part_clock import PartClock
from reporting import Row, report

from aid import starter
from aid.core.artifact import asked
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.generate import run
from aid.generate.gallery import picture_name
from aid.generate.material import Material, load_material
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.drawing import pipeline as drawing
from aid.sd.drawing.denoiser import Denoiser
from aid.sd.drawing.quick import quick
from aid.sd.drawing.shot_text import Texts
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.sd.sampling.random import PictureNoise

STEPS = 32
PROMPT, NEGATIVE = "by lorelei, blue hair, smile", "blurry"
GOAL, OVERHEAD = 1.3, 1.03
FEWEST = 4  # pictures of a run
PEER = "diffusers"


class Bench:
    """One size and one batch: the same pictures by three ways, each a run of `count`."""

    def __init__(self, material: Material, peer: Any, edge: int, batch: int, folder: Path) -> None:
        self.material, self.peer, self.edge, self.batch, self.folder = material, peer, edge, batch, folder
        self.count = max(batch, FEWEST // batch * batch)
        self.model, self.settings = material.model, GenerateSettings(batch_size=batch)
        inputs = GenerateInputs(checkpoint=material.model.path or starter.BASE)
        self.lineage = asked("generate", self.settings, inputs).embedded(ancestors=False)

    def ours(self) -> None:
        """What `aid generate` does once the model is loaded."""
        shots = [
            Shot(
                prompt=PROMPT, negative_prompt=NEGATIVE, seed=seed,
                width=self.edge, height=self.edge, steps=STEPS,
            )
            for seed in range(self.count)
        ]  # fmt: skip
        files = [self.folder / picture_name(index, shot, ".png") for index, shot in enumerate(shots)]
        run.draw_missing(self.material, shots, files, self.settings, self.lineage, Workbench())
        for file in files:
            file.unlink()

    def theirs(self) -> None:
        for start in range(0, self.count, self.batch):
            pictures = self.peer(
                [PROMPT] * self.batch, negative_prompt=[NEGATIVE] * self.batch, num_inference_steps=STEPS,
                guidance_scale=7.0, width=self.edge, height=self.edge,
                generator=[torch.Generator().manual_seed(start + index) for index in range(self.batch)],
            ).images  # fmt: skip
            for index, picture in enumerate(pictures):
                picture.save(self.folder / f"theirs-{start + index}.png")

    @torch.inference_mode()
    def bare(self) -> None:
        """As many calls of the U-Net and the VAE, of the same shapes, and nothing else."""
        model, edge = self.model, self.edge // 8
        latent = torch.randn(self.batch, 4, edge, edge, device=model.device, dtype=model.dtype)
        x = torch.cat([latent] * 2).to(memory_format=torch.channels_last)
        context = torch.randn(len(x), 77, model.architecture.text_width).to(x)
        time_step = torch.tensor(500.0, device=model.device)
        for _ in range(0, self.count, self.batch):
            with quick(model):
                for _ in range(STEPS):
                    model.unet(x, time_step, context, return_dict=False)
            model.vae.decode(latent, return_dict=False)

    def seconds(self, action: Callable[[], None]) -> float:
        """Of one picture."""
        started = time.perf_counter()
        action()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / self.count

    def rows(self, rounds: int) -> list[Row]:
        ways = (self.ours, self.theirs, self.bare)
        for way in ways:
            way()
        clock = PartClock()
        taken: dict[str, list[float]] = {way.__name__: [] for way in ways}
        for number in range(rounds):
            for way in (*ways[number % 3 :], *ways[: number % 3]):
                with clock.parts(parts_of(self.model) if way == self.ours else {}):
                    taken[way.__name__].append(self.seconds(way))
        return [*self._compared(**taken), *self._parts(clock, taken["ours"])]

    def _compared(self, ours: list[float], theirs: list[float], bare: list[float]) -> list[Row]:
        rate, peer, best = (1 / statistics.median(one) for one in (ours, theirs, bare))
        times = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
        beyond = statistics.median(our / least for our, least in zip(ours, bare, strict=True))
        return [
            Row(f"{self.name}, pictures a second", rate, "1/s", limit=best, peers={PEER: peer}),
            Row(f"{self.name}, times diffusers", times, "1", limit=GOAL),
            Row(f"{self.name}, times the bare calls", beyond, "1", limit=OVERHEAD),
        ]

    def _parts(self, clock: PartClock, ours: list[float]) -> list[Row]:
        """Of the runs together; what no part has is the rest."""
        if self.model.device.type == "cuda":
            return []
        pictures, whole = len(ours) * self.count, sum(ours) / len(ours)
        parts = {part: spent / pictures for part, spent in clock.spent.items()}
        parts["the rest"] = whole - sum(spent for part, spent in parts.items() if part != SAVING)
        return [
            Row(f"{self.name}, {part}", 1e3 * spent, "ms", peers={"share": spent / whole})
            for part, spent in parts.items()
        ]

    @property
    def name(self) -> str:
        return f"{self.edge} px, batch {self.batch}"


SAVING = "PNG and lineage, while the next is drawn"


def parts_of(model: StableDiffusion) -> dict[str, list[tuple[Any, str]]]:
    """The functions that do each part of a picture."""
    return {
        "U-Net": [(model.unet, "forward")],
        "VAE": [(model.vae, "decode")],
        "text": [(drawing, "_denoiser"), (run, "plan_batches"), (Material, "infotext"), (Texts, "guide")],
        "noise": [(PictureNoise, "__call__"), (PictureNoise, "__init__")],
        "guidance": [(Denoiser, "__call__")],
        "sampler's arithmetic": [(drawing, "_sample")],
        "to 8 bits": [(drawing, "to_pictures")],
        SAVING: [(run, "picture_bytes"), (run, "write_bytes")],
    }


def load_peer(checkpoint: Path, device: str) -> Any:
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


def measure(checkpoint: Path, edges: list[int], batches: list[int], rounds: int, device: str) -> list[Row]:
    material = load_material(GenerateSettings(), GenerateInputs(checkpoint=checkpoint), Workbench(device))
    peer = load_peer(checkpoint, device)
    with tempfile.TemporaryDirectory() as folder:
        benches = [Bench(material, peer, edge, batch, Path(folder)) for edge in edges for batch in batches]
        return [row for bench in benches for row in bench.rows(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", type=Path, default=starter.BASE)
    parser.add_argument("--edge", type=int, nargs="+", default=[128])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    given = parser.parse_args()
    report(measure(given.checkpoint, given.edge, given.batch, given.rounds, given.device), given.json)


if __name__ == "__main__":
    main()
