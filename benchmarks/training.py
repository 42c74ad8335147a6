"""A training step beside the ideal loop, a save's stall beside writing the file, and the first step.

    python benchmarks/training.py [--checkpoint FILE] [--edge PX] [--batch N] [--rounds N] [--json FILE]

The ideal loop has the same forward and backward pass, clipping and fused AdamW, on tensors that are there
already; "ideal unfused" is AdamW as trainers mostly call it, on row-major weights; beside them stand the
loops of two other tools (trainers.py). All run round by round, on models of their own: AID's with and without
the averaged weights, which the ideal loop has not; it is late in a training, so at every eighth step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from reporting import Row, report
from trainers import diffusers_loop, kohya_loop

from aid.core.dataset import Dataset, Record, latent_file
from aid.core.workbench import Workbench
from aid.sd.file.state import save_state
from aid.sd.model.architecture import Architecture
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint, load_checkpoint, save_checkpoint
from aid.sd.model.device import torch_device
from aid.sd.model.text_encoder import encode_ids
from aid.sd.sampling.noise import alphas_cumprod
from aid.starter import BASE
from aid.train.log import Log
from aid.train.loop import take
from aid.train.optimiser.group import weights_of
from aid.train.run import style_training
from aid.train.saving import Saver
from aid.train.settings import FinetuneSettings
from aid.train.step.batch import token_windows
from aid.train.step.plan import Ahead, plan_styles

Run = Callable[[], None]
LATE, EIGHT = 2000, 8  # steps that the training is meant to have done; rounds whose mean is taken
NARROW = Architecture(
    unet_widths=(32, 64, 128, 128), unet_heads=4, text_width=64, text_heads=4,
    vae_widths=(8, 16, 16, 16), vae_groups=4, native_edge_px=64,
)  # fmt: skip
FIRST_STEP = """
import sys, time; began = time.monotonic()
from pathlib import Path
from contextlib import contextmanager
import aid
from aid.core.workbench import Silence, Workbench
class First(Silence):
    @contextmanager
    def task(self, *_, **__):
        def tick(*_, **__):
            print(time.monotonic() - began); raise KeyboardInterrupt
        yield tick
folder = Path(sys.argv[1])
inputs = aid.FinetuneInputs(checkpoint=folder / "model.safetensors", dataset=folder)
settings = aid.FinetuneSettings(steps=9, batch_size=int(sys.argv[2]), checkpointing=False)
try: aid.finetune(settings, inputs, folder / "out", Workbench(threads=1, progress=First()))
except KeyboardInterrupt: pass
"""


def lively(model: StableDiffusion) -> StableDiffusion:
    """No layer of it is silent: behind one, gradients are so small that a CPU is slow at them."""
    chance = torch.Generator(model.device).manual_seed(0)
    for parameter in [*model.unet.parameters(), *model.text_encoder.parameters()]:
        if not parameter.any():
            parameter.data.normal_(0, 0.02, generator=chance)
    return model


def make_dataset(folder: Path, edge: int, count: int = 16) -> Dataset:
    """Latents of noise, and captions of some words."""
    latents = np.random.default_rng(0).normal(size=(count, 2, 4, edge // 8, edge // 8)).astype(np.float16)
    np.save(folder / latent_file(edge, edge), latents)
    records = [
        Record(
            sha256=f"{row:064}", source=f"new/{row}.png", file="", style="style", row=row, split="train",
            tags=("1girl", "red hair", "smile", "outdoors", f"number {row}"), width=edge, height=edge,
        )
        for row in range(count)
    ]  # fmt: skip
    (folder / "records.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    return Dataset(folder)


def ours(model: StableDiffusion, dataset: Dataset, settings: FinetuneSettings, folder: Path) -> Run:
    """AID's step as its loop takes it: batch, captions, loss, update, log."""
    plan = plan_styles(dataset, settings, model.architecture.vae_scale)
    training = style_training(model, weights_of(model), settings, plan.steps)
    ahead, log, saver, indices = Ahead(plan), Log(folder, 0), Saver(folder, 1), iter(range(LATE, plan.steps))

    def step() -> None:
        take(training, ahead.step(next(indices)), log, saver)

    return step


def ideal(model: StableDiffusion, edge: int, batch: int, fused: bool) -> Run:
    """The same arithmetic and nothing else."""
    device = model.device
    modules = (model.unet, model.text_encoder)
    if fused:
        model.unet.to(memory_format=torch.channels_last)
    model.vae.requires_grad_(False)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=fused, foreach=None if fused else False)
    chance = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, batch, 4, edge // 8, edge // 8, generator=chance).to(device)
    t, alphas = torch.randint(1000, (batch,), generator=chance).to(device), alphas_cumprod().to(device)
    ids = token_windows(["by style, 1girl, red hair, smile"] * batch, 1)[:, 0].to(device)
    snr = alphas / (1 - alphas)

    def step() -> None:
        alpha = alphas[t][:, None, None, None]
        x = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        predicted = model.unet(x, t, encode_ids(model.text_encoder, ids)).sample
        weight = snr[t].clamp(max=5.0) / snr[t]
        loss = ((predicted - noise).square().mean((1, 2, 3)) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()

    return step


def in_turn(runs: dict[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of each, and of its main thread's processor: the median of eight rounds' means. All take turns,
    so that a busy machine hits all alike, in ever new orders, as each leaves other things in the caches.
    On a CPU the seconds are the processor's, of every thread, which a busy machine doesn't lengthen much."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    chance = random.Random(0)
    for index in range(-2, rounds):
        for name in chance.sample([*runs], len(runs)):
            began, main = clock(), time.thread_time()
            runs[name]()
            if index >= 0:
                times[name].append((clock() - began, time.thread_time() - main))
    return {name: (typical(taken, 0), typical(taken, 1)) for name, taken in times.items()}


def typical(taken: list[tuple[float, float]], which: int) -> float:
    eights = [taken[start : start + EIGHT] for start in range(0, len(taken), EIGHT)]
    return statistics.median(statistics.fmean(pair[which] for pair in eight) for eight in eights)


def step_rows(name: str, checkpoint: Path, edge: int, batch: int, rounds: int, folder: Path) -> list[Row]:
    folder.mkdir()
    dataset = make_dataset(folder, edge)
    settings = FinetuneSettings(
        steps=LATE + rounds + 9, batch_size=batch, checkpointing=False, ema=0.0, unet_rate=1e-6,
        text_rate=1e-6, warmup=0,
    )  # fmt: skip
    averaged = settings.model_copy(update={"ema": 0.999})
    device = torch_device(Workbench())  # where freed memory is used again, for all
    (folder / "averaged").mkdir()
    taken = in_turn(
        {
            "ours": ours(load_checkpoint(checkpoint, device), dataset, settings, folder),
            "averaged": ours(load_checkpoint(checkpoint, device), dataset, averaged, folder / "averaged"),
            "ideal": ideal(load_checkpoint(checkpoint, device), edge, batch, True),
            "ideal unfused": ideal(load_checkpoint(checkpoint, device), edge, batch, False),
            "kohya": kohya_loop(load_checkpoint(checkpoint, device), edge, batch),
            "diffusers": diffusers_loop(load_checkpoint(checkpoint, device), edge, batch, folder),
        },
        rounds,
    )
    what = f"{name}, {edge} px, batch {batch}"
    beside = {peer: 1e3 * taken[peer][0] for peer in ("ideal unfused", "kohya", "diffusers")}
    least, host = taken["ideal"]
    return [
        Row(f"step, {what}", 1e3 * taken["ours"][0], "ms", 1e3 * least, beside),
        Row(f"step with averages, {what}", 1e3 * taken["averaged"][0], "ms", 1e3 * least, beside),
        Row("its main thread beyond that of the ideal loop", 1e3 * (taken["ours"][1] - host), "ms", 1.0),
    ]


def save_rows(checkpoint: Path, edge: int, batch: int, folder: Path, rounds: int = 5) -> list[Row]:
    """How long training stands still for a state, and how much longer a step takes while it is copied, beside
    writing that state. The first copy is not counted: its memory is used again by all that follow."""
    folder.mkdir()
    model, dataset = load_checkpoint(checkpoint, torch_device(Workbench())), make_dataset(folder, edge)
    settings = FinetuneSettings(steps=5 * (rounds + 1), batch_size=batch, checkpointing=False)
    plan = plan_styles(dataset, settings, model.architecture.vae_scale)
    training, log = style_training(model, weights_of(model), settings, plan.steps), Log(folder, 0)
    waits, plain, stalls, longer, writes = [0.0], [0.0], [], [], []
    with Saver(folder / "behind", 1) as saver, Ahead(plan) as ahead:
        training.may_change = lambda: waits.append(wall(saver.taken))
        for index in range(plan.steps):
            saved = index % 5 == 4
            began = wall(lambda step: saver.save(step, training.tensors()), index) if saved else 0.0
            took = wall(lambda step: take(training, ahead.step(step), log, saver), index)
            if not saved:
                plain.append(took)
                continue
            stalls.append(began + waits[-1])
            longer.append(began + took - statistics.median(plain[-4:]))
            saver.wait()
            writes.append(wall(save_state, folder / "before", index, training.tensors(), 1))
    write = 1e3 * statistics.median(writes[1:])
    return [
        Row("save, training stands still", 1e3 * statistics.median(stalls[1:]), "ms", write),
        Row("save, the step beside it takes longer by", 1e3 * statistics.median(longer[1:]), "ms", write),
    ]


def wall(work: Callable[..., object], *given: object) -> float:
    began = time.perf_counter()
    work(*given)
    return time.perf_counter() - began


def first_step_row(checkpoint: Path, folder: Path, edge: int, batch: int) -> Row:
    """From starting Python to the end of the first step."""
    folder.mkdir()
    make_dataset(folder, edge)
    (folder / "model.safetensors").symlink_to(checkpoint.resolve())
    words = [sys.executable, "-c", FIRST_STEP, str(folder), str(batch)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Row("first step after starting", float(done.stdout.split()[-1]), "s", 6.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=BASE)
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        narrow = folder / "narrow.safetensors"
        save_checkpoint(lively(create_checkpoint(NARROW, 1)), narrow, {})
        rows = step_rows("narrow SD1", narrow, 128, 1, chosen.rounds, folder / "a")
        if chosen.checkpoint.is_file():
            rows += step_rows(
                chosen.checkpoint.stem,
                chosen.checkpoint,
                chosen.edge,
                chosen.batch,
                chosen.rounds,
                folder / "b",
            )
            rows += save_rows(chosen.checkpoint, chosen.edge, chosen.batch, folder / "d")
            rows.append(first_step_row(chosen.checkpoint, folder / "c", chosen.edge, chosen.batch))
        report(rows, chosen.json)


if __name__ == "__main__":
    main()
