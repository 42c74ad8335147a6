"""Grids as they are asked for: what is drawn, with which weights, in which cell; and continuing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.interrupting import Interrupting

import aid.generate.grid.drawing as drawing
import aid.sd.drawing.shot_text as shot_text
from aid import starter
from aid.cli import main
from aid.core.gallery import read_gallery
from aid.core.release import Release
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.estimate.scene import Scene
from aid.estimate.work import WORK
from aid.generate.grid.layout import Grid, plan_grid
from aid.generate.grid.run import grid
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.run import generate
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.conversion import Conversion, convert
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint
from aid.sd.picture.infotext import parse_infotext

CPU = Workbench("cpu", 1)
SMALL: dict[str, Any] = {"prompt": "a cat", "width": 16, "height": 16, "steps": 1}


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_checkpoint(create_checkpoint(TINY, seed=8), path, {})
    return path


def planned(
    checkpoint: Path, embeddings: tuple[Path, ...] = (), loras: tuple[Path, ...] = (), **settings: Any
) -> Grid:
    inputs = GridInputs(checkpoint=checkpoint, embeddings=embeddings, loras=loras)
    return plan_grid(GridSettings.model_validate({**SMALL, **settings}), inputs)


def shots(plan: Grid) -> list[Shot]:
    return [cell.shot for cell in plan.cells]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def text_of(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        return parse_infotext(picture.text["parameters"]).fields  # type: ignore[attr-defined]


def test_every_cell_is_the_picture_that_generate_draws(lively_checkpoint: Path, tmp_path: Path) -> None:
    settings = GridSettings(**SMALL, x="steps=1,2", y="seed=3-4", z="cfg_scale=1,7")
    out = grid(settings, GridInputs(checkpoint=lively_checkpoint), tmp_path / "grid", CPU)
    frames = read_gallery(out)
    found = [(frame.shot.cfg_scale, frame.shot.seed, frame.shot.steps) for frame in frames]
    assert found == [(cfg, seed, steps) for cfg in (1, 7) for seed in (3, 4) for steps in (1, 2)]
    plan = json.loads((out / "grid.json").read_text())
    assert plan["axes"][0] == {"kind": "steps", "labels": ["1", "2"]}
    assert plan["sheets"] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    last = plan["files"][plan["sheets"][1][1][0]]
    alone = generate(
        GenerateSettings(**SMALL, seed=4, cfg_scale=7),
        GenerateInputs(checkpoint=lively_checkpoint),
        tmp_path / "alone",
        CPU,
    )
    difference = pixels(out / last).astype(int) - pixels(next(alone.glob("0*.png")))
    assert abs(difference).max() <= 1
    assert {file.name for file in out.iterdir() if not file.name.startswith("0")} == {
        "grid-1.png", "grid-7.png", "grid.json", "index.html", "lineage.json", "shots.jsonl",
    }  # fmt: skip


def test_equal_cells_are_one_picture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = GridSettings(**SMALL, x="steps=1,1", y="replace=cat,dog,cat")
    out = grid(settings, GridInputs(checkpoint=tiny_checkpoint), tmp_path / "grid", CPU)
    assert [frame.shot.prompt for frame in read_gallery(out)] == ["a cat", "a dog"]
    assert json.loads((out / "grid.json").read_text())["sheets"] == [[[0, 0], [1, 1], [0, 0]]]


def test_an_interrupted_grid_continues(
    lively_checkpoint: Path, other_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GridSettings(**SMALL, x="checkpoint", y="seed=1,2", batch_size=1)
    inputs = GridInputs(checkpoint=lively_checkpoint, checkpoints={"other": other_checkpoint})
    whole = grid(settings, inputs, tmp_path / "whole", CPU)
    with pytest.raises(KeyboardInterrupt):
        grid(settings, inputs, tmp_path / "grid", Workbench("cpu", 1, Interrupting(3)))
    unfinished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".grid.building").glob("0*.png")}
    assert len(unfinished) == 3
    loaded = []
    real = drawing.load_material
    monkeypatch.setattr(
        drawing, "load_material", lambda *told: (loaded.append(told[1].checkpoint), real(*told))[1]
    )
    out = grid(settings, inputs, tmp_path / "grid", CPU)
    assert loaded == [other_checkpoint]
    assert all((out / name).stat().st_mtime_ns == time for name, time in unfinished.items())
    files = sorted(file.name for file in whole.iterdir() if file.name != "lineage.json")
    assert files == sorted(file.name for file in out.iterdir() if file.name != "lineage.json")
    assert all((whole / name).read_bytes() == (out / name).read_bytes() for name in files)


def test_a_killed_grid_continues_to_the_same_bytes(lively_checkpoint: Path, tmp_path: Path) -> None:
    words = ["grid", "a cat", "--checkpoint", str(lively_checkpoint), "--x", "seed=1-12", "--steps", "20"]
    words += ["--width", "16", "--height", "16", "--batch-size", "1", "--device", "cpu", "--threads", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main([*words, "--out", str(whole)])
    started = [sys.executable, "-c", "from aid.cli import main; main()", *words, "--out", str(killed)]
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        unfinished = tmp_path / ".killed.building"
        while len(list(unfinished.glob("0*.png"))) < 2 and child.poll() is None:
            time.sleep(0.01)
        child.kill()
    drawn = {file: file.stat().st_mtime_ns for file in unfinished.glob("0*.png")}
    assert child.returncode == -signal.SIGKILL and 2 <= len(drawn) < 12 and not killed.exists()
    main([*words, "--out", str(killed)])
    assert all((killed / file.name).stat().st_mtime_ns == when for file, when in drawn.items()), "kept"
    files = sorted(file.name for file in whole.iterdir())
    assert files == sorted(file.name for file in killed.iterdir())
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in files)


def test_each_checkpoint_is_loaded_once_on_whichever_axis(
    lively_checkpoint: Path, other_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = drawing.load_material
    monkeypatch.setattr(
        drawing, "load_material", lambda *told: (loaded.append(told[1].checkpoint), real(*told))[1]
    )
    encoded = []
    encode = shot_text.encode_schedule
    monkeypatch.setattr(
        shot_text,
        "encode_schedule",
        lambda *told, **more: (encoded.append(told[1]), encode(*told, **more))[1],
    )
    settings = GridSettings(**SMALL, x="checkpoint=other,lively", y="vae", z="seed=1,2")
    convert(other_checkpoint, tmp_path / "folder", Conversion())
    vae = tmp_path / "folder" / "vae"  # of its own widths, which only its configuration tells
    inputs = GridInputs(
        checkpoint=lively_checkpoint, checkpoints={"other": other_checkpoint}, vaes={"new": vae}
    )
    out = grid(settings, inputs, tmp_path / "grid", CPU)
    assert loaded == [other_checkpoint, lively_checkpoint]
    assert len(encoded) == 2 * 2  # prompt and negative prompt of either, whatever the VAE
    plan = json.loads((out / "grid.json").read_text())
    assert [axis["labels"] for axis in plan["axes"]] == [["other", "lively"], ["own", "new"], ["1", "2"]]
    told = [[text_of(out / plan["files"][number]) for number in row] for row in plan["sheets"][0]]
    assert [[text["Model"] for text in row] for row in told] == [["other", "lively"]] * 2
    assert [["VAE" in text for text in row] for row in told] == [[False, False], [True, True]]
    swapped = out / plan["files"][plan["sheets"][0][1][1]]
    alone = generate(
        GenerateSettings(**SMALL, seed=1),
        GenerateInputs(checkpoint=lively_checkpoint, vae=vae),
        tmp_path / "alone",
        CPU,
    )
    drawn = next(alone.glob("0*.png"))
    assert text_of(drawn) == text_of(swapped)
    assert abs(pixels(drawn).astype(int) - pixels(swapped)).max() <= 1
    assert not np.array_equal(pixels(swapped), pixels(out / plan["files"][plan["sheets"][0][0][1]]))


def test_words_are_replaced_in_both_prompts(tiny_checkpoint: Path) -> None:
    plan = planned(tiny_checkpoint, negative_prompt="no cat", x='replace=cat,"dog, big",')
    assert [(shot.prompt, shot.negative_prompt) for shot in shots(plan)] == [
        ("a cat", "no cat"), ("a dog, big", "no dog, big"), ("a ", "no "),
    ]  # fmt: skip
    assert plan.axes[0].labels == ("cat", "dog, big", "(nothing)")
    both = planned(tiny_checkpoint, x="replace=cat,owl", y="replace=sits,flies", prompt="a cat sits")
    assert [shot.prompt for shot in shots(both)] == [
        "a cat sits", "a owl sits", "a cat flies", "a owl flies",
    ]  # fmt: skip


def test_prompts_come_before_what_looks_for_words_in_them(tiny_checkpoint: Path) -> None:
    plan = planned(tiny_checkpoint, x="replace=fox,owl", y='prompt="a fox","fox, {style}"', z="style=ink")
    assert [shot.prompt for shot in shots(plan)] == [
        "by ink, a fox", "by ink, a owl", "fox, by ink", "owl, by ink",
    ]  # fmt: skip


def test_styles_take_their_place_in_the_prompt(tiny_checkpoint: Path) -> None:
    plain = planned(tiny_checkpoint, x="style=by ink (b),matcha,{by a:0.6 | by b:0.4}")
    assert [(shot.prompt, shot.style) for shot in shots(plain)] == [
        (r"by ink \(b\), a cat", "ink (b)"),
        ("by matcha, a cat", "matcha"),
        ("{by a:0.6 | by b:0.4}, a cat", "{by a:0.6 | by b:0.4}"),
    ]
    placed = planned(tiny_checkpoint, prompt="a cat {style} style", x="style=ink", template=True)
    assert "a cat by ink style" in shots(placed)[0].prompt
    card = planned(tiny_checkpoint, x="style=ink", template=True, prompt_template="best, {trigger}, {tags}")
    assert shots(card)[0].prompt == "best, by ink, a cat"


def test_a_palette_of_a_release_is_one_word() -> None:
    release = starter.shipped("release")
    styles = Release(release).catalogue.styles
    plan = planned(release, x="style")
    assert [shot.style for shot in shots(plan)] == [style.name for style in styles]
    assert all(style.trigger in shot.prompt for style, shot in zip(styles, shots(plan), strict=True))
    name = styles[0].name
    with pytest.raises(SettingsError, match=rf"is no style of this model.*{name}.*Did you mean {name}\?"):
        planned(release, x=f"style={name}x")


def test_embeddings_are_switched(tiny_checkpoint: Path, embedding_folder: Path) -> None:
    plan = planned(
        tiny_checkpoint,
        (embedding_folder,),
        prompt="(BadV3:1.2), cat, badv3x",
        negative_prompt="blurry, (badv3), [badv3], low",
        x="embedding",
    )
    assert [(shot.prompt, shot.negative_prompt) for shot in shots(plan)] == [
        ("cat, badv3x", "blurry, low"),
        ("(BadV3:1.2), cat, badv3x", "blurry, (badv3), [badv3], low"),
    ]
    plan = planned(tiny_checkpoint, (embedding_folder,), negative_prompt="blurry", x="embedding=on,off")
    assert [shot.negative_prompt for shot in shots(plan)] == ["badv3, blurry", "blurry"]


def test_adapters_are_weighed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("ink", "pen"):
        (tmp_path / f"{name}.safetensors").touch()
    prompt = "cat <lora:ink:1:0.5> <lyco:pen:1>"
    plan = planned(tiny_checkpoint, prompt=prompt, x="lora weight=0-1[3]")
    assert shots(plan)[1].prompt == "cat <lora:ink:0.5> <lora:pen:0.5>"
    plan = planned(tiny_checkpoint, (), (tmp_path,), prompt=prompt, x="lora=off,ink:0.3,ink+pen:2")
    assert [shot.prompt for shot in shots(plan)] == [
        "cat", "cat <lora:ink:0.3>", "cat <lora:ink:1> <lora:pen:2>",
    ]  # fmt: skip
    assert plan.axes[0].labels == ("off", "ink:0.3", "ink:1 + pen:2")
    with pytest.raises(SettingsError, match=r"'inc' is no LoRA; expected ink, pen. Did you mean ink\?"):
        planned(tiny_checkpoint, (), (tmp_path,), x="lora=inc")


def test_any_field_of_a_shot_is_an_axis(tiny_checkpoint: Path) -> None:
    plan = planned(tiny_checkpoint, x="size=16x24,24×16", y="Clip skip=1-2", z="Sampler=euler,DPM++ 2M")
    assert [(shot.width, shot.height) for shot in shots(plan)[:2]] == [(16, 24), (24, 16)]
    assert [shots(plan)[index].clip_skip for index in (0, 2)] == [1, 2]
    assert [shots(plan)[index].sampler for index in (0, 4)] == ["Euler", "DPM++ 2M"]
    assert len(planned(tiny_checkpoint, x="sampler", y="schedule").cells) > 100
    plan = planned(tiny_checkpoint, x="sampler=Euler a,dpm++ 2m karras", y="hires.sampler=UniPC, LMS Karras")
    assert plan.axes[0].labels == ("Euler a", "DPM++ 2M Karras")
    drawn = [(one.sampler, one.schedule, one.hires.sampler, one.hires.schedule)
             for one in shots(plan) if one.hires]  # fmt: skip
    first, second = ("Euler a", "Automatic"), ("DPM++ 2M", "Karras")
    assert drawn == [(*first, "UniPC", ""), (*second, "UniPC", ""),
                     (*first, "LMS", "Karras"), (*second, "LMS", "Karras")]  # fmt: skip
    scaled = planned(tiny_checkpoint, x="hires.scale=1.5,2", y="hires.upscaler=Lanczos")
    assert [(shot.hires.scale, shot.hires.upscaler) for shot in shots(scaled) if shot.hires] == [
        (1.5, "Lanczos"), (2, "Lanczos"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, r"without an axis.*steps.*--x"),
        (
            {"x": "stepz=1"},
            r"'stepz' is no axis; expected .*whole numbers for clip_skip,[a-z_., ]* seed,[^;]*; ",
        ),
        ({"x": "stepz=1"}, r"names for checkpoint,[a-z_., ]* sampler,.*Did you mean steps\?"),
        ({"x": "steps=ten"}, r"steps: 'ten' is no number"),
        ({"x": "steps=0"}, r"steps = '0'.*greater than"),
        ({"x": "seed=-1"}, r"seed = '-1'.*random"),
        ({"x": "steps"}, r"steps has no values; expected whole numbers\. Write steps=VALUE,VALUE"),
        ({"x": "sampler=Eulr a"}, r"'Eulr a' is no sampler.*Did you mean Euler a\?"),
        (
            {"x": "sampler=DPM++ 2M Karras", "y": "schedule=Karras,Exponential"},
            r"'DPM\+\+ 2M Karras' names a schedule where another is set; expected DPM\+\+ 2M",
        ),
        ({"x": "emphasis=Orginal"}, r"Did you mean Original\?"),
        ({"x": "size=512"}, r"'512' is no size; expected 512x768"),
        ({"x": "width=13"}, r"width = '13'.*multiple of 8"),
        ({"x": "steps=1", "z": "Steps=2"}, r"two axes vary steps"),
        ({"x": "size=16x16", "y": "width=16"}, r"two axes vary width \(size and width\)"),
        ({"x": "replace=cat,dog", "y": "s/r=cat,owl"}, r"two axes vary replace 'cat'"),
        ({"x": "replace=dog,owl"}, r"neither prompt holds 'dog'"),
        ({"x": "seed=1-101", "y": "steps=1-100"}, r"10,100 cells; expected at most 10,000"),
        ({"x": "checkpoint=tony"}, r"'tony' is no checkpoint; expected tiny"),
        ({"x": "vae=other"}, r"'other' is no VAE; expected own"),
        ({"x": "embedding"}, r"no embedding is given"),
        ({"x": "style"}, r"style has no values"),
        ({"x": "lora weight=1"}, r"call no LoRA"),
        ({"x": "old editing=perhaps"}, r"'perhaps' is no yes or no"),
        ({"x": "source.resize"}, r"no picture is given"),
    ],
)
def test_what_can_not_be_meant_is_named(tiny_checkpoint: Path, axes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        planned(tiny_checkpoint, **axes)


def test_the_command(lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--width", "16", "--height", "16", "--steps", "1", "--device", "cpu"]
    out, checkpoint = str(tmp_path / "grid"), str(lively_checkpoint)
    main(
        [
            "grid",
            "a cat",
            "--checkpoints",
            checkpoint,
            "--x",
            "seed=1-2",
            "--y",
            "checkpoint",
            "--out",
            out,
            *small,
        ]
    )
    assert capsys.readouterr().out == f"{tmp_path / 'grid' / 'index.html'}\n"
    assert [frame.shot.prompt for frame in read_gallery(tmp_path / "grid")] == ["a cat"] * 2
    main(["grid", "--axes"])
    listed = capsys.readouterr().out
    assert all(f"\n{name}" in f"\n{listed}" for name in ("checkpoint", "replace", "style", "seed", "vae"))
    with pytest.raises(SystemExit) as end:
        main(["grid", "a cat", "--x", "colour=red", "--out", out, *small])
    assert end.value.code == 1 and "'colour' is no axis" in capsys.readouterr().err


def test_names_of_weights(lively_checkpoint: Path, other_checkpoint: Path) -> None:
    more = {"lively.safetensors": lively_checkpoint, "new": other_checkpoint}
    inputs = GridInputs(checkpoint=lively_checkpoint, checkpoints=more, vae=other_checkpoint)
    plan = plan_grid(GridSettings(**SMALL, x="checkpoint", y="vae"), inputs)
    assert [axis.labels for axis in plan.axes[:2]] == [("lively", "new"), ("other", "own")]
    clash = {"lively": other_checkpoint}
    with pytest.raises(SettingsError, match="two checkpoints are called lively"):
        plan_grid(GridSettings(x="checkpoint"), GridInputs(checkpoint=lively_checkpoint, checkpoints=clash))


def test_what_a_grid_takes_is_estimated(lively_checkpoint: Path) -> None:
    inputs = GridInputs(checkpoint=lively_checkpoint)
    one, many = (
        WORK["grid"](GridSettings(**SMALL, x=x, y="seed=1-10"), inputs, Scene())
        for x in ("steps=1", "steps=3,3")
    )
    assert many.sizes == "20 cells, 10 pictures" and one.flops < many.flops < 3 * one.flops
    told = WORK["grid"](GridSettings(x="style"), GridInputs(checkpoint=Path("nowhere")), Scene())
    assert "can't be counted" in told.notes[0]
