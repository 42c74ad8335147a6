"""Two processes give what one gives, but for rounding: with whole weights and with sharded ones, for every
kind of training, also continued after a kill, and by one what two began; and every run of them gives the same
bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aid.core.dataset import Record
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.evaluate.judge_run import judge as teach
from aid.evaluate.settings import JudgeInputs, JudgeSettings
from aid.sd.file.tensorfile import read_tensors
from aid.train.run import require_whole
from aid.train.settings import FinetuneSettings
from aid.train.step.noising import Noised
from aid.train.step.plan import Step
from aid.train.team import Team, buckets

pytest.importorskip("accelerate")

WORDS = [
    "steps=2", "batch_size=3", "regularisation_share=0.34", "unet_rate=1e-3", "text_rate=1e-3", "warmup=3",
    "save_every=1", "output=fp32", "optimiser_options.eps=1e-3", "noise_draws=2", "balance.rule=measured",
    "balance.by=word", "balance.every=1", "balance.pictures=1", "balance.timesteps=1",
]  # fmt: skip
ASKING = [
    "balance.by=judge", "balance.pictures=3", "samples.width=64", "samples.height=64", "samples.steps=2",
]  # fmt: skip
KINDS = ("finetune", "lora", "embedding")


def command(kind: str, checkpoint: Path, dataset: Path, out: Path) -> list[str]:
    """The words that mean the same training alone and together. A large epsilon keeps Adam from blowing up
    the rounding of gradients near zero."""
    role = "--pictures" if kind == "embedding" else "--dataset"
    chosen = ["steps=2", "batch_size=3"] if kind == "embedding" else WORDS
    settings = [word for pair in chosen for word in ("--set", pair)]
    where = ["--checkpoint", str(checkpoint), role, str(dataset), "--out", str(out), "--device", "cpu"]
    return ["train", kind, *where, "--threads", "1", *settings]


@pytest.fixture(scope="module")
def runs(lively_checkpoint: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`KIND-1` by one process and `KIND-2` by two; `sharded-2`, straight and after a kill."""
    folder = tmp_path_factory.mktemp("together")

    def words(kind: str, name: str) -> list[str]:
        return command(kind, lively_checkpoint, dataset, folder / name)

    def sharded(name: str, **more: str) -> dict[str, Any]:
        return {"words": words("finetune", name), "processes": 2, "sharded": True, **more}

    commands = [{"words": words(k, f"{k}-{n}"), "processes": n} for k in KINDS for n in (1, 2)]
    state, fewer = (
        folder / f".{name}.building" / "scratch" / "state-00000001.safetensors"
        for name in ("sharded-again-2", "sharded-then-1")
    )
    judge = teach(
        JudgeSettings(epochs=2, batch_size=24, width=4), JudgeInputs(dataset=dataset), folder / "judge"
    )
    asking = [word for pair in ASKING for word in ("--set", pair)]
    commands += [
        {"words": [*words("finetune", f"judged-{n}"), *asking, "--judge", str(judge)], "processes": n}
        for n in (1, 2)
    ]
    commands += [
        sharded("sharded-2"),
        sharded("sharded-again-2", kill_at=str(state)),
        sharded("sharded-again-2"),
        sharded("sharded-then-1", kill_at=str(fewer)),
        {"words": words("finetune", "sharded-then-1"), "processes": 1},
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    script = str(Path(__file__).with_name("together.py"))
    called = [sys.executable, script, str(folder / "commands.json")]
    done = subprocess.run(called, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return read_tensors(file)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        *((f"{k}-1", f"{k}-2") for k in KINDS),
        ("finetune-1", "sharded-2"),
        ("finetune-1", "sharded-then-1"),
    ],
)
def test_two_processes_give_what_one_gives(runs: Path, one: str, two: str) -> None:
    ours, theirs = weights_in(runs / two), weights_in(runs / one)
    worst = max((ours[key].float() - theirs[key].float()).abs().max().item() for key in theirs)
    assert ours.keys() == theirs.keys() and worst < 2e-5
    logs = [
        [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
        for name in (one, two)
    ]
    for alone, together in zip(*logs, strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=2e-6)


def test_a_jury_s_pictures_are_drawn_by_all(runs: Path) -> None:
    """Each of them counts once, whoever draws it."""
    alone, together = (
        [json.loads(line)["missed"] for line in (runs / name / "balance.jsonl").read_text().splitlines()]
        for name in ("judged-1", "judged-2")
    )
    assert alone == together and all(alone)


def test_killed_and_continued_is_straight_to_the_byte(runs: Path) -> None:
    for path in (runs / "sharded-2").iterdir():
        assert (runs / "sharded-again-2" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not list(runs.glob(".*"))


def step_of(count: int, draws: int) -> Step:
    records = tuple(
        Record(
            sha256="", source=str(row), file="", style="", tags=(), split="train", width=8, height=8, row=row
        )
        for row in range(count)
    )
    latents = torch.arange(count * draws, dtype=torch.float32)[:, None, None, None]
    noised = Noised(latents, latents, latents, latents.flatten())
    return Step(0, records, tuple(map(str, range(count))), noised, torch.ones(count))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5))
def test_every_row_counts_once_and_all_shares_are_of_one_size(count: int, draws: int, size: int) -> None:
    step = step_of(count, draws)
    shares = [Team(rank, size).share(step) for rank in range(size)]
    assert len({len(share.records) for share in shares}) == 1
    rows = [
        (record.row, caption)
        for share in shares
        for record, caption, weight in zip(share.records, share.captions, share.weights, strict=True)
        if weight
    ]
    assert rows == [(row, str(row)) for row in range(count)]
    for share in shares:
        expected = [record.row * draws + draw for record in share.records for draw in range(draws)]
        assert share.noised.t.tolist() == expected


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 12))
def test_buckets_hold_everything_in_order(sizes: list[int], most: int) -> None:
    tensors = [torch.full((size,), float(index)) for index, size in enumerate(sizes)]
    found = [tensor for bucket in buckets(tensors, most) for tensor in bucket]
    assert all(a is b for a, b in zip(found, tensors, strict=True))


def test_what_several_processes_can_t_do_is_named(tmp_path: Path, pictures: Path) -> None:
    fused = FinetuneSettings(steps=1, fused_backward=True, gradient_norm=0)
    with pytest.raises(SettingsError, match="before gradients are summed"):
        require_whole(fused, Team(0, 2))
    with pytest.raises(SettingsError, match="adafactor needs whole weights"):
        require_whole(FinetuneSettings(steps=1, optimiser="adafactor"), Team(0, 2, True))
    from aid.dataset.run import prepare
    from aid.dataset.settings import PrepareInputs, PrepareSettings

    inputs = PrepareInputs(pictures={"in": pictures})
    with pytest.raises(SettingsError, match="started as 2 processes"):
        prepare(PrepareSettings(), inputs, tmp_path / "out", Workbench(rank=1, ranks=2))
