"""Embeddings: every file that A1111 reads, the two that AID writes, and files that mean harm."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from torch import Tensor

from aid.errors import AidError, FileError, ModelError, SettingsError
from aid.sd.embedding.file import Embedding, embedding_metadata, load_embedding, save_embedding
from aid.sd.file.tensorfile import read_header
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint

VECTORS = torch.randn((3, TINY.text_width), generator=torch.Generator().manual_seed(1))


def a1111(vectors: Any) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "another name",
        "step": 1999,
        "sd_checkpoint": "a1b2c3d4",
        "sd_checkpoint_name": "naifu",
    }


def parameter_dict(vectors: Tensor) -> Any:
    """What the first versions of A1111 stored."""
    return torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})


CONTENTS: dict[str, Any] = {
    "a1111.pt": a1111(VECTORS),
    "a1111-half.pt": a1111(VECTORS.half()),
    "a1111-old.pt": {"string_to_token": {"*": 265}, "string_to_param": parameter_dict(VECTORS)},
    "a1111.bin": a1111(VECTORS),
    "kohya.pt": {"emb_params": VECTORS},
    "diffusers.bin": {"<cat-toy>": VECTORS},
    "one-vector.bin": {"<cat-toy>": VECTORS[0]},
}


@pytest.mark.parametrize("name", list(CONTENTS))
def test_pickled_variants(name: str, tmp_path: Path) -> None:
    torch.save(CONTENTS[name], tmp_path / name)
    loaded = load_embedding(tmp_path / name, width=TINY.text_width)
    expected = VECTORS[:1] if name == "one-vector.bin" else VECTORS
    assert loaded.name == Path(name).stem
    assert loaded.vectors.dtype == torch.float32
    assert not loaded.vectors.requires_grad
    assert torch.allclose(loaded.vectors, expected, atol=2e-3 if "half" in name else 0)


def test_legacy_torch_files(tmp_path: Path) -> None:
    """Files from before torch 1.6 are bare pickles."""
    torch.save(a1111(VECTORS), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_embedding(tmp_path / "old.pt").vectors, VECTORS)


def test_safetensors_variants(tmp_path: Path) -> None:
    for key in ("emb_params", "<cat-toy>"):
        save_file({key: VECTORS}, tmp_path / "badv3.safetensors")
        loaded = load_embedding(tmp_path / "badv3.safetensors")
        assert (loaded.name, loaded.vectors.tolist()) == ("badv3", VECTORS.tolist())


def hidden_json() -> bytes:
    return json.dumps(a1111({"TORCHTENSOR": VECTORS.tolist()})).encode()


def test_a_picture_with_an_embedding_in_its_text(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(hidden_json()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "card.png", pnginfo=text)
    loaded = load_embedding(tmp_path / "card.png")
    assert loaded.name == "another name"
    assert torch.allclose(loaded.vectors, VECTORS)


def test_half_a_letter_in_a_picture_s_own_name_is_a_question_mark(tmp_path: Path) -> None:
    text = PngInfo()
    content = {**a1111({"TORCHTENSOR": VECTORS.tolist()}), "name": "half \ud800"}
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "card.png", pnginfo=text)
    assert load_embedding(tmp_path / "card.png").name == "half ?"


def test_a_picture_with_an_embedding_in_its_sides(tmp_path: Path) -> None:
    packed = np.frombuffer(zlib.compress(hidden_json(), 9), np.uint8)
    height = 16
    cells = np.resize(packed, -(-len(packed) // (height * 3)) * height * 3)
    state, mask = 0, []
    for _ in range(cells.size):
        state = (1664525 * state + 1013904223) % 2**32
        mask.append(state % 255)
    assert mask[:5] == [253, 242, 127, 44, 157]  # A1111's published reference
    hide = np.array(mask, np.uint8) & 0x0F
    # A1111 draws ornaments into the high bits of the panels; here they are plain
    low, high = (((part ^ hide) | 0x20).reshape(height, -1, 3) for part in (cells & 0x0F, cells >> 4))
    line, middle = np.zeros((height, 1, 3), np.uint8), np.full((height, 10, 3), 201, np.uint8)
    picture = np.concatenate([low, line, middle, line, high], axis=1)
    Image.fromarray(picture).save(tmp_path / "card.webp", lossless=True)
    assert torch.allclose(load_embedding(tmp_path / "card.webp").vectors, VECTORS)


def test_a_picture_without_an_embedding(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    with pytest.raises(ModelError, match="carries no embedding"):
        load_embedding(tmp_path / "red.png")
    (tmp_path / "text.png").write_bytes(b"not a picture")
    with pytest.raises(FileError, match="not a readable picture"):
        load_embedding(tmp_path / "text.png")


REFUSED: dict[str, tuple[Any, str]] = {
    "uneven": (
        {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(1, 1280)},
        "2 vectors of CLIP-L and 1 of",
    ),
    "words": ({"clip_l": "a", "clip_g": torch.zeros(1, 1280)}, "holds str"),
    "two": ({"a": VECTORS, "b": VECTORS}, "2 entries"),
    "et": ({"string_to_param": {"*": VECTORS, "name": "x", "step": 1}}, "3 entries"),
    "cube": ({"a": torch.zeros(1, 2, 3)}, r"shape \[1, 2, 3\]"),
    "nan": ({"a": torch.full((1, 16), torch.nan)}, "NaN"),
    "list": ([1, 2, 3], "not an embedding"),
    "param": ({"string_to_param": 3}, "not an embedding"),
    "empty": ({}, "0 entries"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals_say_why(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    torch.save(content, tmp_path / f"{name}.pt")
    with pytest.raises(ModelError, match=message) as caught:
        load_embedding(tmp_path / f"{name}.pt")
    assert f"{name}.pt" in str(caught.value)


def test_another_width_is_refused_by_both_widths(tmp_path: Path) -> None:
    save_embedding(Embedding("sd2", torch.zeros(1, 1024)), tmp_path, {})
    with pytest.raises(ModelError, match=r"1024 wide; expected 768"):
        load_embedding(tmp_path / "sd2.pt", width=768)


PAIR = Embedding("pair", torch.randn(2, 16), torch.randn(2, 24))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_sdxl_pairs(suffix: str, tmp_path: Path) -> None:
    save_embedding(PAIR, tmp_path, {"k": "v"})
    stored = load_file(tmp_path / "pair.safetensors")
    assert {key: list(tensor.shape) for key, tensor in stored.items()} == {
        "clip_l": [2, 16],
        "clip_g": [2, 24],
    }
    path = tmp_path / f"pair.{suffix}"
    loaded = load_embedding(path, 16, 24)
    assert torch.equal(loaded.vectors, PAIR.vectors)
    assert loaded.vectors_g is not None and PAIR.vectors_g is not None
    assert torch.equal(loaded.vectors_g, PAIR.vectors_g)
    with pytest.raises(ModelError, match=r"16 \+ 24 \(SDXL's two encoders\) wide; expected 16,"):
        load_embedding(path, 16)
    save_embedding(Embedding("sd1", PAIR.vectors), tmp_path, {})
    with pytest.raises(ModelError, match=r"16 wide; expected 16 \+ 24 \(SDXL"):
        load_embedding(tmp_path / "sd1.pt", 16, 24)


def test_an_sdxl_pair_in_a_picture(tmp_path: Path) -> None:
    text = PngInfo()
    content = {key: {"TORCHTENSOR": [[0.5] * width]} for key, width in (("clip_l", 16), ("clip_g", 24))}
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "card.png", pnginfo=text)
    assert load_embedding(tmp_path / "card.png", 16, 24).name == "card"


def test_half_a_pair_is_one_models_own(tmp_path: Path) -> None:
    """OneTrainer's and ComfyUI's files for SD1."""
    save_file({"clip_l": VECTORS}, tmp_path / "one.safetensors")
    assert torch.equal(load_embedding(tmp_path / "one.safetensors", TINY.text_width).vectors, VECTORS)


class Attack:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save(
        a1111(VECTORS) | {"name": Attack(victim)}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(FileError, match=r"evil\.pt would run code"):
        load_embedding(tmp_path / "evil.pt")
    assert not victim.exists()


@given(
    at=st.integers(0, 3000), junk=st.binary(max_size=64), suffix=st.sampled_from(["pt", "safetensors", "png"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_raise_named_errors(at: int, junk: bytes, suffix: str, tmp_path: Path) -> None:
    save_embedding(Embedding("good", VECTORS), tmp_path, {"k": "v"})
    whole = (tmp_path / ("good.pt" if suffix == "pt" else "good.safetensors")).read_bytes()
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(whole[:at] + junk)
    try:
        load_embedding(broken)
    except AidError as error:
        assert "broken" in str(error)


def test_both_files_load_and_carry_what_they_should(tmp_path: Path) -> None:
    metadata = embedding_metadata("badv3", "{}", negative=True)
    save_embedding(Embedding("badv3", VECTORS), tmp_path, metadata, 500, "a1b2c3d4e5", "starter")
    for suffix in ("safetensors", "pt"):
        loaded = load_embedding(tmp_path / f"badv3.{suffix}", TINY.text_width)
        assert loaded.name == "badv3"
        assert torch.equal(loaded.vectors, VECTORS)
    header = read_header(tmp_path / "badv3.safetensors")
    assert header.metadata["modelspec.is_negative_embedding"] == "true"
    assert torch.equal(load_file(tmp_path / "badv3.safetensors")["emb_params"], VECTORS)
    content = torch.load(tmp_path / "badv3.pt", weights_only=False)
    assert torch.equal(content.pop("string_to_param")["*"], VECTORS)
    assert content == {
        "string_to_token": {"*": 265},
        "name": "badv3",
        "step": 500,
        "sd_checkpoint": "a1b2c3d4e5",
        "sd_checkpoint_name": "starter",
    }


def test_the_pt_has_only_records_that_a1111_allows(tmp_path: Path) -> None:
    save_embedding(Embedding("badv3", VECTORS), tmp_path, {})
    with zipfile.ZipFile(tmp_path / "badv3.pt") as archive:
        assert sorted(archive.namelist()) == ["archive/data.pkl", "archive/data/0", "archive/version"]


def test_same_bytes_in_another_folder_and_process(tmp_path: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from aid.sd.embedding.file import Embedding, save_embedding
vectors = torch.arange(32.).reshape(2, 16)
save_embedding(Embedding("badv3", vectors), Path(sys.argv[1]), {"b": "1", "a": "2"})
"""
    (tmp_path / "other folder").mkdir()
    subprocess.run([sys.executable, "-c", script, tmp_path / "other folder"], check=True)
    part = torch.arange(64.0).reshape(4, 16)[:2]  # a view of a larger storage
    save_embedding(Embedding("badv3", part), tmp_path, {"a": "2", "b": "1"})
    for name in ("badv3.safetensors", "badv3.pt"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "other folder" / name).read_bytes()


@pytest.mark.parametrize("name", ["", "..", "a/b", " ", ".hidden"])
def test_names_that_are_no_file_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't name an embedding"):
        save_embedding(Embedding(name, VECTORS), tmp_path, {})


def test_diffusers_loads_both_files(tmp_path: Path) -> None:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    model = create_checkpoint(TINY, seed=1)
    save_embedding(Embedding("badv3", VECTORS), tmp_path, {})
    for suffix in ("safetensors", "pt"):
        from aid.sd.model.tokenizer import load_tokenizer

        load_tokenizer.cache_clear()
        pipe = StableDiffusionPipeline(
            model.vae, model.text_encoder, load_tokenizer(), model.unet, PNDMScheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        token = f"badv3-{suffix}"
        pipe.load_textual_inversion(str(tmp_path / f"badv3.{suffix}"), token=token)
        ids = pipe.tokenizer(
            pipe.maybe_convert_prompt(token, pipe.tokenizer), add_special_tokens=False
        ).input_ids
        learned = pipe.text_encoder.get_input_embeddings().weight[ids]
        assert torch.equal(learned.detach(), VECTORS)
        load_tokenizer.cache_clear()
