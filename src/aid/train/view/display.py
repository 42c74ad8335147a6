"""What a person sees of a run, while it goes on and at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from aid.core.dataset import Dataset
from aid.core.shot import Shot
from aid.sd.drawing.scarcity import or_in_parts
from aid.sd.model.checkpoint import StableDiffusion
from aid.train.balance.copies import Copies, require_held, write_copies
from aid.train.balance.shots import sample_shots
from aid.train.balance.watch import Watch
from aid.train.log import CURVE_FILE, SAMPLE_FOLDER, Log, draw_curve
from aid.train.step.plan import Plan
from aid.train.training import Training
from aid.train.view.board import Board, remove_events
from aid.train.view.chart import CHART_FILE, draw_styles
from aid.train.view.page import style_data, write_report

CURVE_SECONDS = 60  # between curves while training

Draw = Callable[[StableDiffusion, list[Shot]], Sequence[object]]


class Display:
    """A run's curve.png, styles.png, samples/, events and report.html, in `out`. `draw` makes pictures of
    shots; None is the pipeline."""

    def __init__(
        self,
        training: Training,
        plan: Plan,
        out: Path,
        title: str,
        log: Log,
        watch: Watch | None,
        draw: Draw | None,
    ) -> None:
        self.training, self.plan, self.out, self.title = training, plan, out, title
        self.log, self.watch, self.draw = log, watch, draw
        self.settings, self.drawn = plan.settings, time.monotonic()
        edge_px, drawn = training.model.architecture.native_edge_px, plan.settings.samples.every > 0
        self.shots = sample_shots(plan.settings, plan.dataset, edge_px) if drawn else []
        self.copies: Copies | None = None
        if self.shots and plan.settings.samples.near_copies:
            require_held(plan.dataset)  # now, rather than at the first sheet
        self.leads = training.team.leads  # who alone writes
        self.board = self._board() if plan.settings.tensorboard and self.leads else None
        if self.board is None and self.leads:
            remove_events(out)  # of a run that was asked for them before

    def step(self, done: int) -> None:
        """After a step: what is due. A sheet is no reason for a training to end."""
        every = self.settings.samples.every
        if self.shots and done % every == 0:
            or_in_parts(
                lambda: self._draw_sheet(done),
                lambda: None,
                "no sample sheet is drawn, and training goes on",
            )
        if self.board is not None:
            self.board.follow()

    def curve(self) -> Callable[[], None] | None:
        """What draws the curve as it now is, if the last one is old."""
        if time.monotonic() < self.drawn + CURVE_SECONDS:
            return None
        self.drawn = time.monotonic()
        return partial(draw_curve, list(self.log.rows), self.out / CURVE_FILE, self.title)

    def finish(self, label: str) -> None:
        """All of it for good, in an order that no interruption changes."""
        if not self.leads:
            return
        draw_curve(self.log.rows, self.out / CURVE_FILE, self.title)
        if self.board is not None:
            self.board.close()
            last = self._board()
            last.follow()
            last.close()
        styles = {}
        if self.watch is not None:
            draw_styles(self.watch.rows, self.out / CHART_FILE, self.title)
            settings, saved = self.watch.settings, self.watch.saved_step
            styles = style_data(self.watch.rows, style_counts(self.plan.dataset), saved, settings)
        tiles = [(f"{len(self.log.rows):,}", "steps"), (f"{self.plan.pictures:,}", "pictures trained on")]
        prompts = [shot.prompt for shot in self.shots]
        write_report(self.out, self.title, label, self.log.rows, styles, tiles, prompts)

    def _board(self) -> Board:
        return Board(self.out, self.log, self.watch.rows if self.watch is not None else [])

    def _draw_sheet(self, done: int) -> None:
        """One sheet, a picture a shot, with its style or prompt below."""
        from aid.sd.drawing import pipeline
        from aid.sd.picture.sheet import captioned, sheet

        with self.training.whole_to_draw() as averaged:
            pictures = (self.draw or pipeline.draw)(averaged, self.shots) if self.leads else ()
        if not self.leads:
            return
        folder = self.out / SAMPLE_FOLDER
        folder.mkdir(exist_ok=True)
        told = (shot.style or shot.prompt for shot in self.shots)
        captions = [captioned(picture, text) for picture, text in zip(pictures, told, strict=True)]  # type: ignore[arg-type]
        sheet(captions).save(folder / f"step-{done:06d}.png")
        if self.settings.samples.near_copies:
            self.copies = self.copies or Copies(self.plan.dataset)
            write_copies(folder, done, self.shots, self.copies.sources(pictures))  # type: ignore[arg-type]


def style_counts(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Style -> new pictures trained on, and held out."""
    found = Counter((one.style, one.split) for one in dataset.records if not one.regularisation)
    return {style: (found[style, "train"], found[style, "held"]) for style in {style for style, _ in found}}
