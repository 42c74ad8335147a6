"""Steps that go wrong are left out, undone or end the run, as told; what is saved survives all of it."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import QUICK
from tests.interrupting import Interrupting

from aid.core.dataset import Dataset
from aid.core.workbench import Silence, Workbench
from aid.errors import AidError, ArtifactError, FileError
from aid.sd.file.state import load_state
from aid.sd.file.tensorfile import read_tensors
from aid.sd.model.checkpoint import load_checkpoint
from aid.train import loop
from aid.train.log import Log
from aid.train.loop import take
from aid.train.optimiser.group import weights_of
from aid.train.run import finetune, style_training
from aid.train.saving import Saver
from aid.train.settings import FinetuneInputs
from aid.train.step.plan import Step, plan_styles
from aid.train.tables import SampleSettings
from aid.train.training import Training

SHEET = SampleSettings(every=1, prompts=("x",), steps=1, width=64, height=64)


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint: Path, dataset: Path) -> FinetuneInputs:
    return FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)


class Telling(Silence):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps, from 0, at which a latent turns out to be NaN, as one of a damaged cache would."""
    steps: set[int] = set()
    whole = Training.gradients

    def gradients(self: Training, step: Step) -> tuple[float, float]:
        if step.index in steps:
            step.noised.latents[0, 0, 0, 0] = torch.nan
        return whole(self, step)

    monkeypatch.setattr(Training, "gradients", gradients)
    return steps


def run(inputs: FinetuneInputs, out: Path, stop: int = 0, **change: Any) -> list[str]:
    progress = Interrupting(stop) if stop else Telling()
    settings = QUICK.model_copy(update=change)
    finetune(settings, inputs, out, Workbench(threads=1, progress=progress))
    return getattr(progress, "said", [])


def test_stopping_names_the_pictures_and_keeps_the_state(
    inputs: FinetuneInputs, poisoned: set[int], tmp_path: Path
) -> None:
    poisoned.add(3)
    with pytest.raises(AidError, match=r"loss became nan.* at step 4 on .*alpha\d\.png"):
        run(inputs, tmp_path / "out")
    state = load_state(tmp_path / ".out.building")
    assert state is not None and state[0] == 2


def test_a_run_that_fails_before_its_first_state_leaves_nothing(
    inputs: FinetuneInputs, poisoned: set[int], tmp_path: Path
) -> None:
    poisoned.add(1)
    with pytest.raises(AidError, match="loss became nan"):
        run(inputs, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_step_left_out_changes_nothing(inputs: FinetuneInputs, poisoned: set[int], tmp_path: Path) -> None:
    poisoned.update({2, 5})
    said = run(inputs, tmp_path / "out", trouble="skip")
    assert [line for line in said if "left out" in line and "alpha" in line and "step 3" in line]
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert ["left_out" in row for row in rows] == [False, False, True, False, False, True]
    model = read_tensors(tmp_path / "out" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in model.values() if tensor.is_floating_point())


def test_a_step_left_out_has_its_share_of_the_averages(inputs: FinetuneInputs, tmp_path: Path) -> None:
    """Late in a training, where averages change at every second step only: the left-out one is such."""
    settings = QUICK.model_copy(update={"steps": 600, "ema": 0.98, "trouble": "skip"})
    model = load_checkpoint(inputs.checkpoint)
    plan = plan_styles(Dataset(inputs.dataset), settings, model.architecture.vae_scale)
    training, log = style_training(model, weights_of(model), settings, plan.steps), Log(tmp_path, 0)
    before = [value.clone() for value in training.average.values]
    with Saver(tmp_path, 1) as saver:
        assert not take(training, plan.step(498), log, saver)
        assert all(map(torch.equal, before, training.average.values)), "not yet its turn"
        damaged = plan.step(499)
        damaged.noised.latents.fill_(torch.nan)
        assert "left out" in take(training, damaged, log, saver)
    log.close()
    wanted = [
        torch.lerp(a, b.detach(), 1 - 0.98**2) for a, b in zip(before, training.parameters, strict=True)
    ]
    assert not all(map(torch.equal, before, wanted))
    for ours, theirs in zip(training.average.values, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("first", [0, 3])
def test_rolling_back_returns_to_the_newest_state_and_resumes_bitwise(
    inputs: FinetuneInputs, poisoned: set[int], tmp_path: Path, first: int
) -> None:
    poisoned.add(first)
    said = run(inputs, tmp_path / "straight", trouble="roll_back")
    assert [line for line in said if "back to the newest state" in line]
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "out", 4, trouble="roll_back")
    resumed = run(inputs, tmp_path / "out", trouble="roll_back")
    assert ", from step " in resumed[0] and ", from step " not in said[0]
    for name in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_the_tenth_time_ends_the_run(inputs: FinetuneInputs, poisoned: set[int], tmp_path: Path) -> None:
    poisoned.update(range(40))
    with pytest.raises(AidError, match="the 10th step to be left out"):
        run(inputs, tmp_path / "out", trouble="skip", steps=40)


def test_a_spike_is_told_from_the_usual(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    settings = QUICK.model_copy(update={"spike": 3.0})
    for step in range(19):
        log.add(step=step + 1, loss=1.0)
    assert not loop.trouble(9.0, 1.0, log, settings), "too few to tell"
    log.add(step=20, loss=1.0)
    assert "rose to 9, from 1" in loop.trouble(9.0, 1.0, log, settings)
    assert not loop.trouble(2.9, 1.0, log, settings) and not loop.trouble(9.0, 1.0, log, QUICK)
    log.close()


def test_a_saver_copies_and_writes_behind(tmp_path: Path) -> None:
    tensor = torch.arange(4_000_000, dtype=torch.float32)
    with Saver(tmp_path, keep=2) as saver:
        for step in (1, 2, 3):
            saver.save(step, {"x": tensor})
            saver.taken()
            tensor += 1  # while it is written
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == [
        "state-00000002.safetensors", "state-00000003.safetensors",
    ]  # fmt: skip
    state = load_state(tmp_path)
    assert state is not None and torch.equal(state[1].read("x"), tensor - 1)


def test_a_state_is_written_without_a_copy_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aid.train.saving.free_bytes", lambda: 3e6)
    tensor, said = torch.arange(1_000_000, dtype=torch.float32), list[str]()
    with Saver(tmp_path, keep=2, say=said.append) as saver:
        for step in (1, 2):
            saver.save(step, {"x": tensor})
            assert (state := load_state(tmp_path)) and state[0] == step, "written when save returns"
            tensor += 1
        assert not saver.copies
    assert len(said) == 1 and "takes 0.0 GB of memory, 0.0 are free" in said[0]


def test_a_sheet_that_memory_has_no_room_for_ends_no_training(
    inputs: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("the GPU is full")

    monkeypatch.setattr("aid.sd.drawing.pipeline.draw", full)
    with pytest.warns(UserWarning, match="memory is short: no sample sheet is drawn, and training goes on"):
        run(inputs, tmp_path / "short", samples=SHEET)
    run(inputs, tmp_path / "plain")
    short, plain = (read_tensors(tmp_path / name / "model.safetensors") for name in ("short", "plain"))
    assert all(torch.equal(short[name], plain[name]) for name in plain)


def test_an_error_in_writing_reaches_the_run(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("in the way")
    with pytest.raises((FileError, OSError)), Saver(tmp_path, keep=2) as saver:
        saver.save(1, {"x": torch.zeros(2)})
        time.sleep(0.05)
        saver.save(2, {"x": torch.zeros(2)})


def test_saving_behind_or_not_gives_the_same_bytes(inputs: FinetuneInputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "behind")
    run(inputs, tmp_path / "before", save_behind=False)
    models = [tmp_path / name / "model.safetensors" for name in ("behind", "before")]
    ours, theirs = map(read_tensors, models)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "change",
    [{}, {"fused_backward": True, "gradient_norm": 0.0}, {"samples": SHEET}],
    ids=["", "fused backward", "sheets"],
)
def test_a_state_is_of_one_step_however_long_its_copying_takes(
    inputs: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    words = {"save_every": 1, "keep_states": 9, "noise_draws": 1, **change}
    copy = Saver._copy

    def slow(self: Saver, *given: Any) -> Any:
        time.sleep(0.3)
        return copy(self, *given)

    monkeypatch.setattr(Saver, "_copy", slow)
    for name, behind in (("behind", True), ("before", False)):
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / name, 4, save_behind=behind, **words)
    behind, before = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "scratch").iterdir()}
        for name in (".behind.building", ".before.building")
    )
    assert len(before) == 3 and behind == before


def test_a_full_disk_stops_it_with_the_last_state_and_the_old_result_whole(
    inputs: FinetuneInputs, tmp_path: Path
) -> None:
    """The real thing, from the kernel: no file may grow beyond 200 kB, which a state needs."""
    out = tmp_path / "out"
    run(inputs, out, steps=1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"out could not be written \(File too large\).*continues where"):
            run(inputs, out, steps=4, noise_draws=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    run(inputs, out, steps=4, noise_draws=1)
    assert len((out / "log.jsonl").read_text().splitlines()) == 4


def test_a_disk_that_fills_after_training_leaves_nothing_where_no_state_was(
    inputs: FinetuneInputs, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(FileError, match="File too large"):
            run(inputs, tmp_path / "out", steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["cut short", "gone", "other records"])
def test_a_harmed_dataset_is_named_before_the_first_step(
    inputs: FinetuneInputs, tmp_path: Path, harm: str
) -> None:
    folder = Path(shutil.copytree(inputs.dataset, tmp_path / "dataset"))
    shard = folder / "latents-64x64.npy"
    if harm == "cut short":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif harm == "gone":
        shard.unlink()
    else:
        (folder / "records.jsonl").write_bytes(b'{"sha256": "\xff"}\n')
    with pytest.raises(ArtifactError, match=r"dataset"):
        run(inputs.model_copy(update={"dataset": folder}), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
