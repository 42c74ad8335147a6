"""Measured balance beside counting rules, on a data set that is lopsided on purpose.

    python starter/world.py WORLD
    python benchmarks/balance.py WORLD OUT [--steps N] [--seeds N] [--rules RULE ...] [--json FILE]

The world's ten styles get names that the shipped starter has never heard, and 20 to 600 pictures each.
Every rule trains from the same start with the same steps, and draws the same shots; a judge taught on other
pictures of these styles names what it sees. `judged` is measured balance by another judge, taught on the
lopsided pictures themselves. What a killed run has made stays: the same command goes on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from reporting import Row, report

import aid
from aid.core.report import Report
from aid.core.workbench import Workbench
from aid.starter import BASE

NAMES = ("avel", "brona", "cass", "dorin", "elke", "farro", "gwen", "hollis", "ines", "joost")
COUNTS = (20, 29, 43, 62, 91, 133, 194, 283, 412, 600)
HELD = 8  # held out of each style
JUDGED = 250  # other pictures of each style, for the judge
RULES: dict[str, dict[str, Any]] = {
    "judged": {"rule": "measured", "every": 10},
    "by the word": {"rule": "measured", "by": "word", "strength": 3.0, "every": 10},
    "equal": {"rule": "equal"},
    "author": {"rule": "author"},
    "by_count": {"rule": "by_count"},
}
CONTENT = ("hair", "skin", "background")


def make_folders(world: Path, out: Path) -> None:
    """`lopsided` and `judged`: pictures of each style under its new name, none in both."""
    if (out / "whole").exists():
        return
    styles = sorted(path for path in world.iterdir() if path.is_dir())
    named = dict(zip(random.Random(0).sample(styles, len(styles)), NAMES, strict=False))
    for (folder, name), count in zip(named.items(), COUNTS, strict=False):
        stems = sorted(path.with_suffix("") for path in folder.glob("*.webp"))
        stems = [stem for stem in stems if "low quality" not in stem.with_suffix(".txt").read_text()]
        drawn = random.Random(name).sample(stems, count + HELD + JUDGED)
        for target, part in (("lopsided", drawn[: count + HELD]), ("judged", drawn[count + HELD :])):
            (out / target / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "credit.toml", out / target / name)
            for stem in part:
                for suffix in (".webp", ".txt"):
                    shutil.copy(stem.with_suffix(suffix), out / target / name / f"{stem.name}{suffix}")
    (out / "whole").touch()


def prepare(out: Path, bench: Workbench) -> tuple[Path, Path, Path]:
    """The lopsided data set, a judge taught on it, and one taught on other pictures of all its styles."""
    common: dict[str, Any] = {"resolution_px": 64, "buckets": False}
    dataset = aid.prepare(
        aid.PrepareSettings(**common, held_fraction=0.0, held_minimum=HELD),
        aid.PrepareInputs(pictures={"new": out / "lopsided"}, vae=BASE),
        out / "dataset", bench,
    )  # fmt: skip
    others = aid.prepare(
        aid.PrepareSettings(**common, held_fraction=0.2),
        aid.PrepareInputs(pictures={"other": out / "judged"}),
        out / "others", bench,
    )  # fmt: skip
    own, judge = (
        aid.judge(aid.JudgeSettings(pictures_seen=seen), aid.JudgeInputs(dataset=taught), out / name, bench)
        for name, taught, seen in (("own-judge", dataset, 30_000), ("judge", others, 60_000))
    )
    return dataset, own, judge


def score(
    rule: str, seed: int, chosen: argparse.Namespace, paths: tuple[Path, Path, Path], bench: Workbench
) -> Report:
    """What the judge says of one training."""
    dataset, own, judge = paths
    folder = chosen.out / f"{rule}-{seed}".replace(" ", "-")
    settings = aid.FinetuneSettings.model_validate(
        {
            "steps": chosen.steps, "batch_size": 8, "noise_draws": 4, "checkpointing": False,
            "unet_rate": chosen.rate, "text_rate": chosen.rate, "warmup": 5,
            "weight_decay": 0.0, "ema": 0.95, "save_every": 25, "seed": seed,
            "balance": {"measure": True, "pictures": 4, "timesteps": 4, **RULES[rule]},
            "samples": {"steps": 8, "cfg_scale": 3.0, "width": 64, "height": 64},
        }
    )  # fmt: skip
    asked = own if settings.balance.by_judge else None
    inputs = aid.FinetuneInputs(checkpoint=BASE, dataset=dataset, judge=asked)
    began = time.process_time()
    model = aid.finetune(settings, inputs, folder / "model", bench)
    print(f"{rule}, seed {seed}: {time.process_time() - began:.0f} s of the processor", flush=True)
    shots: dict[str, Any] = {"plan": {"shots_per_style": chosen.shots}, "steps": 12, "cfg_scale": 3.0}
    gallery = aid.generate(
        aid.GenerateSettings.model_validate({**shots, "seed": 9000, "batch_size": 40}),
        aid.GenerateInputs(checkpoint=model, dataset=dataset), folder / "gallery", bench,
    )  # fmt: skip
    settings_of = aid.EvaluateSettings(title=f"{rule}, seed {seed}")
    found = aid.EvaluateInputs(gallery=gallery, judge=judge)
    return Report.read(aid.evaluate(settings_of, found, folder / "report", bench))


def rows(rule: str, reports: list[Report]) -> list[Row]:
    """Means over seeds, percent: the weakest style of each, all styles, and what the pictures show."""
    weakest = [min(row.score.value for row in one.styles) for one in reports]
    every = [statistics.mean(row.score.value for row in one.styles) for one in reports]
    content = [
        statistics.mean(one.scores[name].value for name in CONTENT if name in one.scores) for one in reports
    ]
    copies = [one.scores["near_copies"].value for one in reports]
    figures = {"weakest style": weakest, "mean of styles": every, "content": content, "near copies": copies}
    return [Row(f"{rule}: {name}", 100 * statistics.mean(found), "%") for name, found in figures.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--shots", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rules", nargs="*", default=list(RULES))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bench = Workbench(threads=1)
    make_folders(chosen.world, chosen.out)
    paths = prepare(chosen.out, bench)
    found: list[Row] = []
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    for rule in chosen.rules:
        reports = [score(rule, seed, chosen, paths, bench) for seed in seeds]
        for one in reports:
            print(one.title, {row.style: round(100 * row.score.value) for row in one.styles}, flush=True)
        found += rows(rule, reports)
    report(found, chosen.json)


if __name__ == "__main__":
    main()
