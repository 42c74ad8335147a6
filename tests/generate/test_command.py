"""`aid generate` as it is typed: what the starter recommends yields to what the user says."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from aid import starter
from aid.cli import main
from aid.cli.verb_command import verb_values
from aid.core.release import Release
from aid.sd.conversion import Conversion, convert
from aid.sd.picture.infotext import parse_infotext

SMALL = ["--steps", "1", "--width", "16", "--height", "16", "--device", "cpu"]


def drawn(folder: Path, *words: str | Path) -> str:
    """The CFG scale that the picture's own text names."""
    main(["generate", "red hair", "--out", str(folder), *SMALL, *map(str, words)])
    with Image.open(next(folder.glob("*.png"))) as picture:
        return parse_infotext(picture.text["parameters"]).fields["CFG scale"]  # type: ignore[attr-defined]


def test_the_starter_recommends_and_the_user_decides(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("cfg_scale = 5\n")
    recommended = Release(starter.shipped("release")).recommended()["cfg_scale"]
    assert recommended not in (0, 5, 6, 7)
    assert float(drawn(tmp_path / "plain")) == recommended
    assert float(drawn(tmp_path / "set", "--set", "cfg_scale=7")) == 7
    assert float(drawn(tmp_path / "file", "--settings", tmp_path / "mine.toml")) == 5
    assert float(drawn(tmp_path / "zero", "--cfg-scale", "0")) == 0
    both = ("--settings", tmp_path / "mine.toml", "--set", "cfg_scale=6")
    assert float(drawn(tmp_path / "both", *both)) == 6


def test_the_shipped_release_draws_with_its_negative_embedding(tmp_path: Path) -> None:
    named = Release(starter.shipped("release")).catalogue.parameters_of().negative_embedding
    for words, negative in (([], named), (["--negative-prompt", "blurry"], f"{named}, blurry")):
        folder = tmp_path / negative
        main(["generate", "red hair", "--out", str(folder), *SMALL, *words])
        with Image.open(next(folder.glob("*.png"))) as picture:
            text = parse_infotext(picture.text["parameters"])  # type: ignore[attr-defined]
        assert text.negative_prompt == negative
        assert text.fields["TI hashes"].startswith(f"{named}: ")


def test_names_that_the_release_almost_knows_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        ["generate", "by lorelie, red hair", "--negative-prompt", "starterng", "--out", str(tmp_path), *SMALL]
    )
    told = capsys.readouterr().err
    assert "did you mean by lorelei?" in told and "did you mean starterneg?" in told
    main(["generate", "by lorelei, by the sea, silver, impasto, by silvr", "--out", str(tmp_path), *SMALL])
    assert "note:" not in capsys.readouterr().err
    main(["generate", "by lorelei, by wlop", "--out", str(tmp_path), *SMALL])
    assert "note: by wlop is a style of AID's card, not of this model" in capsys.readouterr().err


def test_a_folder_without_vae_draws_with_the_starters(tmp_path: Path) -> None:
    """As with it, though that VAE is narrower than any other."""
    folder, moved = tmp_path / "folder", tmp_path / "vae"
    convert(starter.BASE, folder, Conversion())

    def pixels(name: str, *words: str | Path) -> bytes:
        drawn(tmp_path / name, "--checkpoint", folder, *words)
        with Image.open(next((tmp_path / name).glob("*.png"))) as picture:
            return picture.tobytes()

    whole = pixels("whole")
    (folder / "vae").rename(moved)
    assert pixels("file", "--vae", starter.BASE) == pixels("part", "--vae", moved) == whole


def test_samplers_are_named_in_any_case(tmp_path: Path) -> None:
    main(["generate", "red hair", "--sampler", "dpm++ 2m KARRAS", "--out", str(tmp_path), *SMALL])
    main(
        [
            "generate",
            "red hair",
            "--sampler",
            "DPM++ 2M",
            "--schedule",
            "karras",
            "--out",
            str(tmp_path),
            *SMALL,
        ]
    )
    first, second = sorted(tmp_path.glob("*.png"))
    with Image.open(first) as one, Image.open(second) as other:
        assert one.text["parameters"] == other.text["parameters"]  # type: ignore[attr-defined]
        fields = parse_infotext(one.text["parameters"]).fields  # type: ignore[attr-defined]
        assert one.tobytes() == other.tobytes()
    assert (fields["Sampler"], fields["Schedule type"]) == ("DPM++ 2M", "Karras")


def test_a_random_seed_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = ["--seed", "-1", "--variation-seed", "-1", "--variation-strength", "0.5"]
    for name in ("one", "other"):
        main(["generate", "red hair", "--out", str(tmp_path / name), *random, *SMALL])
    files = [next((tmp_path / name).glob("*.png")) for name in ("one", "other")]
    with Image.open(files[0]) as picture:
        fields = parse_infotext(picture.text["parameters"]).fields  # type: ignore[attr-defined]
    seeds = {int(file.stem.partition("-")[2]) for file in files}
    assert len(seeds) == 2 and int(fields["Seed"]) in seeds and min(seeds) >= 0
    assert 0 <= int(fields["Variation seed"]) != int(fields["Seed"])
    main(["again", str(files[0]), "--out", str(tmp_path / "again"), "--device", "cpu"])
    assert "The same, to the last bit." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--seed", "-1", "--out", str(tmp_path / "gallery"), *SMALL])
    assert "a random seed can't be drawn again" in capsys.readouterr().err


def test_what_is_given_and_not_called_is_told(
    lively_checkpoint: Path,
    lora: Path,
    embedding_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--checkpoint", lively_checkpoint, "--loras", lora, "--embeddings", embedding_folder]
    words = ["--out", tmp_path, *SMALL, *given]
    main(["generate", "red hair", *map(str, words)])
    told = capsys.readouterr().err
    assert f"no prompt calls {lora}; write <lora:soft:1>" in told
    assert f"no prompt names {embedding_folder}; write badv3" in told
    main(["generate", "red hair <lora:soft:1>", "--negative-prompt", "badv3", *map(str, words)])
    assert "no prompt" not in capsys.readouterr().err


def test_styles_that_the_model_has_never_heard_of_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["--out", str(tmp_path / "drawn"), *SMALL]
    named = ["--styles", "by nobody", "--styles", "lorelie", "--styles", "by Micah"]
    main(["generate", "red hair", *named, *drawn])
    told = capsys.readouterr().err
    assert "`by nobody` is no style of this model; `aid styles --checkpoint` lists those" in told
    assert "`lorelie` is no style of this model; did you mean by lorelei?" in told
    assert "icah" not in told
    grid = ["grid", "red hair", "--styles", "nobody", "--x", "steps=1", "--out", str(tmp_path / "grid")]
    main([*grid, *SMALL])
    assert "`nobody` is no style" in capsys.readouterr().err
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"prompt": "a cat", "width": 16, "height": 16, "steps": 1, "style": "nobody"}\n')
    main(["generate", "--shots", str(shots), "--out", str(tmp_path / "listed"), "--device", "cpu"])
    assert "`nobody` is no style" in capsys.readouterr().err


def test_another_checkpoint_has_no_recommendation(lively_checkpoint: Path, tmp_path: Path) -> None:
    assert float(drawn(tmp_path, "--checkpoint", lively_checkpoint)) == 7


def test_defaults_lie_beneath_everything(tmp_path: Path) -> None:
    defaults = {"checkpoint": tmp_path / "base", "cfg_scale": 3.0, "template": True}
    settings, inputs = verb_values("generate", {"cfg_scale": 0.0, "template": False}, defaults)
    assert (settings.cfg_scale, settings.template, inputs.checkpoint) == (0.0, False, tmp_path / "base")
    settings, inputs = verb_values("generate", {"checkpoint": tmp_path / "mine"}, defaults)
    assert (settings.cfg_scale, settings.template, inputs.checkpoint) == (3.0, True, tmp_path / "mine")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """The words of a `generate` that gets as far as drawing and fails with `error`."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("aid.generate.run.load_material", fail)
    return ["generate", "red hair", *SMALL]


def beyond_memory() -> Exception:
    """What torch says on a CPU."""
    import torch

    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("name", ["MemoryError", "torch.OutOfMemoryError", "a CPU's"])
def test_a_full_memory_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    error = {
        "MemoryError": MemoryError,
        "torch.OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory."),
        "a CPU's": beyond_memory,
    }[name]()
    with pytest.raises(SystemExit) as end:
        main([*failing(monkeypatch, error), "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert said.startswith("aid: ") and said.count("\n") == 1
    assert all(setting in said for setting in ("batch_size", "latent_batch", "memory_profile", "precision"))


def test_other_runtime_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main([*failing(monkeypatch, RuntimeError("a mistake of ours")), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--resize", "Crop and resize", "--mask-blur-px", "0"],
         "resize says nothing without --init / mask_blur_px says nothing without --mask"),
        (["--eta", "0.5", "--schedule", "Karras", "--sampler", "UniPC"],
         "eta says nothing to UniPC, which has none / schedule says nothing to UniPC, which has a schedule"),
        (["--quality", "50", "--variation-seed", "3", "--negative-template", "bad, {tags}"],
         "quality says nothing of a PNG / variation_seed says nothing at a variation_strength of 0 / "
         "negative_template says nothing without --template"),
        (["--quality", "50", "--format", "webp", "--eta", "0", "--sampler", "DDIM"], ""),
        (["--eta", "0.5", "--sampler", "Euler", "--set", "hires.sampler=Euler a"], ""),
    ],
)  # fmt: skip
def test_settings_that_change_no_picture_are_told(
    words: list[str], told: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path), *SMALL]
    main(["generate", "red hair", *given, *words])
    said = " / ".join(line for line in capsys.readouterr().err.splitlines() if "nothing" in line)
    assert said.startswith(told) and bool(said) == bool(told)
