"""`aid make RECIPE --dry-run`: everything is explained, nothing is run, and the figures are about right."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aid.cli import main
from aid.core.lineage import read_lineage
from aid.estimate.explain import RUNTIME_BYTES, Row, explain, measured_rate
from aid.estimate.scene import Pictures, Scene
from aid.estimate.work import WORK
from aid.make import read_recipe
from aid.sd.model.architecture import SD1, TINY, Architecture
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint
from aid.sd.model.cost import COSTS, FROZEN, TRAINED, Cost, read_cost
from aid.train.profile import PROFILES, Profile
from aid.train.settings import FinetuneInputs, FinetuneSettings, LoraInputs, LoraSettings

AID_V1 = Path(__file__).parents[2] / "recipes" / "aid-v1.toml"
AID_XL = AID_V1.with_name("aid-xl.toml")
TINY_RECIPE = Path(__file__).with_name("tiny.toml")
LEFT_OPEN = {"$pictures", "$base", "$detail", "$composition", "$vae"}
RATE = 50e9


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main_without_exit(["make", *words, "--dry-run"])
    return capsys.readouterr().out


def main_without_exit(words: list[str]) -> None:
    try:
        main(words)
    except SystemExit as end:
        assert not end.code


def rows(recipe: Path, runs: Path, **given: Path) -> dict[str, Row]:
    return {row.step: row for row in explain(read_recipe(recipe, runs, given), RATE)}


def test_the_full_scale_recipe_is_explained_with_nothing_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = json.loads(dry_run(capsys, str(AID_V1), "--json"))
    assert set(told["missing"]) == LEFT_OPEN
    assert told["missing"]["$composition"] == ["merged.models.composition"]
    verbs = [step["verb"] for step in told["steps"]]
    assert verbs.count("train finetune") == 2 and {"merge", "train embedding", "release"} <= set(verbs)
    for step in told["steps"]:
        assert step["sizes"] and step["memory_bytes"] > 0 and step["cpu_seconds"] > 0, step["step"]
        assert not any(path.startswith("@") for path in step["missing"].values())
        assert step["state"] == ("waits" if step["missing"] else "follows"), "each hangs on what is missing"
    training = next(step for step in told["steps"] if step["step"] == "style-512")
    assert 20e9 < training["memory_bytes"] < 40e9, "weights, gradients, two moments and the average of 982 M"
    assert 100_000 < int(training["sizes"].split()[0].replace(",", "")) < 110_000, "100 epochs of 4,300 by 4"
    assert list(tmp_path.iterdir()) == [], "nothing was made"


def test_the_sdxl_recipe_takes_a_missing_model_to_be_sdxl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = json.loads(dry_run(capsys, str(AID_XL), "--json"))
    assert set(told["missing"]) == LEFT_OPEN
    steps = {step["step"]: step for step in told["steps"]}
    assert 30e9 < steps["style"]["memory_bytes"] < 40e9, "as its memory profile promises"
    assert "3,468.8 M parameters" in steps["merged"]["sizes"]
    assert any("as large as SDXL" in note for note in steps["style"]["notes"])


def test_a_person_reads_what_is_missing_and_how_to_give_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(dry_run(capsys, str(AID_V1), "--out", str(tmp_path / "runs")).split())
    for name in LEFT_OPEN:
        assert f"{name} (missing)" in text and f"--input {name[1:]}=PATH" in text
    assert "estimates" in text and "GFLOP/s" in text and "assumed" in text


def test_given_inputs_are_read_for_their_sizes(pictures: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = rows(TINY_RECIPE, tmp_path / "runs", pictures=pictures, base=tiny_checkpoint)
    assert not any(row.missing for row in found.values())
    assert found["dataset"].sizes.startswith("16 pictures")
    assert "4 pictures" in found["gallery"].sizes and "2 styles" in found["gallery"].sizes
    model = load_checkpoint(tiny_checkpoint)
    whole = sum(parameter.numel() for module in model.modules() for parameter in module.parameters())
    assert f"of {whole / 1e6:,.1f} M parameters" in found["style"].sizes
    assert found["merged"].inputs["models.style"] == "@style"
    assert not (tmp_path / "runs").exists()


def test_what_is_made_is_kept_and_what_follows_a_change_is_decided_later(
    pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    own, runs = tmp_path / "pictures", tmp_path / "runs"
    shutil.copytree(pictures, own)
    recipe = read_recipe(TINY_RECIPE, runs, {"pictures": own, "base": tiny_checkpoint})
    step = recipe.steps[0]
    step.entry.load()(step.settings, step.inputs, step.out)
    made = read_lineage(step.out)
    (runs / "style").mkdir()
    found = rows(TINY_RECIPE, runs, pictures=own, base=tiny_checkpoint)
    assert found["dataset"].state == "kept" and found["dataset"].cpu_seconds == 0
    assert found["style"].state == "runs", "an artifact that is not there yet"
    (own / "alpha" / "alpha0.txt").write_text("green hair")
    changed = rows(TINY_RECIPE, runs, pictures=own, base=tiny_checkpoint)
    assert changed["dataset"].state == "runs" and changed["style"].state == "later"
    assert read_lineage(step.out) == made


def test_a_pickle_and_another_family_are_noted_and_not_fatal(tmp_path: Path, pictures: Path) -> None:
    pickle, other = tmp_path / "base.ckpt", tmp_path / "other.safetensors"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, pickle)
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  '
    other.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    noted = rows(TINY_RECIPE, tmp_path / "runs", pictures=pictures, base=pickle)["style"].notes
    assert any("base.ckpt" in note for note in noted)
    noted = rows(TINY_RECIPE, tmp_path / "runs", pictures=pictures, base=other)["style"].notes
    assert any("other.safetensors" in note and "in one file" in note for note in noted)


def test_a_list_of_shots_is_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "shots.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'title = "t"\n[[step]]\nname = "g"\nverb = "generate"\n'
        'inputs.checkpoint = "$base"\ninputs.shots = "shots.jsonl"\n'
    )
    assert rows(recipe, tmp_path / "runs", base=tiny_checkpoint)["g"].sizes.startswith("2 pictures")


def test_the_rate_is_measured_in_a_moment() -> None:
    began = time.perf_counter()
    assert 1e8 < measured_rate(0.05) < 1e14
    assert time.perf_counter() - began < 3
    assert measured_rate(0.0) > 0


# The figures beside torch's own counters, on diffusers' modules.


def counted(run: Any) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def near(estimate: float, found: float, tolerance: float) -> bool:
    return abs(estimate - found) <= tolerance * found


@pytest.mark.parametrize(("architecture", "tolerance"), [(SD1, 0.04), (TINY, 0.25)])
def test_flops_are_those_that_torch_counts(architecture: Architecture, tolerance: float) -> None:
    with torch.device("meta"):
        model = create_checkpoint(architecture, 0)
        ids, text = torch.zeros(1, 77, dtype=torch.long), torch.empty(1, 77, architecture.text_width)
        latents, pixels = torch.empty(1, 4, 32, 32), torch.empty(1, 3, 256, 256)
        t = torch.zeros(1)
    cost = Cost(architecture)
    assert near(cost.unet_flops(32 * 32), counted(lambda: model.unet(latents, t, text)), tolerance)
    assert near(cost.text_flops(), counted(lambda: model.text_encoder(ids)), tolerance)
    assert near(cost.encode_flops(256 * 256), counted(lambda: model.vae.encode(pixels)), tolerance)
    assert near(cost.decode_flops(256 * 256), counted(lambda: model.vae.decode(latents)), tolerance)


@pytest.mark.parametrize(("frozen", "alive"), [(False, TRAINED), (True, FROZEN)])
def test_kept_activations_are_those_that_autograd_keeps(
    tiny_checkpoint: Path, frozen: bool, alive: int
) -> None:
    unet = load_checkpoint(tiny_checkpoint).unet.requires_grad_(not frozen)
    own = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # alive, so that no other takes its place
        return tensor

    text = torch.zeros(2, 77, TINY.text_width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(torch.zeros(2, 4, 16, 16), torch.zeros(2), text)
    found = sum(storage.nbytes() for storage in kept.values()) / 4
    assert near(2 * Cost(TINY).unet_numbers(alive, 16 * 16), found, 0.25)


def test_parameters_are_read_from_the_header(tiny_checkpoint: Path) -> None:
    model, cost = load_checkpoint(tiny_checkpoint), read_cost(tiny_checkpoint)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in model.modules()]
    assert [cost.unet, cost.text, cost.vae] == sizes
    assert cost.architecture == TINY and not cost.note


@pytest.mark.parametrize("name", PROFILES)
def test_a_memory_profile_fits_what_it_is_named_after(name: Profile) -> None:
    """By the estimate, which benchmarks/memory.py compares with real runs."""
    large, made = name.startswith("sdxl"), Path("dataset")
    cost = COSTS["sdxl" if large else "sd1"]
    batch = {"40gb": 8, "80gb": 32, "sdxl-24gb": 1}.get(name, 4)
    settings = FinetuneSettings(steps=9, memory_profile=name, batch_size=batch)
    pictures = Pictures(pixels=(1024 if large else 512) ** 2)
    scene = Scene({made: "data", Path("model"): "model"}, {made: pictures, Path("model"): cost})
    inputs = FinetuneInputs(checkpoint=Path("model"), dataset=made)
    peak = (RUNTIME_BYTES + WORK["train finetune"](settings, inputs, scene).memory) / 1e9
    room = int(name.removeprefix("sdxl-").removesuffix("gb"))
    assert room / 3 < peak < 0.97 * room


@pytest.mark.parametrize("verb", ["train finetune", "train lora"])
def test_what_is_trained_is_counted_part_by_part(verb: str) -> None:
    """SDXL's encoders may have rates of their own."""
    full = verb == "train finetune"
    kind, asked = (FinetuneSettings, FinetuneInputs) if full else (LoraSettings, LoraInputs)
    model, made = Path("model"), Path("dataset")
    scene = Scene({made: "data", model: "model"}, {made: Pictures(), model: COSTS["sdxl"]})

    def trained(**rates: float) -> float:
        settings = kind(steps=1, unet_rate=0.0, **rates)
        sizes = WORK[verb](settings, asked(checkpoint=model, dataset=made), scene).sizes
        return float(sizes.split(", ")[1].split(" of ")[0].replace(",", ""))

    first, second = trained(text_rate=1e-4, text_2_rate=0.0), trained(text_rate=0.0, text_2_rate=1e-4)
    assert 0 < first < second
    assert near(first + second, trained(text_rate=1e-4), 0.001)


def test_a_training_that_will_be_refused_is_told_before_the_steps_ahead_of_it_run() -> None:
    model, made = Path("model"), Path("dataset")
    settings, inputs = LoraSettings(steps=1, clip_skip=2), LoraInputs(checkpoint=model, dataset=made)
    for family, refused in (("sd1", False), ("sd2", True), ("sdxl", True)):
        scene = Scene({made: "data", model: "model"}, {made: Pictures(), model: COSTS[family]})
        notes = WORK["train lora"](settings, inputs, scene).notes
        assert any("refused: clip_skip is 2" in note for note in notes) == refused, family
