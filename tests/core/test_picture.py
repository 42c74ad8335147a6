"""Pictures as they come: turned, transparent, wide-gamut, broken, hostile."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from aid.core.picture import open_picture, open_small, read_picture
from aid.errors import PictureError


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        read_picture(path, 40.0)


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_orientation_is_applied(tmp_path: Path, noise: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(tmp_path / "a.png", exif=exif)
    turned = read_picture(tmp_path / "a.png", 40.0)
    assert turned.size == (40, 60)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(noise), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 16))
    picture.convert(mode).save(tmp_path / "a.png")
    pixels = np.asarray(read_picture(tmp_path / "a.png", 40.0))
    assert pixels.shape == (16, 16, 3) and (pixels[:, :8] == 0).all() and (pixels[:, 8:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png", 40.0))[..., 0], ramp >> 8)


def test_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path: Path, noise: Image.Image) -> None:
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in (("odd", grey), ("junk", b"not a profile")):
        noise.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert np.array_equal(np.asarray(read_picture(tmp_path / f"{name}.png", 40.0)), np.asarray(noise))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise.save(tmp_path / "same.png", icc_profile=srgb)
    shown = np.asarray(read_picture(tmp_path / "same.png", 40.0)).astype(int)
    assert np.abs(shown - np.asarray(noise)).max() <= 1


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    for name, edge in (("large", 8000), ("huge", 60000)):
        (tmp_path / name).write_bytes(png(edge, edge, chunk(b"IDAT", zlib.compress(bytes(1000)))))
        refused(tmp_path / name, "megapixels")


def test_few_bytes_that_claim_many_pixels_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5000, 5000, chunk(b"IDAT", zlib.compress(bytes(5000)))))
    refused(tmp_path / "a.png", r"claims 25 megapixels in \d+ bytes")
    Image.new("RGB", (5000, 5000), "white").save(tmp_path / "sheet.png")
    assert read_picture(tmp_path / "sheet.png", 40.0).size == (5000, 5000), "flat colour is no bomb"
    Image.new("RGB", (4000, 4000), "white").save(tmp_path / "sheet.webp", lossless=True)
    assert read_picture(tmp_path / "sheet.webp", 40.0).size == (4000, 4000)


def test_a_jpeg_of_endless_scans_is_refused_unread(tmp_path: Path, noise: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    noise.save(path, progressive=True)
    content = path.read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    hidden = b"\xff\xfe\x00\x04\xff\xd9"  # a comment that looks like the end
    path.write_bytes(content[:-2] + hidden + last * 20 + content[-2:] + last * 60)
    assert read_picture(path, 40.0).size == noise.size, "what follows the picture is none of it"
    path.write_bytes(content[:-2] + hidden + last * 60 + content[-2:])
    refused(path, r"is drawn in 70 scans")


def test_a_chunk_that_says_4_gb_takes_no_memory(tmp_path: Path) -> None:
    """More than the address space has left."""
    content = png(8, 8, chunk(b"IDAT", zlib.compress(bytes((1 + 3 * 8) * 8))))
    (tmp_path / "a.png").write_bytes(content[:-12] + b"\xff\xff\xff\xf0IDAT")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), hard))
    try:
        refused(tmp_path / "a.png", "Truncated File Read")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_text_chunk_bomb_is_refused(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9))
    data = chunk(b"IDAT", zlib.compress(bytes((1 + 3 * 8) * 8)))
    (tmp_path / "a.png").write_bytes(png(8, 8, text, data))
    refused(tmp_path / "a.png", "can't be decoded")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp"])
def test_truncated_and_broken_files_are_refused(tmp_path: Path, suffix: str, noise: Image.Image) -> None:
    path = tmp_path / f"a.{suffix}"
    noise.save(path)
    assert read_picture(path, 40.0).size == noise.size
    whole = path.read_bytes()
    for part in (whole[: len(whole) * 2 // 3], whole[:20], b"", b"GIF89a", bytes(reversed(whole))):
        path.write_bytes(part)
        refused(path, "decoded|not a picture")


def test_other_formats_and_moving_pictures_are_refused(tmp_path: Path, noise: Image.Image) -> None:
    noise.save(tmp_path / "a.eps")
    refused(tmp_path / "a.eps", "not a picture in a format that is read")
    (tmp_path / "a.svg").write_text("<svg/>")
    refused(tmp_path / "a.svg", "not a picture")
    for name in ("a.gif", "a.png", "a.webp"):
        noise.save(
            tmp_path / name, save_all=True, append_images=[noise.transpose(Image.Transpose.ROTATE_180)]
        )
        refused(tmp_path / name, "several frames")


def test_a_telephone_s_jpeg_is_a_still(tmp_path: Path, noise: Image.Image) -> None:
    noise.save(tmp_path / "a.mpo", save_all=True, append_images=[noise])
    assert read_picture(tmp_path / "a.mpo", 40.0).size == noise.size


def test_metadata_is_no_obstacle(tmp_path: Path, noise: Image.Image) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a, b\nSteps: 20")
    noise.save(tmp_path / "a.png", pnginfo=info, exif=b"Exif\0\0broken")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png", 40.0)), np.asarray(noise))


def test_what_must_be_readable_is_named_with_the_next_step(tmp_path: Path, noise: Image.Image) -> None:
    path = tmp_path / "a.png"
    noise.save(path)
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(noise))
    assert open_small(path, 30).size == (30, 20) and open_small(path, 99).size == (60, 40)
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(
        PictureError, match=r"a\.png could not be read as a picture: it can't .* Draw it again"
    ):
        open_picture(path, "Draw it again.")
    with pytest.raises(PictureError, match=r"b\.png could not be read .* expected a whole picture\. Make or"):
        open_small(tmp_path / "b.png", 30)
