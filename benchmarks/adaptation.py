"""Full fine-tuning beside LoRA at the same compute: the starter learns its recipe's three new styles.

    python benchmarks/adaptation.py OUT [--steps N] [--shots N] [--json FILE]

LoRA gets as many steps as take the processor time of full fine-tuning's. Each is tried at three rates, of
which the best counts. All draw the same shots; a judge taught on the real pictures says how many show their
style, and what the old styles, which are replayed, have kept. What a killed run has made stays: the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from reporting import Row, report

import aid
from aid.core.report import Report
from aid.core.workbench import Silence, Workbench
from aid.starter import BASE, shipped

NEW = ("miniavs", "croodles", "big-smile")
COMMON: dict[str, Any] = {
    "batch_size": 16, "noise_draws": 4, "checkpointing": False, "regularisation_share": 0.375,
    "schedule": "cosine", "warmup": 10, "weight_decay": 0.0, "save_every": 25, "seed": 1,
}  # fmt: skip
FULL: dict[str, Any] = {"ema": 0.97}
LORA: dict[str, Any] = {"rank": 16, "alpha": 16.0, "conv_rank": 16, "conv_alpha": 16.0}
RATES = {"full": (4e-4, 1e-3, 2.5e-3), "lora": (1e-3, 3e-3, 1e-2)}
TIMED, WARM_UP = 8, 3  # steps


class Clock(Silence):
    """The processor's seconds at each step."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    @contextmanager
    def task(self, *_: Any, **__: Any) -> Iterator[Any]:
        yield lambda *_, **__: self.ticks.append(time.process_time())

    @property
    def step_seconds(self) -> float:
        return (self.ticks[-1] - self.ticks[WARM_UP]) / (len(self.ticks) - 1 - WARM_UP)


def train(kind: str, steps: int, rate: float, dataset: Path, out: Path, bench: Workbench) -> Path:
    rates = {"unet_rate": rate, "text_rate": rate / 2}
    if kind == "full":
        settings = aid.FinetuneSettings(steps=steps, **COMMON, **FULL, **rates)
        return aid.finetune(settings, aid.FinetuneInputs(checkpoint=BASE, dataset=dataset), out, bench)
    chosen = aid.LoraSettings(steps=steps, name="style", **COMMON, **LORA, **rates)
    return aid.lora(chosen, aid.LoraInputs(checkpoint=BASE, dataset=dataset), out, bench)


def step_seconds(kind: str, dataset: Path, out: Path) -> float:
    clock = Clock()
    train(kind, TIMED, 1e-4, dataset, out, Workbench(threads=1, progress=clock))
    return clock.step_seconds


def timed(dataset: Path, out: Path) -> dict[str, float]:
    """Seconds of a step by kind, measured once: a run that goes on must have the same steps."""
    told = out / "seconds.json"
    if not told.exists():
        found = {kind: step_seconds(kind, dataset, out / f"timed-{kind}") for kind in RATES}
        told.write_text(json.dumps(found))
    seconds: dict[str, float] = json.loads(told.read_text())
    return seconds


def judged(
    kind: str, made: Path, world: tuple[Path, Path], out: Path, shots: int, bench: Workbench
) -> Report:
    dataset, judge = world
    plan = {"shots_per_style": shots, "without": ["low quality"]}
    drawing: dict[str, Any] = {"plan": plan, "cfg_scale": 3.0, "seed": 7000, "batch_size": 26}
    given: dict[str, Any] = {"checkpoint": made if kind == "full" else BASE, "dataset": dataset}
    if kind == "lora":
        drawing["prompt"], given["loras"] = "<lora:style:1>", (made,)
    settings = aid.GenerateSettings.model_validate(drawing)
    gallery = aid.generate(settings, aid.GenerateInputs(**given), out / "gallery", bench)
    inputs = aid.EvaluateInputs(gallery=gallery, judge=judge)
    return Report.read(aid.evaluate(aid.EvaluateSettings(title=out.name), inputs, out / "report", bench))


def rows(name: str, found: Report) -> list[Row]:
    """Percent of pictures, with the interval's ends."""
    scores = {"style": found.scores["style"]} | {row.style: row.score for row in found.styles}
    scores |= {key: found.scores[key] for key in ("hair", "skin", "background")}
    return [
        Row(f"{name}: {key}", 100 * one.value, "%", peers={"low": 100 * one.low, "high": 100 * one.high})
        for key, one in scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--shots", type=int, default=30)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bench, out = Workbench(threads=1), chosen.out
    dataset = aid.prepare(
        aid.PrepareSettings(resolution_px=64),
        aid.PrepareInputs(
            pictures={"new": shipped("pictures/new")},
            regularisation={"old": shipped("pictures/old")},
            vae=BASE,
        ),
        out / "dataset", bench,
    )  # fmt: skip
    judge = aid.judge(aid.JudgeSettings(), aid.JudgeInputs(dataset=dataset), out / "judge", bench)
    seconds = timed(dataset, out)
    found: list[Row] = []
    for kind, rate in [(kind, rate) for kind, rates in RATES.items() for rate in rates]:
        steps = round(chosen.steps * seconds["full"] / seconds[kind])
        name = f"{kind} {rate:g}"
        folder = out / name.replace(" ", "-")
        made = train(kind, steps, rate, dataset, folder / "model", bench)
        found += rows(
            f"{name}, {steps} steps", judged(kind, made, (dataset, judge), folder, chosen.shots, bench)
        )
        report(found[-8:], None)
    report(found, chosen.json)


if __name__ == "__main__":
    main()
