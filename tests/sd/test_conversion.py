"""Any weights into safetensors or a folder, bit by bit, one tensor at a time."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.cli import root
from aid.errors import AidError, FileError, ModelError, SettingsError
from aid.sd.conversion import Conversion, convert
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.file import tensorfile
from aid.sd.file.tensorfile import open_tensors, read_header, read_tensors, write_tensors
from aid.sd.inspection import inspect
from aid.sd.model.architecture import SD1, TINY
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint, vae_shapes
from aid.sd.model.layouts import POSITION_IDS, UNET, VAE, average_key
from aid.sd.model.weights import describe, open_weights
from aid.starter import BASE


def run(*words: object) -> str:
    result = CliRunner().invoke(root, ["convert", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_layouts_and_back_are_bitwise(family: str, family_files: dict[str, Path], tmp_path: Path) -> None:
    source = family_files[family]
    convert(source, tmp_path / "same.safetensors", Conversion())
    assert (tmp_path / "same.safetensors").read_bytes() == source.read_bytes()
    convert(source, tmp_path / "folder", Conversion())
    convert(tmp_path / "folder", tmp_path / "back.safetensors", Conversion())
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_precision_is_that_of_saving(family_files: dict[str, Path], tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(family_files["sd1"]), tmp_path / "saved.safetensors", {}, torch.float16)
    run(family_files["sd1"], tmp_path / "half.safetensors", "--dtype", "fp16")
    assert (tmp_path / "half.safetensors").read_bytes() == (tmp_path / "saved.safetensors").read_bytes()
    assert read_header(tmp_path / "half.safetensors").tensors[POSITION_IDS].dtype == torch.int64


def lightning_callback(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class that checkpoints of 2022 name, without that package."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for package in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    kind = type("ModelCheckpoint", (), {"__module__": name})
    sys.modules[name].ModelCheckpoint = kind
    return kind


def test_an_old_ckpt_is_pruned_and_its_callbacks_are_inert(
    family_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = read_tensors(family_files["sd1"])
    extra = {average_key(key): one + 1 for key, one in tensors.items() if key.startswith(UNET)}
    state = OrderedDict(
        {**tensors, **extra, "betas": torch.ones(1000), "model_ema.decay": torch.tensor(0.99)}
    )
    callbacks = {lightning_callback(monkeypatch): {"best_model_path": "x"}}
    content = {"state_dict": state, "epoch": 3, "optimizer_states": [{}], "callbacks": callbacks}
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ModelError, match="8 channels wide"):  # a pickle can't say how narrow it is
        convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors", Conversion())
    declared = open_weights(family_files["sd1"]).metadata
    monkeypatch.setattr("aid.sd.model.weights.open_tensors", lambda path: (open_tensors(path)[0], declared))
    made = convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors", Conversion())
    assert (tmp_path / "new.safetensors").read_bytes() == family_files["sd1"].read_bytes()
    assert made.dropped == {"model_ema": 687, "betas": 1}
    convert(tmp_path / "old.ckpt", tmp_path / "ema.safetensors", Conversion(ema=True))
    key = f"{UNET}out.2.bias"
    assert torch.equal(read_tensors(tmp_path / "ema.safetensors")[key], tensors[key] + 1)


def test_metadata_of_the_source_stays_but_for_hashes(family_files: dict[str, Path], tmp_path: Path) -> None:
    told = {"modelspec.title": "A", "sshs_model_hash": "0", "modelspec.hash_sha256": "0x0", "note": "x"}
    model = load_checkpoint(family_files["sd2"])
    save_checkpoint(model, tmp_path / "a.safetensors", told)
    run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--metadata", "note=", "--metadata", "k=v=w")
    assert read_header(tmp_path / "b.safetensors").metadata == {
        "aid.architecture": model.architecture.model_dump_json(exclude_defaults=True),
        "modelspec.prediction_type": "v",
        "modelspec.title": "A",
        "k": "v=w",
    }
    run(tmp_path / "b.safetensors", tmp_path / "eps.safetensors", "--prediction", "epsilon")
    assert open_weights(tmp_path / "eps.safetensors").architecture.prediction == "epsilon"


def test_sdxl_of_v_prediction_carries_the_markers(family_files: dict[str, Path], tmp_path: Path) -> None:
    run(family_files["sdxl"], tmp_path / "v.safetensors", "--prediction", "v", "--dtype", "bf16")
    assert read_header(tmp_path / "v.safetensors").tensors["v_pred"].shape == (0,)
    run(tmp_path / "v.safetensors", tmp_path / "folder")
    assert load_checkpoint(tmp_path / "folder").architecture.prediction == "v"


def test_a_vae_is_baked_in(family_files: dict[str, Path], tmp_path: Path) -> None:
    source = read_tensors(family_files["sd1"])
    bare = {key.removeprefix(VAE): one / 2 for key, one in source.items() if key.startswith(VAE)}
    write_tensors(tmp_path / "vae.safetensors", bare, {})
    run(family_files["sd1"], tmp_path / "b.safetensors", "--vae", tmp_path / "vae.safetensors")
    baked = read_tensors(tmp_path / "b.safetensors")
    assert baked.keys() == source.keys()
    assert all(
        torch.equal(baked[key], one / 2 if key.startswith(VAE) else one) for key, one in source.items()
    )
    del bare["decoder.conv_out.bias"]
    write_tensors(tmp_path / "vae.safetensors", bare, {})
    with pytest.raises(ModelError, match=r"vae\.safetensors: .*decoder\.conv_out\.bias is missing"):
        convert(family_files["sd1"], tmp_path / "c.safetensors", Conversion(vae=tmp_path / "vae.safetensors"))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_vae_is_baked_into_a_model_without(
    family: str, family_files: dict[str, Path], tmp_path: Path
) -> None:
    source, bare = read_tensors(family_files[family]), tmp_path / "bare.safetensors"
    vae, made = tmp_path / "vae.safetensors", tmp_path / "made.safetensors"
    metadata = read_header(family_files[family]).metadata
    write_tensors(bare, {key: one for key, one in source.items() if not key.startswith(VAE)}, metadata)
    own = {key.removeprefix(VAE): one for key, one in source.items() if key.startswith(VAE)}
    write_tensors(vae, own, {})
    with pytest.raises(ModelError, match=r"has no VAE .* `aid convert .*bare\.safetensors .* --vae VAE`"):
        load_checkpoint(bare)
    convert(bare, made, Conversion(vae=vae))
    assert made.read_bytes() == family_files[family].read_bytes()
    drawn, whole = load_checkpoint(bare, vae=vae).vae, load_checkpoint(family_files[family]).vae
    assert all(map(torch.equal, drawn.state_dict().values(), whole.state_dict().values()))
    made.unlink()
    for key in ("decoder.up.0.block.0.conv1.weight", "encoder.conv_out.weight"):
        write_tensors(vae, {**own, key: own[key][:1].clone()}, {})
        with pytest.raises(ModelError, match=rf"vae\.safetensors: .*{key} has shape .* needs it"):
            convert(bare, made, Conversion(vae=vae))
    assert not made.exists()


def test_a_folder_without_vae_is_drawn_with_one_and_given_one(tmp_path: Path) -> None:
    """A VAE that says nothing of itself, of the usual widths, though the model isn't."""
    usual = TINY.model_copy(update={"vae_widths": SD1.vae_widths, "vae_groups": SD1.vae_groups})
    shapes, folder, vae = vae_shapes(usual), tmp_path / "folder", tmp_path / "vae.safetensors"
    made = {key: torch.full(tuple(shape), 0.5, dtype=torch.float16) for key, shape in shapes.items()}
    write_tensors(vae, {key.removeprefix(VAE): one for key, one in made.items()}, {})
    model = create_checkpoint(TINY, seed=1)
    save_checkpoint(model, folder, {}, torch.float32, "diffusers")
    shutil.rmtree(folder / "vae")
    with pytest.raises(FileError, match=r"folder has no VAE .* `aid convert .*folder .* --vae VAE`"):
        load_checkpoint(folder)
    assert inspect(folder, hashes=False).kind == "checkpoint without VAE"
    loaded = load_checkpoint(folder, vae=vae)
    assert all(bool((one == 0.5).all()) for one in loaded.vae.state_dict().values())
    assert all(map(torch.equal, loaded.unet.state_dict().values(), model.unet.state_dict().values()))
    convert(folder, tmp_path / "whole.safetensors", Conversion(vae=vae))
    assert load_checkpoint(tmp_path / "whole.safetensors").architecture == loaded.architecture


def test_a_folder_without_vae_takes_the_widths_of_the_one_given(tmp_path: Path) -> None:
    """The starter's VAE is narrow: out of its file, its folder, and alone with what it says of itself."""
    folder, moved, made = tmp_path / "folder", tmp_path / "vae", tmp_path / "made.safetensors"
    convert(BASE, folder, Conversion())
    (folder / "vae").rename(moved)
    whole, alone = load_checkpoint(BASE), tmp_path / "alone.safetensors"
    own = {key.removeprefix(VAE): one for key, one in read_tensors(BASE).items() if key.startswith(VAE)}
    write_tensors(alone, own, describe(whole.architecture))
    for vae in (BASE, moved, alone):
        loaded = load_checkpoint(folder, vae=vae)
        assert loaded.architecture == whole.architecture
        assert all(map(torch.equal, loaded.vae.state_dict().values(), whole.vae.state_dict().values()))
        convert(folder, made, Conversion(vae=vae))
        copy, original = read_tensors(made), read_tensors(BASE)
        assert copy.keys() == original.keys() and all(torch.equal(copy[key], original[key]) for key in copy)
        assert load_checkpoint(made).architecture == whole.architecture
    write_tensors(alone, own, {})
    with pytest.raises(ModelError, match=r"alone\.safetensors is no VAE .*vae_groups is 32, .* the width 16"):
        load_checkpoint(folder, vae=alone)


def test_other_weights_keep_their_names(tmp_path: Path) -> None:
    torch.save({"emb_params": torch.ones(2, 768), "step": 3}, tmp_path / "e.pt")
    run(tmp_path / "e.pt", tmp_path / "e.safetensors", "--dtype", "fp16")
    assert read_tensors(tmp_path / "e.safetensors")["emb_params"].dtype == torch.float16
    with pytest.raises(SettingsError, match=r"e\.pt is no whole checkpoint"):
        convert(tmp_path / "e.pt", tmp_path / "f.safetensors", Conversion(ema=True))


def test_an_embedding_of_a1111_is_its_vectors(tmp_path: Path) -> None:
    vectors = torch.arange(6.0).reshape(2, 3)
    save_embedding(Embedding("e", vectors), tmp_path, {})
    told = {"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}}
    text = PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(told).encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "e.png", pnginfo=text)
    old = {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})}
    torch.save(old, tmp_path / "old.pt")  # as A1111's first versions did
    for source in ("e.pt", "e.png", "old.pt"):
        convert(tmp_path / source, tmp_path / "made.safetensors", Conversion())
        assert (tmp_path / "made.safetensors").read_bytes() == (tmp_path / "e.safetensors").read_bytes()
    for plain in ("plain.png", "plain.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / plain)
        with pytest.raises(ModelError, match=f"{plain} carries no embedding"):
            convert(tmp_path / plain, tmp_path / "none.safetensors", Conversion())
    torch.save({"epoch": 3, "step": 4}, tmp_path / "plain.pt")
    with pytest.raises(FileError, match=r"plain\.pt holds no tensors"):
        convert(tmp_path / "plain.pt", tmp_path / "none.safetensors", Conversion())


@pytest.mark.parametrize(
    ("value", "match"),
    [(float("nan"), "holds NaN"), (float("inf"), "holds NaN"), (7e4, "holds values too large for fl")],
)
def test_what_cannot_be_written_leaves_nothing(
    value: float, match: str, family_files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = read_tensors(family_files["sd1"])
    tensors[f"{VAE}decoder.conv_out.bias"][1] = value
    write_tensors(tmp_path / "odd.safetensors", tensors, open_weights(family_files["sd1"]).metadata)
    for target in ("out.safetensors", "folder"):
        with pytest.raises(ModelError, match=rf"odd\.safetensors: .*conv_out\.bias {match}"):
            convert(tmp_path / "odd.safetensors", tmp_path / target, Conversion(dtype=torch.float16))
    assert [path.name for path in tmp_path.iterdir()] == ["odd.safetensors"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["{source}", "x.ckpt", "--layout", "ldm"], "a name that ends in .safetensors"),
        (["{source}", "x.safetensors", "--layout", "diffusers"], "a name without such an ending"),
        (["missing", "x.safetensors"], "does not exist"),
        (["{source}", "x.safetensors", "--metadata", "novalue"], "expected KEY=VALUE"),
        (["{source}", "x.safetensors", "--metadata", "aid.lineage={}"], "can't be set"),
    ],
)
def test_what_cannot_be_meant(
    words: list[str], match: str, family_files: dict[str, Path], tmp_path: Path
) -> None:
    told = [word.replace("{source}", str(family_files["sd1"])) for word in words]
    told[1] = str(tmp_path / told[1])
    with pytest.raises(AidError, match=match):
        run(*told)


def test_one_tensor_is_held_at_a_time(
    family_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reading and writing alternate: nothing is gathered first."""
    events: list[str] = []
    reading, writing = tensorfile.Header.read, tensorfile.raw_bytes

    def read(self: tensorfile.Header, name: str) -> torch.Tensor:
        events.append("r")
        return reading(self, name)

    def write(tensor: torch.Tensor) -> memoryview:
        events.append("w")
        return writing(tensor)

    monkeypatch.setattr(tensorfile.Header, "read", read)
    monkeypatch.setattr(tensorfile, "raw_bytes", write)
    convert(family_files["sd1"], tmp_path / "a.safetensors", Conversion())
    assert "rr" not in "".join(events) and events.count("w") == 1131


def test_a_file_cut_while_it_is_read(family_files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(family_files["sd1"].read_bytes())
    tensors, _ = open_tensors(path)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(FileError, match="it ends inside"):
        for stored in tensors.values():
            stored.read()
