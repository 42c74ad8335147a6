"""A run's curve: one JSON line a step, and a picture. No clock times: the same run gives the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aid.core.files import write_text

LOG_FILE, CURVE_FILE, SAMPLE_FOLDER = "log.jsonl", "curve.png", "samples"
LogRow = dict[str, Any]


class Log:
    """Rows {step, rate, loss, norm}, or {step, rate, left_out} for a step that changed nothing. Appended as
    training goes, cut back to the resumed step after an interruption."""

    def __init__(self, folder: Path, done: int, writes: bool = True) -> None:
        self.path = folder / LOG_FILE
        self.rows: list[LogRow] = [row for row in read_log(folder) if row["step"] <= done]
        if writes:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.stream = (self.path if writes else Path(os.devnull)).open("a")

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()  # a person may be watching

    def sync(self) -> None:
        """Make what was added durable: a state must never be newer than its log."""
        if self.stream.name != os.devnull:
            os.fsync(self.stream.fileno())

    def recent(self, name: str, count: int = 50) -> float:
        """The mean of the last rows, for the progress line."""
        values = [row[name] for row in self.rows[-count:] if name in row]
        return float(sum(values) / max(1, len(values)))

    def close(self) -> None:
        self.stream.close()


def read_log(folder: Path) -> list[LogRow]:
    """The rows that were written whole."""
    path = folder / LOG_FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the line that a kill cut short; all after it is re-run
    return rows


def draw_curve(rows: list[LogRow], path: Path, title: str) -> None:
    """The loss of every step, its running mean, and the learning rate below, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    taken = [row for row in rows if "loss" in row]
    steps, losses = [row["step"] for row in taken], [row["loss"] for row in taken]
    above.plot(steps, losses, color="#c8d3e6", linewidth=0.7, label="each step")
    above.plot(steps, running_mean(losses), color="#1f4e8c", label="running mean of 2 %")
    above.set(title=title, ylabel="weighted loss")
    above.legend(frameon=False)
    below.plot(steps, [row["rate"] for row in taken], color="#7a4420")
    below.set(xlabel="step", ylabel="learning rate")
    figure.savefig(path, dpi=110, metadata={"Software": "AID"})


def running_mean(values: list[float]) -> list[float]:
    width = max(1, len(values) // 50)
    total, means = 0.0, []
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means
