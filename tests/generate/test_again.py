"""`aid again`: from the picture alone, with weights found by their hashes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.cli import main
from aid.core.workbench import Workbench
from aid.errors import FileError, PictureError, SettingsError
from aid.generate.again import again, read_infotext
from aid.generate.grid.run import grid
from aid.generate.grid.settings import GridInputs, GridSettings
from aid.generate.run import generate, one_off
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.conversion import Conversion, convert
from aid.sd.file.hashes import hash_file
from aid.sd.inspection import inspect
from aid.sd.model.checkpoint import load_checkpoint, save_checkpoint
from aid.sd.picture.infotext import png_bytes
from aid.sd.picture.text import picture_text

BENCH = Workbench(device="cpu")
FAST = {"steps": 2, "width": 32, "height": 32}
EDITED = "a [cat:dog:1.0]"


def settings(**changes: object) -> GenerateSettings:
    return GenerateSettings.model_validate({**FAST, "prompt": "red hair", **changes})


@pytest.fixture(scope="session")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture to draw from, and a mask of its right half."""
    folder = tmp_path_factory.mktemp("drawing")
    Image.linear_gradient("L").resize((40, 32)).convert("RGB").save(folder / "drawing.png")
    mask = Image.new("L", (40, 32))
    mask.paste(255, (20, 0, 40, 32))
    mask.save(folder / "mask.png")
    return folder / "drawing.png", folder / "mask.png"


def places(*paths: Path) -> list[Path]:
    return list(paths)


def test_a_gallerys_picture_comes_out_the_same_to_the_bit(
    lively_checkpoint: Path, embedding_folder: Path, lora: Path, tmp_path: Path
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint, embeddings=(embedding_folder,), loras=(lora,))
    asked = settings(
        prompt="{red|blue} hair <lora:soft:0.7>", negative_prompt="badv3", count=5, seed=3, batch_size=3,
        sampler="DPM++ 2M SDE", cfg_rescale=0.5,
    )  # fmt: skip
    gallery = generate(asked, inputs, tmp_path / "gallery", BENCH)
    everything = places(lively_checkpoint.parent, embedding_folder, lora.parent)
    for name in ("00001-4.png", "00004-7.png"):
        file = again(gallery / name, everything, tmp_path / "again", BENCH)
        assert file.read_bytes() == (gallery / name).read_bytes()
    moved = tmp_path / "moved.png"  # away from its gallery, its own settings tell what it was drawn with
    shutil.copy(gallery / "00001-4.png", moved)
    file = again(moved, everything, tmp_path / "again", BENCH)
    assert file.name == "00002-4.png"
    assert file.read_bytes() == moved.read_bytes()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_carry_their_lineage_too(
    format: str, lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    (first,) = one_off(settings(format=format, quality=80, cfg_rescale=0.5), inputs, tmp_path / "out", BENCH)
    file = again(first, places(lively_checkpoint), tmp_path / "again", BENCH)
    assert file.name == first.name and file.read_bytes() == first.read_bytes()
    for command in ("lineage", "inspect"):
        main([command, str(first)])
        assert "cfg_rescale=0.5" in capsys.readouterr().out


def test_a_grids_picture_is_drawn_as_the_grid_was_told(lively_checkpoint: Path, tmp_path: Path) -> None:
    told = GridSettings.model_validate(
        {
            **FAST,
            "prompt": "red hair",
            "x": "seed=1-2",
            "y": "cfg_scale=3,7",
            "format": "webp",
            "batch_size": 1,
        }
    )
    out = grid(told, GridInputs(checkpoint=lively_checkpoint), tmp_path / "grid", BENCH)
    file = again(out / "00003-2.webp", places(lively_checkpoint), tmp_path / "again", BENCH)
    assert file.read_bytes() == (out / "00003-2.webp").read_bytes()


def test_pictures_from_pictures_too(
    lively_checkpoint: Path, drawing: tuple[Path, Path], tmp_path: Path
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint, init=drawing[0], mask=drawing[1])
    (first,) = one_off(settings(resize="Crop and resize", steps=4), inputs, tmp_path / "out", BENCH)
    file = again(first, places(lively_checkpoint, *drawing), tmp_path / "again", BENCH)
    assert file.read_bytes() == first.read_bytes()
    with pytest.raises(FileError, match=r"missing: picture drawing\.png \([0-9a-f]{12}\); picture mask\.png"):
        again(first, places(lively_checkpoint), tmp_path / "again", BENCH)


def test_hires_pictures_too(lively_checkpoint: Path, tmp_path: Path) -> None:
    asked = settings(hires={"scale": 1.5, "steps": 2, "upscaler": "Lanczos", "prompt": "blue hair"})
    (first,) = one_off(asked, GenerateInputs(checkpoint=lively_checkpoint), tmp_path / "out", BENCH)
    with Image.open(first) as picture:
        assert picture.size == (48, 48)
    file = again(first, places(lively_checkpoint), tmp_path / "again", BENCH)
    assert file.read_bytes() == first.read_bytes()


def test_renamed_files_are_found_by_their_hashes(
    lively_checkpoint: Path, embedding_folder: Path, lora: Path, tmp_path: Path
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint, embeddings=(embedding_folder,), loras=(lora,))
    asked = settings(prompt="red hair <lora:soft:1>", negative_prompt="badv3")
    (first,) = one_off(asked, inputs, tmp_path / "out", BENCH)
    for number, file in enumerate([lively_checkpoint, lora, embedding_folder / "badv3.safetensors"]):
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "mine" / f"{number}.safetensors")
    file = again(first, places(tmp_path / "mine"), tmp_path / "again", BENCH)
    with Image.open(first) as one, Image.open(file) as other:
        assert one.tobytes() == other.tobytes()


def test_a_model_and_a_vae_in_folders_are_found_by_the_hash_of_their_files(
    lively_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, other = tmp_path / "models" / "mine", tmp_path / "models" / "other"
    for file, made in ((lively_checkpoint, folder), (tiny_checkpoint, other)):
        convert(file, made, Conversion())
    for vae in (None, other / "vae", other):
        inputs = GenerateInputs(checkpoint=folder, vae=vae)
        (first,) = one_off(settings(), inputs, tmp_path / "out", BENCH)
        (tmp_path / "moved").mkdir(exist_ok=True)
        moved = shutil.copytree(tmp_path / "models", tmp_path / "moved" / first.stem)
        shutil.copy(first, moved / "mine")  # a picture beside the weights is none of them
        (moved / "mine").rename(moved / "renamed")
        file = again(first, places(moved), tmp_path / "again", BENCH)
        with Image.open(file) as one, Image.open(first) as drawn:
            assert one.tobytes() == drawn.tobytes()
        assert f"Model hash: {inspect(folder).hashes['of its parts'][:10]}, Model: mine" in (
            picture_text(first).parameters
        )
    with pytest.raises(FileError, match=r"missing: model mine \([0-9a-f]{10}\); VAE other \([0-9a-f]{10}\)"):
        again(first, places(tiny_checkpoint, folder / "unet"), tmp_path / "again", BENCH)


def test_a_grid_of_loras_needs_only_the_pictures_own(
    lively_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    for name in ("soft", "other"):
        (tmp_path / "loras").mkdir(exist_ok=True)
        shutil.copy(lora, tmp_path / "loras" / f"{name}.safetensors")
    inputs = GridInputs(checkpoint=lively_checkpoint, loras=(tmp_path / "loras",))
    told = GridSettings.model_validate({**FAST, "prompt": "hair", "x": "lora=soft,other,off"})
    out = grid(told, inputs, tmp_path / "out", BENCH)
    for number, needed in ((0, tmp_path / "loras/soft.safetensors"), (2, lively_checkpoint)):
        (first,) = out.glob(f"{number:05}-*.png")
        file = again(first, places(lively_checkpoint, needed), tmp_path / "again", BENCH)
        with Image.open(file) as one, Image.open(first) as drawn:
            assert one.tobytes() == drawn.tobytes()


def test_a_text_without_hashes_is_drawn_with_what_is_named(
    lively_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    (first,) = one_off(settings(), GenerateInputs(checkpoint=lively_checkpoint), tmp_path / "out", BENCH)
    text = picture_text(first).parameters
    bare = text.replace(text[text.index("Model hash:") : text.index("Model:")], "")
    short = re.sub("Model hash: .{10}", "Model hash: d", text)
    for number, told in enumerate((bare, short)):
        picture = tmp_path / f"{number}.png"
        picture.write_bytes(png_bytes(Image.open(first), told))
        file = again(picture, places(lively_checkpoint, lora), tmp_path / "again", BENCH)
        with Image.open(file) as one, Image.open(first) as drawn:
            assert one.tobytes() == drawn.tobytes()
        with pytest.raises(FileError, match="missing: model"):
            again(picture, places(lora), tmp_path / "again", BENCH)


def test_all_that_is_missing_is_named_with_its_hash(
    lively_checkpoint: Path, tiny_checkpoint: Path, embedding_folder: Path, lora: Path, tmp_path: Path
) -> None:
    inputs = GenerateInputs(
        checkpoint=lively_checkpoint, embeddings=(embedding_folder,), loras=(lora,), vae=tiny_checkpoint
    )
    asked = settings(prompt="red hair <lora:soft:1>", negative_prompt="badv3")
    (first,) = one_off(asked, inputs, tmp_path / "out", BENCH)
    with pytest.raises(FileError) as error:
        again(first, places(embedding_folder), tmp_path / "again", BENCH)
    for name in ("model lively (", "VAE tiny.safetensors (", "LoRA soft ("):
        assert name in error.value.found
    assert "badv3" not in error.value.found
    assert not (tmp_path / "again").exists()


def test_pictures_of_others(lively_checkpoint: Path, tmp_path: Path) -> None:
    picture = theirs(lively_checkpoint, tmp_path, "Version: v1.8.0", "DPM++ 2M Karras")
    file = again(picture, places(lively_checkpoint), tmp_path / "again", BENCH)
    with Image.open(file) as drawn:
        told = drawn.text["parameters"]  # type: ignore[attr-defined]
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in told
    assert "RNG: NV" in told  # A1111's GPU noise, computed on the CPU


def test_what_others_name_by_hashes_in_json_is_drawn_with(
    lively_checkpoint: Path, tiny_checkpoint: Path, embedding_folder: Path, lora: Path, tmp_path: Path
) -> None:
    """Sites know a LoRA by its tensors' hash, other tools by its file's."""
    named = embedding_folder / "badv3.safetensors"
    shas = {kind: hash_file(path) for kind, path in (
        ("model", lively_checkpoint), ("vae", tiny_checkpoint), ("lora:soft", lora), ("embed:badv3", named)
    )}  # fmt: skip
    found = places(lively_checkpoint, tiny_checkpoint, named, lora)
    inputs = GenerateInputs(
        checkpoint=lively_checkpoint, vae=tiny_checkpoint, embeddings=(named,), loras=(lora,)
    )
    asked = settings(prompt="red hair <lora:soft:1>", negative_prompt="badv3", seed=5)
    (mine,) = one_off(asked, inputs, tmp_path / "out", BENCH)
    for lora_sha in (shas["lora:soft"].autov2, shas["lora:soft"].autov3):
        told = {kind: sha.autov2 for kind, sha in shas.items()} | {"lora:soft": lora_sha}
        text = (
            "red hair <lora:soft:1>\nNegative prompt: badv3\nSteps: 2, Sampler: Euler a, CFG scale: 7, "
            f"Seed: 5, Size: 32x32, RNG: CPU, Hashes: {json.dumps(told)}, Version: ComfyUI"
        )
        (tmp_path / "theirs.png").write_bytes(png_bytes(Image.new("RGB", (32, 32)), text))
        file = again(tmp_path / "theirs.png", found, tmp_path / "again", BENCH)
        with Image.open(file) as one, Image.open(mine) as other:
            assert one.tobytes() == other.tobytes()
    with pytest.raises(FileError) as error:
        again(tmp_path / "theirs.png", places(lively_checkpoint), tmp_path / "again", BENCH)
    for kind, sha in told.items():
        assert (sha in error.value.found) is (kind != "model")


def test_embeddings_are_found_by_their_names_where_a_text_lists_none(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    found = places(lively_checkpoint, embedding_folder)
    for version, where, used in (
        ("1.4.1", found, True),
        ("1.4.1", found[:1], False),
        ("1.8.0", found, False),
    ):
        picture = theirs(lively_checkpoint, tmp_path, f"Version: v{version}", negative="dog, badv3")
        file = again(picture, where, tmp_path / "again", BENCH)
        assert ("TI hashes" in picture_text(file).parameters) is used


def test_a_file_called_like_a_word_is_not_drawn_with(
    lively_checkpoint: Path, embedding_folder: Path, tmp_path: Path
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    (first,) = one_off(settings(prompt="badv3 hair"), inputs, tmp_path / "out", BENCH)
    file = again(first, places(lively_checkpoint, embedding_folder), tmp_path / "again", BENCH)
    assert file.read_bytes() == first.read_bytes()


def theirs(
    checkpoint: Path, folder: Path, fields: str, sampler: str = "Euler a", negative: str = "dog"
) -> Path:
    """A picture as A1111 leaves it behind. `[cat:dog:1.0]` never becomes a dog, and after one step by the old
    rule."""
    import hashlib

    sha = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:10]
    text = (
        f"{EDITED}\nNegative prompt: {negative}\n"
        f"Steps: 4, Sampler: {sampler}, CFG scale: 7, Seed: 5, Size: 32x32, "
        f"Model hash: {sha}, Model: anything, {fields}"
    )
    path = folder / "theirs.png"
    path.write_bytes(png_bytes(Image.new("RGB", (32, 32)), text))
    return path


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ("RNG: CPU, Version: v1.10.1", {}),
        ("Variation seed: 9, Variation seed strength: 0.3, RNG: CPU, Version: v1.10.1",
         {"variation_seed": 9, "variation_strength": 0.3}),
        ("Clip skip: 2, ENSD: 31337, RNG: NV, Version: v1.10.1",
         {"clip_skip": 2, "seed_delta": 31337, "noise_source": "NV"}),
        ("Version: v1.5.1", {"noise_source": "NV", "old_editing": True, "downcast_alphas": True}),
        ("Version: v1.6.0", {"noise_source": "NV", "downcast_alphas": True}),
        ("Eta: 0.5, RNG: CPU", {"eta": 0.5}),
    ],
)  # fmt: skip
def test_what_a1111_did_is_done_again(
    fields: str, meant: dict[str, object], lively_checkpoint: Path, tmp_path: Path
) -> None:
    file = again(
        theirs(lively_checkpoint, tmp_path, fields), places(lively_checkpoint), tmp_path / "a", BENCH
    )
    asked = settings(prompt=EDITED, negative_prompt="dog", steps=4, seed=5, **meant)
    (plain,) = one_off(asked, GenerateInputs(checkpoint=lively_checkpoint), tmp_path / "out", BENCH)
    with Image.open(file) as one, Image.open(plain) as other:
        assert one.tobytes() == other.tobytes()
    usual = settings(prompt=EDITED, negative_prompt="dog", steps=4, seed=5)
    (usually,) = one_off(usual, GenerateInputs(checkpoint=lively_checkpoint), tmp_path / "out", BENCH)
    with Image.open(usually) as picture, Image.open(plain) as other:
        assert (picture.tobytes() == other.tobytes()) == (not meant)


def test_a1111s_noise_schedule_counts(
    lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_checkpoint(lively_checkpoint)
    model.architecture = model.architecture.model_copy(update={"zero_terminal_snr": True})
    marked = tmp_path / "marked.safetensors"
    save_checkpoint(model, marked, {}, torch.float32)
    said = "RNG: CPU, Noise Schedule: {}, Version: v1.10.1"
    picture = theirs(lively_checkpoint, tmp_path, said.format("Zero Terminal SNR"))
    file = again(picture, places(lively_checkpoint), tmp_path / "a", BENCH)
    asked = settings(prompt=EDITED, negative_prompt="dog", steps=4, seed=5)
    (zero,) = one_off(asked, GenerateInputs(checkpoint=marked), tmp_path / "out", BENCH)
    (plain,) = one_off(asked, GenerateInputs(checkpoint=lively_checkpoint), tmp_path / "out", BENCH)
    shown = [Image.open(path).tobytes() for path in (file, zero, plain)]
    assert shown[0] == shown[1] != shown[2]
    for path, told in ((file, True), (zero, True), (plain, False)):
        assert read_infotext(path).weights.zero_terminal_snr == told
    once_more = again(file, places(lively_checkpoint), tmp_path / "b", BENCH)
    assert Image.open(once_more).tobytes() == shown[0]
    words = ["--from", str(marked), "--out", str(tmp_path / "new"), "--device", "cpu"]
    main(["again", str(theirs(marked, tmp_path, said.format("Default"))), *words])
    assert "its text also says" not in capsys.readouterr().err


def test_what_cannot_be_drawn_with_is_said(
    lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = theirs(lively_checkpoint, tmp_path, "Tiling: True, RNG: CPU, Token merging ratio: 0.5")
    words = ["--from", str(lively_checkpoint), "--out", str(tmp_path / "new"), "--device", "cpu"]
    main(["again", str(picture), *words])
    said = " ".join(capsys.readouterr().err.split())
    assert "its text also says Tiling: True, Token merging ratio: 0.5, which AID draws without" in said
    source = theirs(lively_checkpoint, tmp_path, "Denoising strength: 0.4")
    with pytest.raises(
        FileError, match="missing: picture that it was made from, which its text doesn't name"
    ):
        again(source, places(lively_checkpoint), tmp_path / "again", BENCH)


def test_pictures_that_tell_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    with pytest.raises(PictureError, match=r"bare\.png carries no text"):
        again(tmp_path / "bare.png", [], tmp_path, BENCH)
    text = PngInfo()
    text.add_text("invokeai_metadata", '{"positive_prompt": "a cat"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png", pnginfo=text)
    with pytest.raises(PictureError, match=r"as another tool does \(invokeai_metadata\)"):
        again(tmp_path / "bare.png", [], tmp_path, BENCH)
    for place, message in (("nowhere.png", "does not exist"), (".", "is a folder")):
        with pytest.raises(PictureError, match=message):
            again(tmp_path / place, [], tmp_path, BENCH)
    text = "a cat\nSteps: 2, Sampler: Euler a, Size: 32x32, Hires upscaler: R-ESRGAN 4x+, Model: x"
    (tmp_path / "theirs.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), text))
    with pytest.raises(SettingsError, match=r"the picture's text says hires\.upscaler = 'R-ESRGAN 4x"):
        again(tmp_path / "theirs.png", [], tmp_path, BENCH)


def test_a_lora_in_the_negative_prompt_is_text_and_asked_for_by_nobody(
    lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(lively_checkpoint), "--steps", "2", "--width", "32", "--height", "32"]
    told = ["--negative-prompt", "bad <lora:x:1>", "--out", str(tmp_path / "old"), "--device", "cpu"]
    main(["generate", "hair", *words, *told])
    said = " ".join(capsys.readouterr().err.split())
    assert "negative prompt: `<lora:x:1>` is read as words, as negative prompts call no LoRA" in said
    (first,) = (tmp_path / "old").glob("*.png")
    (place,) = places(lively_checkpoint)
    file = again(first, [place], tmp_path / "new", BENCH)
    assert file.read_bytes() == first.read_bytes()


def novelais(path: Path, **changes: object) -> Path:
    caption = {"base_caption": "{{1girl}}, red hair", "char_captions": [{"char_caption": "girl, hat"}]}
    comment = {
        "prompt": "{{1girl}}, red hair", "steps": 2, "height": 32, "width": 32, "scale": 5.0, "seed": 7,
        "uncond_scale": 0.0, "noise_schedule": "karras", "sampler": "k_dpmpp_2s_ancestral", "strength": 0.69,
        "noise": 0.667, "uc": "lowres, {bad}\ntext", "v4_prompt": {"caption": caption}, **changes,
    }  # fmt: skip
    text = PngInfo()
    for name, value in {
        "Title": "AI generated image", "Description": "{{1girl}}, red hair", "Software": "NovelAI",
        "Source": "Stable Diffusion 1D44365E", "Comment": json.dumps(comment),
    }.items():  # fmt: skip
        text.add_text(name, value)
    Image.new("RGB", (32, 48)).save(path, pnginfo=text)
    return path


def test_novelais_pictures_are_read_as_a1111_reads_them(lively_checkpoint: Path, tmp_path: Path) -> None:
    picture = novelais(tmp_path / "theirs.png")
    told = (
        "{{1girl}}, red hair\nNegative prompt: lowres, {bad}\ntext\nSteps: 2, Sampler: DPM++ 2S a, "
        "CFG scale: 5.0, Seed: 7, Size: 32x48, Clip skip: 2, ENSD: 31337"
    )
    assert inspect(picture).about["parameters"] == told
    drawn = picture_text(again(picture, places(lively_checkpoint), tmp_path / "again", BENCH)).parameters
    assert drawn.startswith(told.partition("Steps")[0])
    assert "Seed: 7, Size: 32x48" in drawn and "Clip skip: 2, ENSD: 31337" in drawn
    other = novelais(tmp_path / "other.png", sampler="nai_smea")
    assert "Sampler: Euler a," in picture_text(other).parameters
    for wrong in ({"steps": "2"}, {"sampler": [1]}, {"uc": ["bad"]}):
        with pytest.raises(PictureError, match=r"as another tool does \(Comment\)"):
            again(novelais(picture, **wrong), [], tmp_path, BENCH)


def test_half_a_letter_in_novelais_text_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(novelais(tmp_path / "theirs.png", uc="bad \ud800"))])
    assert "Negative prompt: bad ?\n" in capsys.readouterr().out


def test_another_tools_json_is_no_prompt(lively_checkpoint: Path, tmp_path: Path) -> None:
    """SwarmUI's, under the key that A1111 uses."""
    text = '{"sui_image_params": {"prompt": "a cat", "seed": 1, "steps": 20}}'
    (tmp_path / "theirs.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), text))
    with pytest.raises(PictureError, match="doesn't tell its steps, seed and size as A1111 does"):
        again(tmp_path / "theirs.png", [lively_checkpoint], tmp_path, BENCH)


def test_the_command_says_how_alike_they_are(
    lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    (first,) = one_off(settings(), inputs, tmp_path / "out", BENCH)
    words = ["--from", str(lively_checkpoint.parent), "--out", str(tmp_path / "new"), "--device", "cpu"]
    main(["again", str(first), *words])
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "new" / "00000-0.png")
    assert "The same, to the last bit." in said.err


def test_a_picture_that_cannot_be_drawn_stops_no_other(
    lively_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = GenerateInputs(checkpoint=lively_checkpoint)
    (first,) = one_off(settings(), inputs, tmp_path / "out", BENCH)
    bare, gone, odd = (tmp_path / f"{name}.png" for name in ("bare", "gone", "odd"))
    Image.new("RGB", (8, 8)).save(bare)
    text = f"a\nSteps: 2, Seed: 1, Sampler: Euler, Size: {'9' * 400}x8, First pass size: 0x0"
    odd.write_bytes(png_bytes(Image.new("RGB", (8, 8)), text))
    words = ["--from", str(lively_checkpoint.parent), "--out", str(tmp_path / "new"), "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main(["again", str(bare), str(odd), str(first), str(gone), *words])
    said = capsys.readouterr()
    assert left.value.code == 1 and said.out.strip() == str(tmp_path / "new" / "00000-0.png")
    for told in (f"{bare} carries no text", "The same, to the last bit.",
                 f"{gone} does not exist", f"{odd}: the picture's text says a size of 999",
                 "aid: 3 of 4 pictures couldn't be drawn again; expected pictures whose texts"):  # fmt: skip
        assert told in said.err
