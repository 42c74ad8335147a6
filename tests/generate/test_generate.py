"""The verb and the one-off, on a real model of the smallest size."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.interrupting import Interrupting

import aid
from aid import starter
from aid.core.gallery import read_gallery
from aid.core.lineage import lineage_of
from aid.core.shot import Shot
from aid.core.workbench import Silence, Workbench
from aid.errors import FileError, ModelError, SettingsError
from aid.generate.material import load_material
from aid.generate.plan import shots_of_prompt
from aid.generate.run import generate, one_off
from aid.generate.settings import GenerateInputs, GenerateSettings, Plan
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.model.architecture import TINY
from aid.sd.picture.infotext import parse_infotext, shot_of
from aid.sd.picture.text import picture_text

BENCH = Workbench(device="cpu")
FAST = {"steps": 2, "width": 32, "height": 32, "batch_size": 3}


def settings(**changes: object) -> GenerateSettings:
    return GenerateSettings.model_validate({**FAST, "prompt": "red hair", **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_gallery_is_whole_and_says_how_it_was_made(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint, embeddings=(embedding_folder / "badv3.pt",))
    asked = settings(count=4, seed=5, styles=("matcha",), negative_prompt="badv3, (blurry:1.2)", clip_skip=2)
    out = generate(asked, inputs, tmp_path / "gallery", BENCH)
    names = [f"0000{index}-{5 + index}.png" for index in range(4)]
    assert sorted(contents(out)) == sorted([*names, "grid.png", "lineage.json", "shots.jsonl"])
    rows = [json.loads(line) for line in (out / "shots.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == names
    for row in rows:
        with Image.open(out / row["file"]) as picture:
            assert picture.size == (32, 32)
            infotext = parse_infotext(picture.text["parameters"])  # type: ignore[attr-defined]
        drawn = Shot.model_validate(row["shot"])
        assert shot_of(infotext) == drawn.model_copy(update={"style": "", "tags": ()})
        assert infotext.fields["Model"] == "lively"
        assert infotext.fields["Model hash"] == sha256(lively_checkpoint)[:10]
        assert infotext.fields["TI hashes"] == f"badv3: {sha256(embedding_folder / 'badv3.pt')[:12]}"
    assert lineage_of(out / names[0]).node.verb == "generate"
    assert lineage_of(out / names[0]).node.settings["seed"] == 5
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (66, 66)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_odd_in_a_prompt_is_told_once(lively_checkpoint: Path, tmp_path: Path) -> None:
    said = list[str]()

    class Told(Silence):
        def say(self, text: str) -> None:
            said.append(text)

    odd = settings(prompt="a <lora:xl:x> house", negative_prompt="(worst", count=2)
    one_off(odd, GenerateInputs(checkpoint=lively_checkpoint), tmp_path, Workbench("cpu", progress=Told()))
    assert [text.partition(":")[0] for text in said] == ["prompt", "negative prompt"]
    assert "`<lora:xl:x>` is left out" in said[0] and "never closed" in said[1]


def test_embeddings_that_a_prompt_does_not_name_are_not_listed(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint, embeddings=(embedding_folder,))
    plain, named = (
        one_off(settings(negative_prompt=negative), inputs, tmp_path, BENCH)[0] for negative in ("", "BADV3")
    )
    with Image.open(plain) as one, Image.open(named) as other:
        assert "TI hashes" not in one.text["parameters"]  # type: ignore[attr-defined]
        assert 'TI hashes: "badv3: ' in other.text["parameters"]  # type: ignore[attr-defined]
        assert one.tobytes() != other.tobytes()


def test_a_plan_has_a_grid_a_style(lively_checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    asked = settings(plan=Plan(shots_per_style=2, groups={"mood": ("smile", "frown")}), prompt="")
    inputs = GenerateInputs(checkpoint=lively_checkpoint, dataset=dataset_folder)
    out = generate(asked, inputs, tmp_path / "gallery", BENCH)
    grids = sorted(path.name for path in out.glob("grid*"))
    assert grids == ["grid-alpha.png", "grid-beta.png", "grid-gamma-ink.png", "grid.png"]
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (66, 3 * (32 + 14) + 4), "with the styles' names below"
    rows = [json.loads(line)["shot"] for line in (out / "shots.jsonl").read_text().splitlines()]
    assert [row["style"] for row in rows] == ["alpha", "alpha", "beta", "beta", "gamma (ink)", "gamma (ink)"]


@pytest.fixture(scope="module")
def whole(lively_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures, drawn without interruption."""
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    return generate(settings(count=7), inputs, tmp_path_factory.mktemp("whole") / "gallery", BENCH)


@pytest.mark.parametrize("at", [1, 6])
def test_an_interrupted_run_ends_with_the_same_bytes(
    at: int, lively_checkpoint: Path, tmp_path: Path
) -> None:
    asked, inputs = settings(count=7), GenerateInputs(checkpoint=lively_checkpoint)
    whole = generate(asked, inputs, tmp_path / "whole" / "gallery", BENCH)
    out = tmp_path / "broken" / "gallery"
    with pytest.raises(KeyboardInterrupt):
        generate(asked, inputs, out, Workbench("cpu", progress=Interrupting(at)))
    assert not out.exists()
    unfinished = out.with_name(".gallery.building")
    (unfinished / ".00006-6.png.77.part").write_bytes(b"half a picture")
    drawn = {path: path.stat().st_mtime_ns for path in unfinished.glob("0*.png")}
    assert len(drawn) >= at
    generate(asked, inputs, out, BENCH)
    assert contents(out) == contents(whole)
    kept = [path for path, time in drawn.items() if (out / path.name).stat().st_mtime_ns == time]
    assert len(kept) >= at - at % 3


def test_shots_of_one_gallery_draw_another(whole: Path, lively_checkpoint: Path, tmp_path: Path) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint, shots=whole)
    again = generate(GenerateSettings(batch_size=3), inputs, tmp_path / "again", BENCH)
    with Image.open(whole / "00001-1.png") as one, Image.open(again / "00001-1.png") as other:
        assert one.tobytes() == other.tobytes()
    assert (whole / "shots.jsonl").read_bytes() == (again / "shots.jsonl").read_bytes()


def test_pictures_are_drawn_from_a_picture_and_its_mask(lively_checkpoint: Path, tmp_path: Path) -> None:
    scene, mask = tmp_path / "scene.png", tmp_path / "mask.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(scene)
    Image.new("L", (32, 32), 255).save(mask)
    inputs = GenerateInputs(checkpoint=lively_checkpoint, init=scene, mask=mask)
    asked = settings(denoising_strength=0.6, masked_content="latent noise", count=2, steps=4)
    out = generate(asked, inputs, tmp_path / "gallery", BENCH)
    source = json.loads((out / "shots.jsonl").read_text().splitlines()[0])["shot"]["source"]
    assert (source["picture"], source["sha256"]) == ("scene.png", sha256(scene))
    assert (source["mask"], source["mask_sha256"]) == ("mask.png", sha256(mask))
    again = GenerateInputs(checkpoint=lively_checkpoint, init=scene, mask=mask, shots=out)
    redrawn = generate(settings(), again, tmp_path / "again", BENCH)
    assert (redrawn / "00001-1.png").read_bytes() != (out / "00001-1.png").read_bytes()  # lineages differ
    assert same_pixels(redrawn / "00001-1.png", out / "00001-1.png")
    with pytest.raises(SettingsError, match="a mask is given without a picture"):
        one_off(asked, GenerateInputs(checkpoint=lively_checkpoint, mask=mask), tmp_path / "x", BENCH)
    with pytest.raises(SettingsError, match="a picture to draw from and a hires pass"):
        one_off(settings(hires={}), inputs, tmp_path / "x", BENCH)


@pytest.mark.parametrize(("format", "suffix"), [("jpeg", ".jpg"), ("webp", ".webp")])
def test_other_formats(format: str, suffix: str, lively_checkpoint: Path, tmp_path: Path) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    asked = settings(format=format, quality=95, count=2)
    out = generate(asked, inputs, tmp_path / "gallery", BENCH)
    frames = read_gallery(out)
    assert [frame.file for frame in frames] == [f"00000-0{suffix}", f"00001-1{suffix}"]
    assert shot_of(parse_infotext(picture_text(out / frames[1].file).parameters)) == frames[1].shot
    files = [one_off(asked, inputs, tmp_path / "out", BENCH) for _ in range(2)]
    assert files[1][0].name == f"00002-0{suffix}"


def test_variations_share_a_seed(lively_checkpoint: Path, tmp_path: Path) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    asked = settings(variation_strength=0.2, variation_seed=7, count=3, seed=5)
    files = one_off(asked, inputs, tmp_path, BENCH)
    fields = [parse_infotext(picture_text(file).parameters).fields for file in files]
    told = [(one["Seed"], one["Variation seed"], one["Variation seed strength"]) for one in fields]
    assert told == [("5", "7", "0.2"), ("5", "8", "0.2"), ("5", "9", "0.2")]
    assert len({file.read_bytes() for file in files}) == 3


def test_wildcards_are_lines_of_files_by_the_seed(lively_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "colour.txt").write_text("red\nblue\n")
    inputs = GenerateInputs(checkpoint=lively_checkpoint, wildcards=tmp_path / "cards")
    files = one_off(settings(prompt="__colour__ hair", count=8, batch_size=1), inputs, tmp_path / "a", BENCH)
    plain = GenerateInputs(checkpoint=lively_checkpoint)
    for colour in ("red", "blue"):
        asked = settings(prompt=f"{colour} hair", count=8, batch_size=1)
        own = one_off(asked, plain, tmp_path / colour, BENCH)
        assert 0 < sum(same_pixels(one, other) for one, other in zip(files, own, strict=True)) < 8
    assert parse_infotext(picture_text(files[0]).parameters).prompt == "__colour__ hair"


def test_another_vae_is_used_and_named(
    lively_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain = one_off(settings(), GenerateInputs(checkpoint=lively_checkpoint), tmp_path, BENCH)[0]
    swapped = one_off(
        settings(), GenerateInputs(checkpoint=lively_checkpoint, vae=tiny_checkpoint), tmp_path, BENCH
    )[0]
    with Image.open(plain) as one, Image.open(swapped) as other:
        assert one.tobytes() != other.tobytes()
        fields = parse_infotext(other.text["parameters"]).fields  # type: ignore[attr-defined]
    assert (fields["VAE"], fields["VAE hash"]) == (tiny_checkpoint.name, sha256(tiny_checkpoint)[:10])


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", "float32"), ("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")],
)
def test_precision_is_the_weights_while_drawing(
    precision: str, dtype: str, lively_checkpoint: Path, tmp_path: Path
) -> None:
    from aid.generate.material import load_material

    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    material = load_material(settings(precision=precision), inputs, BENCH)
    assert str(material.model.dtype) == f"torch.{dtype}"
    file = one_off(settings(precision=precision), inputs, tmp_path, BENCH)[0]
    with Image.open(file) as picture:
        assert picture.size == (32, 32)


def test_the_function_draws_what_the_command_draws(tmp_path: Path) -> None:
    """Of the starter: between layouts of its weights its pixels would differ by a level."""
    inputs = GenerateInputs(checkpoint=starter.BASE)
    told = settings(prompt="by lorelei, smile", count=4, steps=4, width=64, height=64)
    shots = shots_of_prompt(told, [], 64)
    files = one_off(told, inputs, tmp_path, BENCH)
    for file, picture in zip(files, aid.draw(aid.load_checkpoint(starter.BASE), shots), strict=True):
        with Image.open(file) as one:
            assert one.tobytes() == picture.tobytes()


def test_one_off_pictures_take_free_numbers(lively_checkpoint: Path, tmp_path: Path) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    (tmp_path / "00041-9.png").write_bytes(b"somebody's own")
    (tmp_path / "note-to-self.png").write_bytes(b"x")
    first = one_off(settings(count=2), inputs, tmp_path, BENCH)
    second = one_off(settings(), inputs, tmp_path, BENCH)
    assert [path.name for path in first + second] == ["00042-0.png", "00043-1.png", "00044-0.png"]
    assert (tmp_path / "00041-9.png").read_bytes() == b"somebody's own"
    assert same_pixels(first[0], second[0])
    assert lineage_of(first[0]).node.verb == "generate"


def same_pixels(one: Path, other: Path) -> bool:
    with Image.open(one) as first, Image.open(other) as second:
        return first.tobytes() == second.tobytes()


def test_embeddings_are_found_in_artifacts_and_releases(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    shutil.copytree(embedding_folder, release / "embeddings")
    shutil.copy(lively_checkpoint, release / "model.safetensors")
    inputs = GenerateInputs(checkpoint=release, embeddings=(release,))
    (file,) = one_off(settings(negative_prompt="badv3"), inputs, tmp_path / "out", BENCH)
    with Image.open(file) as picture:
        fields = parse_infotext(picture.text["parameters"]).fields  # type: ignore[attr-defined]
    assert fields["TI hashes"].startswith("badv3: ")
    assert fields["Model"] == "release"


def test_an_embeddings_name_counts_in_the_lineage(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "other.pt"
    shutil.copy(embedding_folder / "badv3.pt", renamed)
    keys = {
        tuple(GenerateInputs(checkpoint=lively_checkpoint, embeddings=(path,)).paths())
        for path in (embedding_folder / "badv3.pt", renamed)
    }
    assert keys == {("checkpoint", "embeddings.badv3"), ("checkpoint", "embeddings.other")}


def test_a_copy_of_an_embedding_may_lie_beside_it(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(embedding_folder / "badv3.pt", tmp_path)
    for given in ((embedding_folder,), (embedding_folder, tmp_path / "badv3.pt")):
        inputs = GenerateInputs(checkpoint=lively_checkpoint, embeddings=given)
        one_off(settings(negative_prompt="badv3"), inputs, tmp_path / "out", BENCH)
    (text,) = {picture_text(file).parameters for file in (tmp_path / "out").glob("*.png")}
    assert "badv3: " in text


def test_refusals_name_what_is_wrong(
    lively_checkpoint: Path, embedding_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    def draw(asked: GenerateSettings, **inputs: object) -> None:
        given = GenerateInputs.model_validate({"checkpoint": lively_checkpoint, **inputs})
        one_off(asked, given, tmp_path / "out", BENCH)

    save_embedding(Embedding("BadV3", torch.ones((1, TINY.text_width))), tmp_path, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="'Eular' is not a sampler"):
        draw(settings(sampler="Eular"))
    with pytest.raises(SettingsError, match="a plan is given without a dataset"):
        draw(settings(plan=Plan()))
    with pytest.raises(SettingsError, match="both a plan and a list"):
        draw(settings(plan=Plan()), shots=tmp_path, dataset=dataset_folder)
    with pytest.raises(SettingsError, match=r"^cfg_sigmas are the lower and the higher end"):
        draw(settings(cfg_sigmas=(5, 1)))
    with pytest.raises(SettingsError, match="too long for a JPEG"):  # before it draws for an hour
        draw(settings(prompt="cat, " * 10_000, format="jpeg", steps=1000, width=1024, height=1024))
    with pytest.raises(SettingsError, match="answer to the same name"):
        draw(settings(), embeddings=(embedding_folder, tmp_path / "BadV3.pt"))
    with pytest.raises(FileError, match="empty holds no embedding"):
        draw(settings(), embeddings=(tmp_path / "empty",))
    with pytest.raises(FileError, match=r"none\.pt does not exist"):
        draw(settings(), embeddings=(tmp_path / "none.pt",))
    with pytest.raises(ModelError, match="holds no VAE"):
        draw(settings(), vae=embedding_folder / "badv3.safetensors")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_settings_and_their_help_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, aid.generate.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_prompt_names_is_hashed_once(
    lively_checkpoint: Path, embedding_folder: Path, lora: Path, tmp_path: Path
) -> None:
    named, called = tmp_path / "badv3.safetensors", tmp_path / "soft.safetensors"
    shutil.copy(embedding_folder / "badv3.safetensors", named)
    shutil.copy(lora, called)
    inputs = GenerateInputs(checkpoint=lively_checkpoint, embeddings=(named,), loras=(called,))
    material = load_material(settings(), inputs, BENCH)
    shot = Shot(prompt="red hair <lora:soft:1>", negative_prompt="badv3")
    with material.texts() as texts:
        first = material.infotext(shot, texts)
        named.unlink()
        called.unlink()
        assert material.infotext(shot, texts) == first
    assert "Lora hashes" in first and "TI hashes" in first


def test_a_file_is_no_folder_to_draw_into(lively_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.png").write_bytes(b"mine")
    with pytest.raises(FileError, match=r"plain\.png is a file; expected a folder"):
        one_off(settings(), GenerateInputs(checkpoint=lively_checkpoint), tmp_path / "plain.png", BENCH)
    assert (tmp_path / "plain.png").read_bytes() == b"mine"
