"""The loop of every training: steps, the curve, sample sheets, saved states.

To resume, run the same command again: the newest whole state is continued, and the result is the same
to the byte as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from aid.core.dataset import Record
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import AidError
from aid.sd.file.state import load_state
from aid.sd.model.checkpoint import StableDiffusion
from aid.train.log import Log, draw_curve
from aid.train.plan import Ahead, Plan, Step
from aid.train.saving import Saver
from aid.train.settings import CommonSettings
from aid.train.training import Training

MOST_TROUBLE = 10  # steps left out, after which a run ends
SPIKE_MEMORY, SPIKE_LEAST = 100, 20  # steps whose losses a spike is told by
CURVE_SECONDS = 60  # between curves while training
NAMED = 8  # pictures in a message

Draw = Callable[[StableDiffusion, list[Shot]], Sequence[object]]


def train(
    training: Training,
    plan: Plan,
    out: Path,
    bench: Workbench,
    label: str,
    title: str,
    draw: Draw | None = None,
) -> None:
    """Run a plan to its end in the folder under construction `out`: log.jsonl, curve.png, samples/.

    `draw` makes pictures of shots; left out, the pipeline does.
    """
    settings = training.settings
    done = resume(training, out)
    log, drawn = Log(out, done), time.monotonic()
    bench.progress.say(f"  {title}; curve and sample sheets meanwhile: {out}")
    with (
        Saver(out, settings.keep_states, settings.save_behind) as saver,
        Ahead(plan) as ahead,
        bench.progress.task(label, plan.steps, "step", done) as tick,
    ):
        if settings.trouble == "roll_back" and not done:
            saver.save(0, training.tensors())
        for index in range(done, plan.steps):
            note = take(training, ahead.step(index), log, saver)
            if note:
                bench.progress.say(f"  {note}")
            tick(1, f"loss {log.recent('loss'):.4f}")
            if due(index + 1, settings.samples.every):
                draw_samples(training, out, index + 1, draw)
            if due(index + 1, settings.save_every) and index + 1 < plan.steps:
                log.sync()
                curve = partial(draw_curve, list(log.rows), out / "curve.png", title)
                old = time.monotonic() > drawn + CURVE_SECONDS
                drawn = time.monotonic() if old else drawn
                saver.save(index + 1, training.tensors(), curve if old else None)
    log.close()
    draw_curve(log.rows, out / "curve.png", title)


def resume(training: Training, out: Path) -> int:
    """Continue from the newest whole state; the number of steps already done."""
    state = load_state(out)
    if state is None:
        return 0
    done, saved = state
    training.restore(saved)
    return done


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def take(training: Training, step: Step, log: Log, saver: Saver) -> str:
    """One step, logged. What to tell if it was left out, by the rule of `settings.trouble`."""
    loss, norm = training.gradients(step)
    row = {"step": step.index + 1, "rate": training.rate(step.index)}
    found = trouble(loss, norm, log, training.settings)
    if not found:
        training.update(step.index)
        log.add(loss=round(loss, 6), norm=round(norm, 6), **row)
        return ""
    training.discard()
    rule, count = training.settings.trouble, 1 + sum("left_out" in row for row in log.rows)
    where = f"{found} at step {step.index + 1} on {names(step.records)}"
    if rule == "stop" or count >= MOST_TROUBLE:
        often = f" (the {count}th step to be left out)" if rule != "stop" else ""
        raise AidError(
            where + often, "finite numbers", "Lower the learning rates, or look at these pictures."
        )
    log.add(**row, left_out=[record.source for record in step.records])
    if rule == "roll_back":
        roll_back(training, step.index + 1, log, saver)
        return f"{where}: back to the newest state"
    return f"{where}: left out"


def roll_back(training: Training, done: int, log: Log, saver: Saver) -> None:
    """The weights of the newest state become those after `done` steps, and are saved as such at once: a
    resumed run must not differ."""
    saver.wait()
    resume(training, saver.folder)
    log.sync()
    saver.save(done, training.tensors())
    saver.wait()


def trouble(loss: float, norm: float, log: Log, settings: CommonSettings) -> str:
    """What is wrong with a step, before it changes anything; empty if nothing is."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"the loss became {loss}, the gradient's norm {norm}"
    losses = [row["loss"] for row in log.rows[-SPIKE_MEMORY:] if "loss" in row]
    if not settings.spike or len(losses) < SPIKE_LEAST:
        return ""
    mean = sum(losses) / len(losses)
    return f"the loss rose to {loss:.4g}, from {mean:.4g} on average" if loss > settings.spike * mean else ""


def names(records: Sequence[Record]) -> str:
    rest = f" and {len(records) - NAMED} more" if len(records) > NAMED else ""
    return ", ".join(record.source for record in records[:NAMED]) + rest


def draw_samples(training: Training, out: Path, step: int, draw: Draw | None) -> None:
    """One sheet, a picture a prompt, seeds 0, 1, 2, ..."""
    from aid.sd.drawing import pipeline
    from aid.sd.picture.sheet import sheet

    settings = training.settings
    shots = [sample_shot(prompt, seed, settings) for seed, prompt in enumerate(settings.samples.prompts)]
    if not shots:
        return
    with training.averaged() as averaged:
        pictures = (draw or pipeline.draw)(averaged, shots)
    (out / "samples").mkdir(exist_ok=True)
    sheet(pictures).save(out / "samples" / f"step-{step:06d}.png")  # type: ignore[arg-type]


def sample_shot(prompt: str, seed: int, settings: CommonSettings) -> Shot:
    samples = settings.samples
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
