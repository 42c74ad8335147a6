"""prepare as its users run it."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_latent import Counting
from tests.interrupting import Interrupting

from aid.core.artifact import SCRATCH
from aid.core.dataset import Dataset
from aid.core.files import sha256_file
from aid.core.workbench import Silence, Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import FileError

SMALL = PrepareSettings(resolution_px=64, held_minimum=1)


@pytest.fixture
def folder(tmp_path: Path, pictures: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "in"))


def run(folder: Path, out: Path, settings: PrepareSettings = SMALL, **inputs: Any) -> Dataset:
    return Dataset(prepare(settings, PrepareInputs(pictures={"in": folder}, **inputs), out))


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_dataset(folder: Path, tmp_path: Path) -> None:
    dataset = run(folder, tmp_path / "out")
    assert dataset.styles() == ["alpha", "beta"] and dataset.sizes() == [(64, 64)]
    assert [record.row for record in dataset.records] == list(range(16))
    for record in dataset.records:
        original = tmp_path / record.source
        assert record.sha256 == sha256_file(original)
        assert record.file == f"pictures/{record.style}/{original.stem}-{record.sha256[:8]}.webp"
        with Image.open(original) as before, Image.open(dataset.folder / record.file) as after:
            assert after.format == "WEBP" and np.array_equal(np.asarray(before), np.asarray(after))
        assert (record.licence, record.credit) == ("CC0-1.0", "a test")
    assert dataset.records[0].caption == "by alpha, red hair, smile"
    assert dataset.report["tags"] == {"blue hair": 8, "frown": 8, "red hair": 8, "smile": 8}
    assert dataset.report["train"] + dataset.report["held"] == 16
    assert all(row["held"] >= 1 for row in dataset.report["styles"].values())
    assert dataset.report["licences"] == {"CC0-1.0": 16}
    assert not list(dataset.folder.glob("latents-*"))


def test_two_runs_write_the_same_bytes(folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    run(folder, tmp_path / "one", vae=tiny_checkpoint)
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    prepare(
        SMALL,
        PrepareInputs(pictures={"in": elsewhere}, vae=tiny_checkpoint),
        tmp_path / "two",
        Workbench(threads=1),
    )
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_latents_are_what_the_vae_says(folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    from aid.sd.model.checkpoint import load_checkpoint

    for index in range(3):
        picture = Image.new("RGB", (200, 110), (index * 80, 40, 200))
        picture.save(folder / "alpha" / f"wide{index}.png")
    settings = PrepareSettings(resolution_px=64, bucket_step_px=16, latent_batch=2)
    dataset = run(folder, tmp_path / "out", settings, vae=tiny_checkpoint)
    assert dataset.sizes() == [(64, 64), (80, 48)]
    wide = dataset.latents(80, 48)
    assert wide.shape == (3, 2, 4, 6, 10) and wide.dtype == np.float16
    assert isinstance(wide.base, np.memmap) and not wide.flags.writeable
    vae = load_checkpoint(tiny_checkpoint).vae
    for record in dataset.records[::5]:
        with Image.open(dataset.folder / record.file) as picture:
            pixels = torch.tensor(np.asarray(picture), dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = vae.encode(2 * pixels / 255 - 1).latent_dist
        expected = torch.stack([posterior.mean[0], posterior.std[0]])
        cached = dataset.latents(record.width, record.height)[record.row]
        assert np.allclose(cached, expected.numpy(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("stop", "kept"), [(5, 0), (13, 8), (19, 16)])
def test_an_interrupted_run_goes_on_with_whole_latents(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path, stop: int, kept: int
) -> None:
    """16 squares and 4 wide pictures in parts of 8, encoded one by one."""
    for index in range(4):
        Image.new("RGB", (200, 110), (index * 60, 40, 200)).save(folder / "alpha" / f"wide{index}.png")
    settings = PrepareSettings(resolution_px=64, bucket_step_px=16, latent_batch=1)
    inputs, out = PrepareInputs(pictures={"in": folder}, vae=tiny_checkpoint), tmp_path / "out"
    prepare(settings, inputs, tmp_path / "straight", Workbench(threads=1))
    with pytest.raises(KeyboardInterrupt):
        prepare(settings, inputs, out, Workbench(threads=1, progress=Interrupting(stop, "encode")))
    unfinished = tmp_path / ".out.building"
    assert unfinished.exists() == (kept > 0), "without latents there is nothing to go on with"
    if kept == 8:  # what a failing disk may leave: a part cut short under its own name, a torn picture
        whole = unfinished / SCRATCH / "part-000000.npz"
        whole.with_name("part-000001.npz").write_bytes(whole.read_bytes()[:-9])
        damaged = bytearray(whole.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        whole.with_name("part-000002.npz").write_bytes(damaged)
        next((unfinished / "pictures").rglob("*.webp")).write_bytes(b"RIFF")
    again = Counting()
    prepare(settings, inputs, out, Workbench(threads=1, progress=again))
    assert (again.reused, again.encoded) == (kept, 20 - kept)
    assert files(out) == files(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "straight"]


def test_a_wrong_vae_is_told_before_anything_is_done(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vae.safetensors").write_bytes(b"junk")
    with pytest.raises(FileError, match=r"vae\.safetensors"):
        run(folder, tmp_path / "out", vae=tmp_path / "vae.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "vae.safetensors"]


def test_damage_is_named_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "alpha" / "alpha0.png").read_bytes()
    (folder / "alpha" / "alpha0.png").write_bytes(whole[:200])
    (folder / "beta" / "tiny.png").write_bytes(b"")
    Image.new("RGB", (40, 40)).save(folder / "beta" / "small.png")
    Image.new("RGB", (640, 100)).save(folder / "beta" / "strip.png")
    dataset = run(folder, tmp_path / "out")
    assert len(dataset.records) == 15
    reasons = {row["source"]: row["reason"] for row in dataset.report["quarantined"]}
    assert list(reasons) == [
        "in/alpha/alpha0.png", "in/beta/small.png", "in/beta/strip.png", "in/beta/tiny.png",
    ]  # fmt: skip
    assert reasons["in/beta/small.png"] == "is 40x40; expected 64 pixels on the short edge"
    assert reasons["in/beta/strip.png"] == "is 640x100; expected an aspect of 4:1 at most"


def test_bombs_are_refused_without_being_decoded(folder: Path, tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(folder / "alpha" / "bomb.png", optimize=True)
    dataset = run(folder, tmp_path / "out")
    [row] = dataset.report["quarantined"]
    assert row["source"] == "in/alpha/bomb.png" and "megapixels" in row["reason"]


def test_copies_go_and_near_duplicates_stay_on_one_side(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "alpha" / "alpha0.png", folder / "alpha" / "copy.png")
    shutil.copytree(folder / "alpha", tmp_path / "replay" / "alpha")
    for name in ("alpha0", "alpha3", "alpha5"):
        with Image.open(folder / "alpha" / f"{name}.png") as picture:
            picture.save(folder / "beta" / f"{name}-again.jpg", quality=90)
            picture.resize((96, 96)).save(folder / "alpha" / f"{name}-large.png")
    settings = PrepareSettings(resolution_px=64, held_fraction=0.4)
    dataset = run(folder, tmp_path / "out", settings, regularisation={"old": tmp_path / "replay"})
    assert {"source": "in/alpha/copy.png", "of": "in/alpha/alpha0.png"} in dataset.report["duplicates"]
    assert not any(record.regularisation for record in dataset.records), "replay was all copies"
    assert len({record.sha256 for record in dataset.records}) == len(dataset.records) == 22
    side = {record.source: record.split for record in dataset.records}
    assert set(side.values()) == {"train", "held"} and len(dataset.report["near_duplicates"]) >= 6
    for a, b, distance in dataset.report["near_duplicates"]:
        assert side[a] == side[b] and 0 <= distance <= 6
    for name in ("alpha0", "alpha3", "alpha5"):
        assert side[f"in/alpha/{name}.png"] == side[f"in/alpha/{name}-large.png"]
        assert side[f"in/alpha/{name}.png"] == side[f"in/beta/{name}-again.jpg"]


def test_an_empty_style_is_an_error_that_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "gamma").mkdir()
    with pytest.raises(FileError, match=r"style gamma \(in/gamma\) has no picture left"):
        run(folder, tmp_path / "out")
    (folder / "gamma" / "a.png").write_bytes(b"junk")
    with pytest.raises(FileError, match=r"style gamma .* in/gamma/a.png is not a picture"):
        run(folder, tmp_path / "out")
    shutil.copy(folder / "alpha" / "alpha0.png", folder / "gamma" / "a.png")
    with pytest.raises(FileError, match=r"style gamma .* is a copy of in/alpha/alpha0.png"):
        run(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("with_latents", [False, True])
def test_a_full_disk_is_an_error_that_leaves_nothing(
    folder: Path, tmp_path: Path, with_latents: bool, tiny_checkpoint: Path
) -> None:
    """The real thing, from the kernel: no file may grow beyond 12 kB (a picture of noise needs more)."""
    if not with_latents:
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "alpha" / "noise.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        with pytest.raises(
            FileError, match=r"out could not be written \(File too large\).*Free some disk space"
        ):
            run(folder, tmp_path / "out", vae=tiny_checkpoint if with_latents else None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in" / "_").mkdir(parents=True)
    (tmp_path / "in" / "_" / "a.png").write_bytes(b"junk")
    with pytest.raises(FileError, match=r"no picture is left: in/_/a\.png is not a picture"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_report_counts(folder: Path, tmp_path: Path) -> None:
    (folder / "beta" / "beta0.txt").unlink()
    (folder / "beta" / "beta1.txt").write_text("Red_Hair, rare, wronng")
    Image.new("RGB", (150, 64)).save(folder / "beta" / "wide.png")
    settings = PrepareSettings(
        resolution_px=64, known_tags=("red_hair", "blue hair", "smile", "frown", "rare"), rare_tag_pictures=2
    )
    report = run(folder, tmp_path / "out", settings).report
    assert report["untagged"] == ["in/beta/beta0.png", "in/beta/wide.png"]
    assert report["unknown_tags"] == {"wronng": 1} and report["rare_tags"] == 2
    assert report["buckets"] == {"64x64": 17}
    assert report["kept_pixels"]["minimum"] == pytest.approx(64 / 150, abs=1e-4)
    assert sum(row["train"] + row["held"] for row in report["styles"].values()) == report["pictures"]


def test_a_folder_of_0_times_is_told(folder: Path, tmp_path: Path) -> None:
    """One style has pictures in another folder too, whose number counts."""
    said: list[str] = []

    class Told(Silence):
        def say(self, text: str) -> None:
            said.append(text)

    for name, folders in (("alpha", "0_alpha"), ("beta", "0_beta")):
        (folder / name).rename(folder / folders)
    (folder / "3_beta").mkdir()
    (folder / "0_beta" / "beta0.png").rename(folder / "3_beta" / "beta0.png")
    prepare(SMALL, PrepareInputs(pictures={"in": folder}), tmp_path / "out", Workbench(progress=Told()))
    assert "  by that rule never seen, as 0 times: alpha" in said


def test_odd_file_names_become_plain_ones(folder: Path, tmp_path: Path) -> None:
    name = "..weird\n name, 花 " + "x" * 90 + ".png"
    (folder / "alpha" / "alpha0.png").rename(folder / "alpha" / f"a{name}")
    (folder / "alpha" / "alpha0.txt").unlink()
    dataset = run(folder, tmp_path / "out")
    [record] = [record for record in dataset.records if "weird" in record.source]
    assert record.source == f"in/alpha/a{name}"
    assert record.file.startswith("pictures/alpha/a..weird-name-花-xxx") and len(record.file) < 90
    assert json.loads((dataset.folder / "report.json").read_text())["quarantined"] == []
