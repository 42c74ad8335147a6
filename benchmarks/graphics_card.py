"""SD1.5 and SDXL at their real size on a GPU: pictures drawn and trained on a second, beside diffusers.

    python benchmarks/graphics_card.py [--parts draw train sdxl] [--compiled] [--rounds N] [--json FILE]

Weights are random and made on the card. Drawing is SD1.5, 512 px, half precision, 32 steps Euler a with
guidance, to PNGs: `aid generate`'s own way, diffusers' pipeline, with --compiled also with its blocks
compiled, which takes minutes, and the bare calls. Training is U-Net and text encoder in bfloat16 from cached
latents; its limit is the card's peak, which a product of two matrices of 8192 x 8192 tells. diffusers' loop
encodes its pictures in every step, as its script does, but finds them on the card. Its script for SDXL trains
the U-Net alone, from latents and texts encoded before; ours trains both text encoders too.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from drawing import STEPS, Bench
from reporting import Row, report
from trainers import Loop, sdxl_loop
from training import LATE, lively, make_dataset, ours

from aid.generate.material import Material
from aid.sd.model.architecture import SD1, SDXL, Architecture
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint
from aid.sd.model.cost import Cost
from aid.sd.model.device import same_bits_on_cuda
from aid.sd.picture.infotext import Weights
from aid.train.settings import FinetuneSettings
from aid.train.weight_types import trained_types

CARD = "cuda"
SIZE = 8192  # of the matrices whose product tells the card's peak
FORWARD_AND_BACKWARD = 3  # times the FLOPs of a forward pass
WARM_UP = 3  # steps
FEWEST, BATCHES = 8, 2  # pictures of a run of ours at least, and batches: the last one's files are waited for
PEERS = 2  # pictures of a run of theirs, which takes as long for each
Run = Callable[[], None]


def idle() -> None:
    """No step: what the one before it held can be freed."""


def made(architecture: Architecture, dtype: torch.dtype = torch.float32) -> StableDiffusion:
    with torch.device(CARD):
        model = create_checkpoint(architecture, 1)
    for module in model.modules():
        module.to(CARD, dtype)
    return model


def peak_flops(rounds: int = 20) -> float:
    """FLOPs a second of one large product in bfloat16."""
    a, b = (torch.randn(SIZE, SIZE, device=CARD, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: a @ b, rounds, warm_up=5)
    return 2 * SIZE**3 / seconds


def timed(run: Callable[[], Any], rounds: int, warm_up: int = WARM_UP) -> float:
    """Seconds of one call, once it is warm."""
    for _ in range(warm_up):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / rounds


def pipeline(model: StableDiffusion, compiled: bool) -> Any:
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace",
        steps_offset=0,
    )  # fmt: skip
    unet = copy.deepcopy(model.unet)
    if compiled:
        unet.compile_repeated_blocks(fullgraph=True)
    pipe: Any = StableDiffusionPipeline(
        model.vae, model.text_encoder, model.tokenizer, unet, scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_rows(batches: list[int], rounds: int, compiled: bool) -> Iterator[Row]:
    """Steps a second: calls of the U-Net for one batch, with all that a picture needs beside them."""
    model = made(SD1, torch.float16)
    model.unet.to(memory_format=torch.channels_last)
    model.vae.to(memory_format=torch.channels_last)
    material = Material(model, {}, {}, Weights("random"))
    pipes = {"diffusers": pipeline(model, False)}
    if compiled:
        pipes["diffusers, blocks compiled"] = pipeline(model, True)
    for batch in batches:
        with tempfile.TemporaryDirectory() as folder:
            benches = {name: Bench(material, pipe, 512, batch, Path(folder)) for name, pipe in pipes.items()}
            for bench in benches.values():
                bench.count = max(batch, PEERS)
            own = Bench(material, None, 512, batch, Path(folder))
            own.count = max(batch * BATCHES, FEWEST)
            ways = {"ours": (own, own.ours), "bare": (own, own.bare)}
            ways |= {name: (bench, bench.theirs) for name, bench in benches.items()}
            rates = {way: STEPS / (seconds_of(*how, rounds) * batch) for way, how in ways.items()}
        bare, rate = rates.pop("bare"), rates.pop("ours")
        yield Row(f"SD1.5 512 px fp16, batch {batch}, steps", rate, "1/s", bare, rates)


def seconds_of(bench: Bench, run: Run, rounds: int) -> float:
    """Of one picture, the first run not counted."""
    found = statistics.median([bench.seconds(run) for _ in range(rounds + 1)][1:])
    print(f"batch {bench.batch}, {run.__qualname__}: {found:.3f} s a picture", flush=True)
    return found


def diffusers_step(batch: int, edge: int) -> Run:
    """A step of its dreambooth script with --mixed_precision bf16."""
    model = lively(made(SD1))
    loop = Loop(model, "bf16")
    model.vae.to(torch.bfloat16)
    pixels = torch.rand(batch, 3, edge, edge, device=CARD, dtype=torch.bfloat16) * 2 - 1

    def step() -> None:
        with torch.no_grad():
            latents = model.vae.encode(pixels).latent_dist.sample() * model.architecture.vae_scale
        loop.step(latents.float(), encoder_hidden_states=loop.context(batch))

    return step


def diffusers_sdxl_step(batch: int, edge: int, recomputed: bool) -> Run:
    """A step of its SDXL script with --mixed_precision bf16; what it doesn't need is not in memory."""
    model = lively(made(SDXL))
    for part in (model.vae, model.text_encoder, model.text_encoder_2):
        part.to("meta")
    return sdxl_loop(model, edge, batch, "bf16", recomputed)


def our_step(architecture: Architecture, edge: int, folder: Path, **chosen: Any) -> Run:
    folder.mkdir()
    settings = FinetuneSettings(steps=LATE + 999, unet_rate=1e-6, text_rate=1e-6, warmup=0, **chosen)
    model = lively(made(architecture))
    if not isinstance(types := trained_types(settings), torch.dtype):
        for part, module in model.parts().items():
            for layer in module.modules():
                for weight in layer.parameters(recurse=False):
                    weight.data = weight.data.to(types(part, layer, weight))
    return ours(model, make_dataset(folder, edge, 4 * settings.batch_size), settings, folder)


def trained(name: str, batch: int, steps: dict[str, Callable[[], Run]], limit: float, rounds: int) -> Row:
    """Pictures a second of each, one after another: two of them don't fit beside each other."""
    rates: dict[str, float] = {}
    for way, make in steps.items():
        try:
            step = make()
            rates[way] = batch / timed(step, rounds)
        except torch.cuda.OutOfMemoryError as error:
            print(f"{name}, {way}: {str(error).splitlines()[0]}", flush=True)
        memory = torch.cuda.max_memory_reserved() / 2**30  # recordings keep what they don't count as taken
        print(f"{name}, {way}: {rates.get(way, 0):.1f} pictures/s, {memory:.1f} GiB", flush=True)
        step = idle
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Row(f"{name}, pictures", rates.pop("ours", 0.0), "1/s", limit, rates)


def train_rows(batches: list[int], rounds: int, peak: float) -> Iterator[Row]:
    limit = peak / (FORWARD_AND_BACKWARD * Cost(SD1).unet_flops(64 * 64))
    common = {"precision": "bf16", "checkpointing": False, "ema": 0.0}
    for batch in batches:
        with tempfile.TemporaryDirectory() as name:
            steps: dict[str, Callable[[], Run]] = {
                "ours": partial(our_step, SD1, 512, Path(name) / "data", batch_size=batch, **common),
                "diffusers": partial(diffusers_step, batch, 512),
            }
            yield trained(f"SD1.5 512 px bf16, batch {batch}", batch, steps, limit, rounds)


def sdxl_rows(batches: list[int], rounds: int, peak: float) -> Iterator[Row]:
    limit = peak / (FORWARD_AND_BACKWARD * Cost(SDXL).unet_flops(128 * 128))
    common = {"memory_profile": "sdxl-80gb", "ema": 0.0}
    for batch in batches:
        with tempfile.TemporaryDirectory() as name:
            steps: dict[str, Callable[[], Run]] = {
                "ours": partial(our_step, SDXL, 1024, Path(name) / "data", batch_size=batch, **common),
                "diffusers": partial(diffusers_sdxl_step, batch, 1024, False),
                "diffusers, recomputed": partial(diffusers_sdxl_step, batch, 1024, True),
            }
            yield trained(f"SDXL 1024 px bf16, batch {batch}", batch, steps, limit, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["draw", "train", "sdxl"])
    parser.add_argument("--draw-batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--train-batch", type=int, nargs="+", default=[32])
    parser.add_argument("--sdxl-batch", type=int, nargs="+", default=[8])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    same_bits_on_cuda()
    peak = peak_flops()
    print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s", flush=True)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "draw": lambda: draw_rows(chosen.draw_batch, chosen.rounds, chosen.compiled),
        "train": lambda: train_rows(chosen.train_batch, 2 * chosen.rounds, peak),
        "sdxl": lambda: sdxl_rows(chosen.sdxl_batch, chosen.rounds, peak),
    }
    rows: list[Row] = []
    for part in chosen.parts:
        rows += parts[part]()
        report(rows, chosen.json)


if __name__ == "__main__":
    main()
