"""Fine-tuning: it learns, keeps what it is told to keep, and continues bitwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.interrupting import Interrupting

from aid.core.dataset import Dataset
from aid.core.lineage import embedded_lineage, read_lineage
from aid.core.workbench import Silence, Workbench
from aid.errors import AidError, ArtifactError, SettingsError
from aid.sd.file.tensorfile import read_header, read_tensors
from aid.sd.model.tokenizer import load_tokenizer
from aid.train.run import finetune
from aid.train.settings import CaptionSettings, FinetuneInputs, FinetuneSettings
from aid.train.step.batch import token_windows
from aid.train.step.plan import plan_styles

QUICK = FinetuneSettings(
    steps=6, batch_size=3, noise_draws=2, regularisation_share=0.34, unet_rate=2e-3, text_rate=2e-3, warmup=1,
    save_every=2, seed=3, checkpointing=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint: Path, dataset: Path) -> FinetuneInputs:
    return FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)


@pytest.fixture(scope="module")
def straight(inputs: FinetuneInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(QUICK, inputs, tmp_path_factory.mktemp("straight") / "out", Workbench(threads=1))


@pytest.mark.parametrize("stops", [[3], [1, 4, 1], [5]])
def test_resume_is_bitwise(inputs: FinetuneInputs, straight: Path, tmp_path: Path, stops: list[int]) -> None:
    out = tmp_path / "out"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            finetune(QUICK, inputs, out, Workbench(threads=1, progress=Interrupting(stop)))
    finetune(QUICK, inputs, out, Workbench(threads=1))
    for name in ("model.safetensors", "log.jsonl", "curve.png", "lineage.json"):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name


def test_what_is_kept_on_the_way_is_what_a_shorter_training_gives(
    inputs: FinetuneInputs, straight: Path, tmp_path: Path
) -> None:
    def run(name: str, progress: Silence | None = None, **change: int) -> Path:
        bench = Workbench(threads=1, progress=progress or Silence())
        return finetune(QUICK.model_copy(update=change), inputs, tmp_path / name, bench)

    shorter = read_tensors(run("shorter", steps=4) / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run("out", Interrupting(5), keep_every=2)
    out = run("out", keep_every=2)
    assert {path.name for path in (out / "kept").iterdir()} == {
        "model-000002.safetensors", "model-000004.safetensors",
    }  # fmt: skip
    kept = read_tensors(out / "kept" / "model-000004.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in shorter.items())
    assert embedded_lineage(out / "kept" / "model-000004.safetensors") is not None
    last = read_tensors(straight / "model.safetensors")
    assert all(torch.equal(one, last[name]) for name, one in read_tensors(out / "model.safetensors").items())


def test_an_unfinished_training_is_not_thrown_away_when_settings_change(
    inputs: FinetuneInputs, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        finetune(QUICK, inputs, out, Workbench(threads=1, progress=Interrupting(5)))
    changed = QUICK.model_copy(update={"steps": 8, "caption": CaptionSettings(keep=2)})
    with pytest.raises(
        ArtifactError, match=r"out\.building holds an unfinished .*: steps was 6; caption.keep was 1"
    ):
        finetune(changed, inputs, out, Workbench(threads=1))
    finetune(QUICK, inputs, out, Workbench(threads=1))
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_how_states_are_saved_may_change_before_a_training_goes_on(
    inputs: FinetuneInputs, straight: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "out", Interrupting()
    with pytest.raises(KeyboardInterrupt):
        finetune(QUICK, inputs, out, Workbench(threads=1, progress=Interrupting(5)))
    changed = QUICK.model_copy(update={"save_every": 1, "keep_states": 1, "save_behind": False})
    finetune(changed, inputs, out, Workbench(threads=1, progress=seen))
    assert seen.done == [4], "from the state after four steps"
    ours, theirs = (read_tensors(folder / "model.safetensors") for folder in (out, straight))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read_lineage(out).node.settings["save_every"] == 1
    again = finetune(changed, inputs, tmp_path / "again", Workbench(threads=1))
    for path in again.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_going_back_to_a_state_hangs_on_when_they_are_saved(inputs: FinetuneInputs, tmp_path: Path) -> None:
    rolling = QUICK.model_copy(update={"trouble": "roll_back"})
    with pytest.raises(KeyboardInterrupt):
        finetune(rolling, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(5)))
    changed = rolling.model_copy(update={"save_every": 1})
    with pytest.raises(ArtifactError, match="save_every was 2"):
        finetune(changed, inputs, tmp_path / "out", Workbench(threads=1))


def test_the_checkpoint_differs_everywhere_and_knows_its_past(straight: Path, tiny_checkpoint: Path) -> None:
    before, after = read_tensors(tiny_checkpoint), read_tensors(straight / "model.safetensors")
    assert before.keys() == after.keys()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert any(key.startswith("cond_stage_model") for key in changed)
    assert any(key.startswith("model.diffusion_model.input_blocks.1.1") for key in changed)
    assert not any(key.startswith("first_stage_model") for key in changed)
    made = embedded_lineage(straight / "model.safetensors")
    assert made is not None and {"prepare", "train finetune", "pictures", "file"} == {
        node.verb for node in made.nodes.values()
    }
    assert "aid.architecture" in read_header(straight / "model.safetensors").metadata


def test_it_learns(inputs: FinetuneInputs, tmp_path: Path) -> None:
    settings = QUICK.model_copy(
        update={"steps": 40, "noise_draws": 1, "weighting": "uniform", "unet_rate": 1e-2}
    )
    out = finetune(settings, inputs, tmp_path / "out", Workbench(threads=1))
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_frozen_part_stays(inputs: FinetuneInputs, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"steps": 1, "text_rate": 0.0, "ema": 0.0})
    after = read_tensors(finetune(settings, inputs, tmp_path / "out") / "model.safetensors")
    before = read_tensors(tiny_checkpoint)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("cond_stage"))


def test_a_nan_stops_and_names_the_pictures(inputs: FinetuneInputs, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"unet_rate": 1e30, "gradient_norm": 0.0})
    with pytest.raises(AidError, match=r"loss became .* on .*alpha\d\.png"):
        finetune(settings, inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_new_picture_once_an_epoch_with_its_share_of_replay(dataset: Path) -> None:
    settings = QUICK.model_copy(update={"steps": 0, "epochs": 2.0})
    plan = plan_styles(Dataset(dataset), settings, 0.18215)
    assert plan.steps == 2 * 3  # 6 pictures, 2 new and 1 replayed a step
    for epoch in range(2):
        steps = [plan.step(epoch * 3 + index) for index in range(3)]
        new = [record.source for step in steps for record in step.records if not record.regularisation]
        assert sorted(new) == sorted(set(new)) and len(new) == 6
        assert all(sum(record.regularisation for record in step.records) == 1 for step in steps)
    assert all(record.split == "train" for index in range(6) for record in plan.step(index).records)


def test_steps_do_not_depend_on_each_other(dataset: Path) -> None:
    plan, again = (plan_styles(Dataset(dataset), QUICK, 0.18215) for _ in range(2))
    plan.step(0), plan.step(1)
    a, b = plan.step(4), again.step(4)
    assert torch.equal(a.noised.noise, b.noised.noise) and a.captions == b.captions
    assert torch.equal(a.noised.latents, b.noised.latents) and a.records == b.records
    assert not torch.equal(a.noised.noise, plan.step(5).noised.noise)


def test_one_length_must_be_given() -> None:
    with pytest.raises(ValueError, match="either `epochs` or `steps`"):
        FinetuneSettings()
    with pytest.raises(ValueError, match="either"):
        FinetuneSettings(epochs=1, steps=1)


def test_a_dataset_without_pictures_to_train_on_is_refused(dataset: Path) -> None:
    held = Dataset(dataset)
    held.__dict__["records"] = tuple(held.split("held"))
    with pytest.raises(SettingsError, match="no pictures to train on"):
        plan_styles(held, QUICK, 0.18215)


def test_regularisation_pictures_never_go_unused_in_silence(dataset: Path) -> None:
    with pytest.raises(SettingsError, match="6 regularisation pictures, and none would be used"):
        plan_styles(Dataset(dataset), QUICK.model_copy(update={"regularisation_share": 0.0}), 0.18215)


def test_parts_and_checkpointing_change_memory_and_not_the_result(
    inputs: FinetuneInputs, straight: Path, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"part_size": 2, "checkpointing": True, "output": "fp32"})
    whole = finetune(QUICK.model_copy(update={"output": "fp32"}), inputs, tmp_path / "whole")
    parts = finetune(settings, inputs, tmp_path / "parts")
    ours, theirs = read_tensors(parts / "model.safetensors"), read_tensors(whole / "model.safetensors")
    worst = max((ours[key].float() - theirs[key].float()).abs().max().item() for key in ours)
    assert 0 < worst < 2e-3, "rounding, which Adam's first steps blow up to a rate at most"


def test_sample_sheets_do_not_disturb_the_training(
    inputs: FinetuneInputs, straight: Path, tmp_path: Path
) -> None:
    samples = QUICK.samples.model_copy(
        update={"every": 3, "prompts": ("by alpha",), "steps": 2, "width": 64, "height": 64}
    )
    out = finetune(
        QUICK.model_copy(update={"samples": samples}), inputs, tmp_path / "out", Workbench(threads=1)
    )
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["step-000003.png", "step-000006.png"]
    with Image.open(out / "samples" / "step-000003.png") as sheet:
        assert sheet.size == (64, 64 + 14), "with the prompt below"
    ours, theirs = read_tensors(out / "model.safetensors"), read_tensors(straight / "model.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_captions_can_be_kept_whole(dataset: Path) -> None:
    whole = CaptionSettings(shuffle=False, dropout=0.0, windows=2)
    settings = QUICK.model_copy(update={"caption": whole})
    step = plan_styles(Dataset(dataset), settings, 0.18215).step(0)
    ids = token_windows(step.captions, 2)
    assert ids.shape == (3, 2, 77)
    text = load_tokenizer().decode(ids[0, 0], skip_special_tokens=True)
    assert text.replace(" ,", ",").strip() == step.records[0].caption
