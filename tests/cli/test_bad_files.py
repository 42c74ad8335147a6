"""Every file that is broken, hostile or meant for something else: one clear line, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from aid.cli import main
from aid.sd.file.tensorfile import read_header, read_tensors, write_tensors
from aid.sd.model.architecture import TINY

Changed = Callable[[bytes], bytes]
UNET = "model.diffusion_model.out.2.weight"
VAE = "first_stage_model.decoder.conv_out.weight"


def refused(capsys: pytest.CaptureFixture[str], words: list[str | Path], named: str, reason: str) -> None:
    """The command fails with one line that names the file and the reason, and prints nothing else."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and not out, (out, err)
    assert err.startswith("aid: ") and err.count("\n") == 1, err
    assert named in err and reason in err, err


def files() -> list[str]:
    """All that is here, but for empty folders."""
    return [str(path) for path in Path().rglob("*") if path.name == "ran" or not path.is_dir()]


class Attack:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


# What is wrong with a file of weights, whatever it was to be


def header_changed(change: Callable[[dict[str, Any]], object]) -> Changed:
    """The same tensors behind another header."""

    def changed(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        header = json.dumps(entries).encode()
        return struct.pack("<Q", len(header)) + header + content[8 + length :]

    return changed


def entry(entries: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = entries[[name for name in entries if name != "__metadata__"][index]]
    return found


def overlap(entries: dict[str, Any]) -> None:
    """The second tensor where the first one lies."""
    first, second = (entry(entries, index) for index in (1, 2))
    size = second["data_offsets"][1] - second["data_offsets"][0]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]


def archived(**records: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return stream.getvalue()


def tarred(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("model.safetensors")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def saved(content: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


BROKEN: dict[str, tuple[Changed, str]] = {
    "empty.safetensors": (lambda _: b"", "it has only 0 bytes"),
    "text.safetensors": (lambda _: b"<html>404 Not Found</html>", "its header claims"),
    "truncated.safetensors": (lambda content: content[:-1000], "its tensors end at byte"),
    "cut-in-the-header.safetensors": (lambda content: content[:200], "its header claims"),
    "longer.safetensors": (lambda content: content + b"x", "its tensors end at byte"),
    "header-of-2-GB.safetensors": (
        lambda content: struct.pack("<Q", 2 << 30) + content[8:],
        "its header claims 2147483648 bytes",
    ),
    "no-json.safetensors": (lambda content: content[:9] + b"{" + content[10:], "its header is not JSON"),
    "deep.safetensors": (lambda _: struct.pack("<Q", 90_000) + b"[" * 90_000, "its header is not JSON"),
    "other-dtype.safetensors": (
        header_changed(lambda entries: entry(entries).update(dtype="F8_E5M2")), "is inconsistent",
    ),
    "unknown-dtype.safetensors": (
        header_changed(lambda entries: entry(entries).update(dtype="Q4_K")), "is inconsistent",
    ),
    "shape.safetensors": (
        header_changed(lambda entries: entry(entries).update(shape=[1 << 40])), "is inconsistent",
    ),
    "negative.safetensors": (
        header_changed(lambda entries: entry(entries).update(data_offsets=[-8, 0])), "is inconsistent",
    ),
    "overlapping.safetensors": (header_changed(overlap), "overlaps its neighbour or leaves a gap"),
    "gap.safetensors": (
        header_changed(lambda entries: entries.pop(UNET)), "overlaps its neighbour or leaves a gap",
    ),
    "metadata.safetensors": (
        header_changed(lambda entries: entries.update(__metadata__={"a": 1})), "its metadata is not text",
    ),
    "attack.ckpt": (lambda _: saved({"state_dict": {"a": Attack()}}), "would run code when opened"),
    "attack.pt": (lambda _: saved({"a": Attack()}, zipped=False), "would run code when opened"),
    "attack.safetensors": (lambda _: pickle.dumps(Attack()), "would run code when opened"),
    "module.pt": (lambda _: saved(torch.nn.Linear(2, 2)), "would run code when opened"),
    "truncated.ckpt": (lambda _: saved({"a": torch.ones(99)})[:-300], "is truncated or damaged"),
    "bomb.ckpt": (lambda _: archived(a__data_pkl=b"N.", a__data__0=bytes(200 << 20)), "would unpack to 200"),
    "pictures.ckpt": (lambda _: archived(a=b"x"), "is truncated or damaged"),
    "archive.tar": (tarred, "its header claims"),
    "packed.gz": (lambda content: b"\x1f\x8b\x08\x00" + zlib.compress(content[:5000]), "its header claims"),
    "nothing.ckpt": (lambda _: saved({"state_dict": {}, "epoch": 3}), "holds no tensors"),
    "numbers.ckpt": (lambda _: saved([1, 2, 3]), "holds no tensors"),
    "endless-word.pt": (lambda _: b"\x80\x02c" + b"x" * 20_000 + b"\na\n.", "letters"),
    "claims.pt": (lambda _: saved({"a": torch.ones(1).expand(1 << 40)}), "is no plain tensor"),
}  # fmt: skip


EVERYWHERE = ("truncated.safetensors", "attack.ckpt", "bomb.ckpt")


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_of_weights(
    name: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As whatever it is given: inspected, converted, drawn with as a checkpoint; and where its reader isn't
    the same as another's, as a VAE, an embedding and a LoRA."""
    monkeypatch.chdir(tmp_path)
    make, reason = BROKEN[name]
    Path(name).write_bytes(make(tiny_checkpoint.read_bytes()))
    draw = ["generate", f"a <lora:{Path(name).stem}:1>", "--steps", "1", "--out", "out", "--checkpoint"]
    asked = [["inspect", name], ["convert", name, "out.safetensors"], [*draw, name]]
    if name in EVERYWHERE:
        asked += [[*draw, tiny_checkpoint, given, name] for given in ("--vae", "--embeddings", "--loras")]
    for words in asked:
        refused(capsys, words, name, reason)
        assert files() == [name], words


# What is a whole file, and can't be what it is given as


def spoilt(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {**tensors, key: change(tensors[key])}


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


def marked(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        made = tensor.clone()
        made.reshape(-1)[-1] = value
        return made

    return change


UNFIT: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str, bool]] = {
    "nan": (spoilt(UNET, marked(float("nan"))), "holds NaN or infinity", True),
    "infinity-in-the-vae": (spoilt(VAE, marked(float("inf"))), "conv_out.weight holds NaN or infinity", True),
    "whole-numbers": (spoilt(UNET, Tensor.int), f"{UNET} holds whole numbers", True),
    "truth": (spoilt(VAE, Tensor.bool), f"{VAE} holds whole numbers", True),
    "missing": (without(UNET), f"lacks {UNET}", False),
    "another-shape": (spoilt(UNET, lambda tensor: tensor[:, :-1].contiguous()), "has shape", False),
    "embedding": (lambda _: {"emb_params": torch.ones(2, 16)}, "s has no model.diffusion_model", False),
}  # fmt: skip


@pytest.mark.parametrize("name", list(UNFIT))
def test_a_checkpoint_that_is_none(
    name: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make, reason, converts = UNFIT[name]
    file = f"{name}.safetensors"
    write_tensors(Path(file), make(read_tensors(tiny_checkpoint)), read_header(tiny_checkpoint).metadata)
    refused(capsys, ["generate", "a", "--out", "out", "--checkpoint", file], file, reason)
    targets = ["out.safetensors", "out"] if converts else ["out"]
    for target in targets if name != "embedding" else ():
        refused(capsys, ["convert", file, target], file, reason)
    assert files() == [file]


def named(**tensors: Tensor) -> dict[str, Tensor]:
    return {key.replace("__", "."): tensor for key, tensor in tensors.items()}


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
WIDE = TINY.text_width
GIVEN: dict[str, tuple[str, Mapping[str, Tensor], str]] = {
    "wrong-width": ("embeddings", {"emb_params": torch.ones(2, 768)}, f"768 wide; expected {WIDE}"),
    "sdxl-pair": (
        "embeddings", {"clip_l": torch.ones(2, WIDE), "clip_g": torch.ones(2, 20)}, "SDXL's two encoders",
    ),
    "nan": ("embeddings", {"emb_params": torch.full((2, WIDE), torch.nan)}, "holds NaN or infinity"),
    "nan-lora": (
        "loras",
        named(
            **{f"{LAYER}__lora_down__weight": torch.full((2, 16), torch.nan)},
            **{f"{LAYER}__lora_up__weight": torch.ones(16, 2)},
        ),
        "NaN or infinity",
    ),
    "half-lora": ("loras", named(**{f"{LAYER}__lora_down__weight": torch.ones(2, 16)}), LAYER),
    "no-lora": ("loras", {"a": torch.ones(2)}, "expected an adapter"),
    "no-vae": ("vae", {"a": torch.ones(2)}, "holds no VAE"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(GIVEN))
def test_what_a_model_cannot_use(
    name: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    option, tensors, reason = GIVEN[name]
    file = f"{name}.safetensors"
    write_tensors(Path(file), tensors, {})
    draw: list[str | Path] = ["generate", f"a <lora:{name}:1>" if option == "loras" else "a", "--steps", "1"]
    refused(
        capsys, [*draw, "--out", "out", "--checkpoint", tiny_checkpoint, f"--{option}", file], file, reason
    )
    assert files() == [file]


# Pictures


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(10_000), 9))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def drawn(format: str, **words: Any) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((40, 30), 60).save(stream, format, **words)
    return stream.getvalue()


PICTURES: dict[str, tuple[bytes, str]] = {
    "huge.png": (bomb(60_000, 60_000), "megapixels"),
    "flat.png": (bomb(12_000, 12_000), "claims 144 megapixels in"),
    "cut.jpg": (drawn("jpeg")[:300], "can't be decoded"),
    "moving.gif": (drawn("gif", save_all=True, append_images=[Image.new("L", (40, 30))]), "several frames"),
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_a_picture_to_draw_from(
    name: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content, reason = PICTURES[name]
    Path(name).write_bytes(content)
    draw: list[str | Path] = [
        "generate",
        "a",
        "--steps",
        "1",
        "--checkpoint",
        tiny_checkpoint,
        "--out",
        "out",
    ]
    refused(capsys, [*draw, "--init", name], name, reason)
    assert files() == [name]
