"""The loop of every training: steps, the curve, sample sheets, saved states.

To resume, run the same command again: the newest whole state is continued, and the result is the same
to the byte as if nothing had happened.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aid.core.dataset import Record
from aid.core.lineage import LINEAGE_FILE
from aid.core.workbench import Workbench
from aid.errors import AidError
from aid.sd.file.state import fitting, has_states, load_state
from aid.sd.model.checkpoint import StableDiffusion
from aid.train.balance.watch import Watch, watching
from aid.train.log import Log
from aid.train.saving import Saver
from aid.train.settings import CommonSettings
from aid.train.step.plan import Ahead, Plan, Step
from aid.train.team import Team
from aid.train.training import Training
from aid.train.view.display import Display, Draw

MOST_TROUBLE = 10  # steps left out, after which a run ends
SPIKE_MEMORY, SPIKE_LEAST = 100, 20  # steps whose losses a spike is told by
NAMED = 8  # pictures in a message
KEPT = "kept"  # the folder of what was learnt on the way
Save = Callable[[StableDiffusion, Path, str, int], None]
"""Writes what a model has learnt into a folder, under its usual name with an ending, after so many steps."""


def train(
    training: Training,
    plan: Plan,
    save: Save,
    out: Path,
    bench: Workbench,
    label: str,
    title: str,
    draw: Draw | None = None,
    judge: Path | None = None,
) -> None:
    """Run a plan to its end in the folder under construction `out`: log.jsonl, balance.jsonl, what a person
    sees (`Display`), and what was learnt.

    `draw` makes pictures of shots; left out, the pipeline does. `judge` is whom `balance.by` may ask.
    """
    settings, watch = training.settings, watching(training, plan, out, judge, bench)
    done, leads = resume(training, out, watch), training.team.leads
    log = Log(out, done, leads)
    display = Display(training, plan, out, title, log, watch, draw)
    onwards = f", from step {done + 1:,} on" if done else ""
    bench.progress.say(f"  {title}{onwards}; curve and sample sheets meanwhile: {out}")
    with (
        Saver(out, settings.keep_states, settings.save_behind, leads, bench.progress.say) as saver,
        Ahead(plan) as ahead,
        bench.progress.task(label, plan.steps, "step", done) as tick,
    ):
        training.may_change = saver.taken
        if settings.trouble == "roll_back" and not done:
            saver.save(0, training.tensors())
        over = watch is not None and measured(watch, done, bench)
        for index in range(done, done if over else plan.steps):
            note = take(training, ahead.step(index), log, saver)
            if note:
                bench.progress.say(f"  {note}")
            tick(1, f"loss {log.recent('loss'):.4f}")
            done = index + 1
            over = watch is not None and measured(watch, done, bench)
            display.step(done)
            if over or done == plan.steps:
                break
            if settings.keep_every and done % settings.keep_every == 0:
                keep(training, save, out / KEPT, done, f"-{done:06}")
                if leads and settings.keep_newest:
                    drop_old(out / KEPT, settings.keep_newest)
            if done % settings.save_every == 0:
                log.sync()
                saver.save(done, training.tensors(), display.curve())
    log.close()
    if watch is not None and (note := watch.adopt_best()):
        bench.progress.say(f"  {note}")
    display.finish(label)
    keep(training, save, out, done if watch is None else watch.saved_step)


def keep(training: Training, save: Save, folder: Path, done: int, ending: str = "") -> None:
    """Write what has been learnt as files that can be used."""
    with training.whole() as model:
        if training.team.leads:
            folder.mkdir(exist_ok=True)
            save(model, folder, ending, done)


def drop_old(folder: Path, newest: int) -> None:
    """Of what was kept, all but the newest."""
    steps = {path: int(path.stem.rpartition("-")[2]) for path in folder.iterdir()}
    old = sorted({*steps.values()})[:-newest]
    for path, step in steps.items():
        if step in old:
            path.unlink()


@contextmanager
def kept_for_states(out: Path, team: Team) -> Iterator[None]:
    """Around a training and the saving of what it made. After an error, keep what was written only if there
    is a state that a later run can go on with."""
    try:
        yield
    except BaseException:
        if team.leads and not has_states(out):
            for path in out.iterdir():
                if path.name != LINEAGE_FILE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def resume(training: Training, out: Path, watch: Watch | None = None) -> int:
    """Continue from the newest whole state; the number of steps already done. Raises FileError for a state
    of something else."""
    state = load_state(out)
    if state is None:
        return 0
    done, saved = state
    with fitting(saved):
        training.restore(saved)
        if watch is not None:
            watch.restore(saved)
    return done


def measured(watch: Watch, done: int, bench: Workbench) -> bool:
    """Measure the styles if it is time to; whether all of them have learnt enough."""
    if not watch.due(done):
        return False
    if not watch.rows and (missing := watch.missing()):
        bench.progress.say(f"  {missing}")
    bench.progress.say(f"  {watch.measure(done)}")
    return watch.over


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
    where = f"{found} at step {step.index + 1} on {names(step.whole)}"
    if rule == "stop" or count >= MOST_TROUBLE:
        often = f" (the {count}th step to be left out)" if rule != "stop" else ""
        raise AidError(
            where + often, "finite numbers", "Lower the learning rates, or look at these pictures."
        )
    log.add(**row, left_out=[record.source for record in step.whole])
    if rule == "roll_back":
        roll_back(training, step.index + 1, log, saver)
        return f"{where}: back to the newest state"
    training.pass_over(step.index)
    return f"{where}: left out"


def roll_back(training: Training, done: int, log: Log, saver: Saver) -> None:
    """The weights of the newest state become those after `done` steps, and are saved as such at once: a
    resumed run must not differ."""
    saver.wait()
    training.team.wait()
    resume(training, saver.folder)
    training.pass_over(done - 1)
    training.team.wait()
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
