"""A run for TensorBoard: the log, every style's measurements, and the sample sheets.

The events' clock is the step, so that the same run gives the same bytes.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from aid.errors import SettingsError
from aid.train.balance.balance import Row, gaps, held_shares, trained_shares
from aid.train.log import SAMPLE_FOLDER, Log
from aid.train.view.page import NAMELESS

EVENT_FILE = "tensorboard/events.out.tfevents.0.aid"


class Board:
    """Writes what is new in the folder of a run each time it is asked to follow; from the beginning, if it is
    made anew."""

    def __init__(self, out: Path, log: Log, rows: list[Row]) -> None:
        self.out, self.log, self.rows = out, log, rows
        self.logged, self.measured, self.sheets = 0, 0, 0
        self.proto, self.summary = _library("compat.proto.event_pb2"), _library("compat.proto.summary_pb2")
        (out / EVENT_FILE).parent.mkdir(exist_ok=True)
        self.stream = (out / EVENT_FILE).open("wb")
        self.writer = _library("summary.writer.record_writer").RecordWriter(self.stream)
        self._write(self.proto.Event(wall_time=0.0, file_version="brain.Event:2"))

    def follow(self) -> None:
        for logged in self.log.rows[self.logged :]:
            names = {"loss": "training/loss", "norm": "training/gradient norm", "rate": "training/rate"}
            values = {name: logged[key] for key, name in names.items() if key in logged}
            self._add(logged["step"], values)
        for row in self.rows[self.measured :]:
            self._add(row.step, measured_values(row, self.rows[0]))
        sheets = sorted((self.out / SAMPLE_FOLDER).glob("step-*.png"))
        for path in sheets[self.sheets :]:
            self._add_picture(int(path.stem.removeprefix("step-")), path)
        self.logged, self.measured, self.sheets = len(self.log.rows), len(self.rows), len(sheets)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _add(self, step: int, values: dict[str, float]) -> None:
        value = self.summary.Summary.Value
        summary = self.summary.Summary(value=[value(tag=tag, simple_value=x) for tag, x in values.items()])
        self._write(self.proto.Event(wall_time=float(step), step=step, summary=summary))

    def _add_picture(self, step: int, path: Path) -> None:
        with Image.open(path) as picture:
            width, height = picture.size
        image = self.summary.Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = self.summary.Summary.Value(tag="samples", image=image)
        summary = self.summary.Summary(value=[value])
        self._write(self.proto.Event(wall_time=float(step), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self.writer.write(event.SerializeToString(deterministic=True))


def remove_events(out: Path) -> None:
    (out / EVENT_FILE).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        (out / EVENT_FILE).parent.rmdir()


def measured_values(row: Row, start: Row) -> dict[str, float]:
    """Name -> value of all that is known of each style after a measurement."""
    series = {
        "held-out loss left": held_shares(row, start),
        "trained loss left": trained_shares(row, start),
        "gap": gaps(row, start),
        "weight": row.weights,
    }
    return {
        f"{name}/{style or NAMELESS}": value
        for name, values in series.items()
        for style, value in values.items()
    }


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"tensorboard.{name}")
    except ImportError as error:
        raise SettingsError(
            f"tensorboard is asked for, and it isn't installed ({error})",
            "an installed library",
            "pip install tensorboard",
        ) from error
