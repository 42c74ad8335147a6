"""Measures a run's styles as it goes, and lets the order follow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from aid.core.artifact import SCRATCH
from aid.core.files import write_lines
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.file.tensorfile import Header, read_header, write_tensors
from aid.train.balance.balance import Row, at_point, best, gaps, held_shares, weigh
from aid.train.balance.copies import copied_styles, none_held
from aid.train.balance.jury import Jury
from aid.train.balance.measure import SPLITS, Meter
from aid.train.log import SAMPLE_FOLDER
from aid.train.settings import TrainingSettings
from aid.train.step.plan import Plan
from aid.train.training import Training

BALANCE_FILE, BEST_FILE = "balance.jsonl", "best.safetensors"
STATE = "balance"  # the rows so far, as JSON in bytes
NAMED = 5  # styles in a message


class Watch:
    """The measurements of one run in `out`: balance.jsonl, a line each. All that it decides follows from
    them, so its state is they."""

    def __init__(
        self, training: Training, plan: Plan, meter: Meter, out: Path, jury: Jury | None = None
    ) -> None:
        self.training, self.plan, self.meter, self.out, self.jury = training, plan, meter, out, jury
        self.settings = meter.settings.balance
        self.rows: list[Row] = []
        training.beside = self.tensors

    def due(self, done: int) -> bool:
        """Whether to measure after so many steps: where the order must be laid out, or every so often."""
        order = self.plan.order
        regular = done == order.end if order.live else done % self.plan.measured_every == 0
        fresh = not self.rows or self.rows[-1].step < done
        return fresh and (regular or done == self.plan.steps)

    def measure(self, done: int) -> str:
        """Ask the jury, measure the averaged weights, lay the order's next round out; what to tell of it."""
        missed = self._missed()
        with self.training.settled():
            found = [
                self.meter.losses(self.training, split) if self.meter.probes[split] else {}
                for split in SPLITS
            ]
            copied = copied_styles(self.out / SAMPLE_FOLDER, done)
            (held, trained, wordless), copied, missed = self.training.team.led((found, copied, missed))
            row = Row(done, held, trained, wordless=wordless, missed=missed)
            self.rows.append(self._decided(row, copied))
            if self._stops and best(self.rows, self.settings) == len(self.rows) - 1:
                self._keep()
        self._write()
        return self.tell()

    def _missed(self) -> dict[str, float]:
        """What the jury says of the newest weights, as averaged ones come late: in the experiments that cost
        most. All processes draw its pictures together."""
        if self.jury is None:
            return {}
        with self.training.whole_to_draw(averaged=False) as model:
            return self.jury.missed(model, self.training.team)

    def _write(self) -> None:
        if self.training.team.leads:
            write_lines(self.out / BALANCE_FILE, [row.plain() for row in self.rows])

    def _decided(self, row: Row, copied: Sequence[str]) -> Row:
        rows, order = [*self.rows, row], self.plan.order
        reached = at_point(rows, self.settings, copied)
        before = self.rows[-1].weights if self.rows else dict.fromkeys(order.decks, 1.0)
        weights = weigh(rows, before, reached, self.settings)
        if order.live and row.step < self.plan.steps and any(weights.values()):
            order.lay({style: order.shares[style] * weight for style, weight in weights.items()})
        return replace(row, weights=weights, at_point=reached, seen=order.seen_before(row.step))

    @property
    def _stops(self) -> bool:
        return self.settings.stop_at != "never"

    @property
    def over(self) -> bool:
        """Whether every style that is measured has reached its point."""
        measured = self.meter.held_styles
        return self._stops and bool(measured) and set(self.rows[-1].at_point) == measured

    def tell(self) -> str:
        """One line: how far the styles are."""
        left = held_shares(self.rows[-1], self.rows[0])
        gap = gaps(self.rows[-1], self.rows[0])
        if not gap:
            return "no style has held-out pictures"
        if len(self.rows) == 1:
            return f"step {self.rows[-1].step}: {len(left)} styles measured; later losses are shares of these"
        slow, fast = max(left, key=lambda style: left[style]), min(left, key=lambda style: left[style])
        wide = max(gap, key=lambda style: gap[style])
        return (
            f"step {self.rows[-1].step}: {left[slow]:.0%} of the start's held-out loss left of {slow}, "
            f"{left[fast]:.0%} of {fast}; widest gap {gap[wide]:.1%} ({wide}); "
            f"{len(self.rows[-1].at_point)} of {len(left)} styles slightly overfit"
        )

    def missing(self) -> str:
        """What to say of styles without held-out pictures; empty if there are none."""
        unmeasured = sorted(set(self.plan.order.decks) - self.meter.held_styles)
        more = f" and {len(unmeasured) - NAMED} more" if len(unmeasured) > NAMED else ""
        named = ", ".join(style or "(no style)" for style in unmeasured[:NAMED])
        return f"{named}{more}: no held-out pictures, so the usual share" if unmeasured else ""

    def _keep(self) -> None:
        """The weights as they are: the best so far."""
        tensors = {f"best.{index}": p.detach() for index, p in enumerate(self.training.parameters)}
        step = {"step": str(self.rows[-1].step)}
        if self.training.team.leads:
            write_tensors(self.out / SCRATCH / BEST_FILE, tensors, step)

    @property
    def saved_step(self) -> int:
        """After which step the weights were as they are to be saved."""
        return self.rows[best(self.rows, self.settings) if self._stops else -1].step

    def adopt_best(self) -> str:
        """Make the best weights the training's own, if those of the end are not; what to tell."""
        step = self.saved_step
        if step == self.rows[-1].step or not self.training.team.leads:
            return ""
        saved = read_header(self.out / SCRATCH / BEST_FILE)
        if saved.metadata.get("step") != str(step):
            raise SettingsError(f"{BEST_FILE} is of step {saved.metadata.get('step')}", f"step {step}")
        self.training.adopted = [saved.read(f"best.{index}") for index in range(len(saved.tensors))]
        return f"the weights are those of step {step}, the newest with few styles beyond their point"

    def tensors(self) -> dict[str, Tensor]:
        written = json.dumps([row.plain() for row in self.rows]).encode()
        return {STATE: torch.frombuffer(bytearray(written), dtype=torch.uint8)}

    def restore(self, saved: Header) -> None:
        """Take up the rows of a saved state, and lay the order out as they had it."""
        self.rows = [Row.read(plain) for plain in json.loads(bytes(saved.read(STATE).tolist()))]
        order = self.plan.order
        for row in self.rows if order.live else ():
            if row.step < self.plan.steps:
                order.lay({style: order.shares[style] * row.weights[style] for style in order.decks})
        self._write()


def watching(training: Training, plan: Plan, out: Path, judge: Path | None, bench: Workbench) -> Watch | None:
    """Who measures the styles of this run, if anything is to be measured."""
    settings = plan.settings
    asks = isinstance(settings, TrainingSettings) and settings.balance.by_judge
    if judge is not None and not asks:
        raise SettingsError("a judge is given, and nobody asks it", 'balance.rule "measured", by "judge"')
    if asks and training.team.sharded:
        raise SettingsError('balance.by is "judge", and the weights are sharded', "whole weights")
    if not plan.measured_every or not isinstance(settings, TrainingSettings):
        return None
    styles = list(plan.order.decks)
    meter = Meter(plan.dataset, styles, settings, plan.scale)
    stops, judged = settings.balance.stop_at != "never", settings.balance.by_judge
    if not meter.held_styles and (stops or (settings.balance.live and not judged)):
        raise none_held("balance goes")
    if stops and training.team.sharded:
        raise SettingsError("stop_at is given, and the weights are sharded", "processes with whole weights")
    jury = None
    if judged:
        if judge is None:
            raise SettingsError('balance.by is "judge", and none is given', "a judge: `aid judge` makes one")
        edge_px = training.model.architecture.native_edge_px
        jury = Jury(judge, plan.dataset, styles, settings, edge_px, bench)
    return Watch(training, plan, meter, out, jury)
