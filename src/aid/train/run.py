"""The verb `train finetune`: Dataset and Checkpoint in, Checkpoint out.

To resume, run the same command again: the newest whole state is continued, and the result is the
same to the byte as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from aid.core.artifact import under_construction, verb
from aid.core.dataset import Dataset, Record
from aid.core.lineage import METADATA_KEY
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import AidError
from aid.sd.checkpoint import load_checkpoint, require_noise_prediction, save_checkpoint
from aid.sd.device import torch_device
from aid.sd.precision import PRECISIONS
from aid.sd.state import load_state, save_state
from aid.train.finetuning import Finetuning
from aid.train.log import Log, draw_curve
from aid.train.plan import Plan
from aid.train.settings import FinetuneInputs, FinetuneSettings, SampleSettings


@verb("train finetune", resumable=True)
def finetune(settings: FinetuneSettings, inputs: FinetuneInputs, out: Path, bench: Workbench) -> None:
    """Train U-Net and text encoder together on every style at once; save their averaged weights."""
    device = torch_device(bench)
    model = load_checkpoint(inputs.checkpoint, device)
    require_noise_prediction(model, "training")
    plan = Plan(Dataset(inputs.dataset), model.tokenizer, settings)
    run = Finetuning(model, settings, plan.steps, device)
    done = resume(run, out)
    log = Log(out, done)
    title = f"{plan.pictures} pictures, {plan.steps} steps"
    bench.progress.say(f"  {title}; curve and sample sheets meanwhile: {out}")
    with bench.progress.task("train finetune", plan.steps, "step", done) as tick:
        for index in range(done, plan.steps):
            step = plan.step(index)
            loss, norm = run.step(step)
            refuse_nan(loss, norm, index, step.records)
            log.add(step=index + 1, loss=round(loss, 6), norm=round(norm, 6), rate=run.unet_rate())
            tick(1, f"loss {log.recent('loss'):.4f}")
            if due(index + 1, settings.samples.every):
                draw_samples(run, settings.samples, settings, out, index + 1)
            if due(index + 1, settings.save_every) and index + 1 < plan.steps:
                log.sync()
                draw_curve(log.rows, out / "curve.png", title)
                save_state(out, index + 1, run.tensors(), settings.keep_states)
    log.close()
    draw_curve(log.rows, out / "curve.png", title)
    metadata = {METADATA_KEY: under_construction(out).embedded()}
    with run.averaged() as averaged:
        save_checkpoint(averaged, out / "model.safetensors", metadata, PRECISIONS[settings.output])


def resume(run: Finetuning, out: Path) -> int:
    """Continue from the newest whole state; the number of steps already done."""
    state = load_state(out)
    if state is None:
        return 0
    done, saved = state
    run.restore(saved)
    return done


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def refuse_nan(loss: float, norm: float, index: int, records: Sequence[Record]) -> None:
    """Stop before bad weights are saved: the last state is from before this step."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        names = ", ".join(record.source for record in records[:8])
        raise AidError(
            f"the loss became {loss}, the gradient's norm {norm} at step {index + 1} on {names}",
            "finite numbers",
            "Lower the learning rates, or look at these pictures.",
        )


def draw_samples(
    run: Finetuning, samples: SampleSettings, settings: FinetuneSettings, out: Path, step: int
) -> None:
    """One sheet, a picture a prompt, seeds 0, 1, 2, ..."""
    from aid.sd.pipeline import draw
    from aid.sd.sheet import sheet

    shots = [sample_shot(prompt, seed, samples, settings) for seed, prompt in enumerate(samples.prompts)]
    if not shots:
        return
    with run.averaged() as averaged:
        pictures = draw(averaged, shots)
    (out / "samples").mkdir(exist_ok=True)
    sheet(pictures).save(out / "samples" / f"step-{step:06d}.png")


def sample_shot(prompt: str, seed: int, samples: SampleSettings, settings: FinetuneSettings) -> Shot:
    return Shot(
        prompt=prompt,
        negative_prompt=samples.negative_prompt,
        seed=seed,
        steps=samples.steps,
        cfg_scale=samples.cfg_scale,
        width=samples.width,
        height=samples.height,
        clip_skip=settings.clip_skip,
    )
