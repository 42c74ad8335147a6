"""Latents from run to run, mirrored ones, masks, several resolutions."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.interrupting import Interrupting

from aid.core.artifact import SCRATCH
from aid.core.dataset import Dataset
from aid.core.files import sha256_file
from aid.core.workbench import Silence, Ticker, Workbench
from aid.dataset.latents.latent import REUSED
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import ArtifactError, FileError

SETTINGS = PrepareSettings(resolution_px=64, bucket_step_px=16, latent_batch=3, held_minimum=1)


class Counting(Silence):
    """Counts pictures encoded, and those whose latents were there."""

    def __init__(self) -> None:
        self.encoded = self.reused = 0

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Ticker]:
        counted = done

        def tick(count: int = 1, note: str = "") -> None:
            nonlocal counted
            counted += count
            self.reused += count * (note == REUSED)
            self.encoded += count * (note != REUSED and label == "encode")

        yield tick
        assert counted == total


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven squares and four wide pictures, no two alike."""
    chance = np.random.default_rng(3)
    (tmp_path / "in" / "ask").mkdir(parents=True)
    for index in range(11):
        small = Image.fromarray(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        size = (64, 64) if index < 7 else (150, 90)
        small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "in" / "ask" / f"{index:02}.png")
        (tmp_path / "in" / "ask" / f"{index:02}.txt").write_text("looking left")
    return tmp_path / "in"


def run(
    folder: Path, out: Path, settings: PrepareSettings = SETTINGS, **inputs: Any
) -> tuple[Dataset, Counting]:
    counting = Counting()
    asked = PrepareInputs(pictures={"in": folder}, **inputs)
    return Dataset(prepare(settings, asked, out, Workbench(threads=1, progress=counting))), counting


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_only_what_changed_is_encoded_again(folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "out"
    _, first = run(folder, out, vae=tiny_checkpoint)
    assert (first.encoded, first.reused) == (11, 0)
    (folder / "ask" / "00.png").unlink()
    with Image.open(folder / "ask" / "08.png") as picture:
        ImageOps.invert(picture).save(folder / "ask" / "08.png")
    Image.new("RGB", (70, 70), "red").save(folder / "ask" / "05-new.png")
    (folder / "ask" / "03.txt").write_text("another tag")
    _, second = run(folder, out, vae=tiny_checkpoint)
    assert (second.encoded, second.reused) == (2, 9)
    afresh, _ = run(folder, tmp_path / "afresh", vae=tiny_checkpoint)
    assert files(out) == files(tmp_path / "afresh"), "to the last bit as if all were encoded now"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["afresh", "in", "out"]
    assert len(afresh.latents(64, 64)) == 7


def test_an_interrupted_run_s_latents_serve_one_of_other_pictures_and_settings(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    out, settings = tmp_path / "out", SETTINGS.model_copy(update={"latent_batch": 1})
    asked = PrepareInputs(pictures={"in": folder}, vae=tiny_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        prepare(settings, asked, out, Workbench(threads=1, progress=Interrupting(9, "encode")))
    parts = list((tmp_path / ".out.building" / SCRATCH).glob("part-*.npz"))
    assert len(parts) == 1, "of eight latents"
    (tmp_path / ".out.building" / SCRATCH / "other").touch()
    Image.new("RGB", (70, 70), "red").save(folder / "ask" / "05-new.png")
    (folder / "ask" / "03.txt").write_text("another tag")
    changed = settings.model_copy(update={"undesired_tags": ("looking *",)})
    dataset, counted = run(folder, out, changed, vae=tiny_checkpoint)
    assert (counted.encoded, counted.reused) == (4, 8)
    run(folder, tmp_path / "afresh", changed, vae=tiny_checkpoint)
    assert files(out) == files(tmp_path / "afresh") and len(dataset.records) == 12
    assert not (tmp_path / ".out.building").exists()


def test_another_vae_or_crop_is_noticed(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path, lively_checkpoint: Path
) -> None:
    out = tmp_path / "out"
    run(folder, out, vae=tiny_checkpoint)
    _, other = run(folder, out, vae=lively_checkpoint)
    assert (other.encoded, other.reused) == (11, 0)
    square = SETTINGS.model_copy(update={"buckets": False})
    _, cropped = run(folder, out, square, vae=lively_checkpoint)
    assert (cropped.encoded, cropped.reused) == (4, 7), "the squares stay what they were"


@pytest.mark.parametrize("harm", ["cut short", "changed", "keys gone"])
def test_harmed_latents_are_not_believed(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path, harm: str
) -> None:
    dataset, _ = run(folder, tmp_path / "out", vae=tiny_checkpoint)
    straight = files(tmp_path / "out")
    shard = dataset.folder / "latents-64x64.npy"
    content = bytearray(shard.read_bytes())
    if harm == "cut short":
        shard.write_bytes(content[:-100])
        with pytest.raises(ArtifactError, match=r"latents-64x64\.npy could not be mapped"):
            Dataset(dataset.folder).latents(64, 64)
    elif harm == "changed":
        content[-1] ^= 1
        shard.write_bytes(content)
    else:
        shard.with_suffix(".keys").unlink()
    _, again = run(folder, tmp_path / "out", vae=tiny_checkpoint)
    assert (again.encoded, again.reused) == (7, 4)
    assert files(tmp_path / "out") == straight


def test_mirrored_latents_are_those_of_the_mirrored_picture(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    settings = SETTINGS.model_copy(update={"mirrored": True})
    dataset, counting = run(folder, tmp_path / "out", settings, vae=tiny_checkpoint)
    assert dataset.has_mirrored and counting.encoded == 22
    for path in (folder / "ask").glob("*.png"):
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(path)
    turned, _ = run(folder, tmp_path / "turned", vae=tiny_checkpoint)
    assert not turned.has_mirrored
    for size in dataset.sizes():
        assert np.array_equal(dataset.latents(*size, mirrored=True), turned.latents(*size))
    assert dataset.records[0].mirrored.caption == "by ask, looking right"
    squares = [record for record in dataset.records if record.width == record.height][2:5]
    fetched = dataset.fetch(squares, mirrored=True)
    rows = [record.row for record in squares]
    assert np.array_equal(fetched, turned.latents(64, 64)[rows]) and fetched.flags.writeable


def test_masks_come_from_transparency_and_mask_files(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "ask" / "01.png") as picture:
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, 32, 64))
        picture.putalpha(alpha)
        picture.save(folder / "ask" / "01.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 32, 16))
    mask.save(folder / "ask" / "02-masklabel.png")
    dataset, _ = run(folder, tmp_path / "out")
    by_name = {Path(record.source).stem: record for record in dataset.records}
    assert len(dataset.records) == 11 and not dataset.report["quarantined"]
    left = dataset.mask(by_name["01"])
    assert left is not None and left.shape == (8, 8)
    assert (left[:, :4] == 0).all() and (left[:, 4:] == 255).all()
    turned = dataset.mask(by_name["01"], mirrored=True)
    assert turned is not None and (turned[:, 4:] == 0).all()
    upper = dataset.mask(by_name["02"])
    assert upper is not None and (upper[:4] == 255).all() and (upper[4:] == 0).all()
    assert dataset.mask(by_name["03"]) is None and dataset.mask(by_name["08"]) is None
    assert [path.name for path in dataset.folder.glob("masks-*")] == ["masks-64x64.npy"]
    (folder / "ask" / "02-masklabel.png").write_bytes(b"junk")
    [row] = run(folder, tmp_path / "out")[0].report["quarantined"]
    assert row["source"] == "in/ask/02.png" and row["reason"].startswith("its mask 02-masklabel.png is not a")
    plain, _ = run(folder, tmp_path / "plain", SETTINGS.model_copy(update={"masks": False}))
    assert len(plain.records) == 11 and not list(plain.folder.glob("masks-*"))


def test_several_resolutions(folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Views of one picture lie on one side; a small picture has one view of its own size."""
    settings = SETTINGS.model_copy(update={"resolution_px": 96, "more_resolutions_px": (64,)})
    Image.new("RGB", (200, 200), "red").save(folder / "ask" / "large.png")
    dataset, _ = run(folder, tmp_path / "out", settings, vae=tiny_checkpoint)
    assert dataset.report["pictures"] == 12 < len(dataset.records)
    large = [record for record in dataset.records if record.source == "in/ask/large.png"]
    assert [(record.width, record.height) for record in large] == [(96, 96), (64, 64)]
    assert len({record.file for record in dataset.records}) == len(dataset.records)
    for record in dataset.records:
        assert len({other.split for other in dataset.records if other.sha256 == record.sha256}) == 1
        with Image.open(dataset.folder / record.file) as picture:
            assert picture.size == (record.width, record.height)
    for size in dataset.sizes():
        rows = [record.row for record in dataset.records if (record.width, record.height) == size]
        assert sorted(rows) == list(range(len(dataset.latents(*size))))


def test_turned_pictures_get_the_bucket_of_what_is_seen(folder: Path, tmp_path: Path) -> None:
    """EXIF says that 150x90 is 90x150."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "ask" / "10.png") as picture:
        picture.save(folder / "ask" / "10.jpg", exif=exif)
    (folder / "ask" / "10.png").unlink()
    dataset, _ = run(folder, tmp_path / "out")
    [record] = [record for record in dataset.records if record.source == "in/ask/10.jpg"]
    assert record.height > record.width


def test_a_disk_without_room_stops_it_before_anything_is_written(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own answer but for the free bytes: no other way to a disk this full."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("aid.dataset.room.shutil.disk_usage", lambda _: usage._replace(free=5000))
    with pytest.raises(FileError, match=r"0 MB free; expected at least 0 MB for the pictures"):
        run(folder, tmp_path / "out", vae=tiny_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_dataset_travels_to_other_processes_by_name(
    folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    dataset, _ = run(folder, tmp_path / "out", vae=tiny_checkpoint)
    dataset.latents(64, 64)
    carried = pickle.dumps(dataset)
    assert len(carried) < 500
    assert np.array_equal(pickle.loads(carried).latents(64, 64), dataset.latents(64, 64))
    assert not (dataset.folder / SCRATCH).exists()
