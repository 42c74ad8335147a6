"""`aid inspect` tells every kind of file by its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from aid.cli import root
from aid.core.lineage import describe
from aid.errors import FileError, ModelError, PictureError
from aid.sd.adapter.file import load_adapter
from aid.sd.conversion import Conversion, convert
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.file.tensorfile import Header, read_header, read_tensors, write_tensors
from aid.sd.inspection import Inspection, inspect
from aid.sd.model.checkpoint import load_checkpoint, save_checkpoint
from aid.sd.model.layouts import TEXT_2, TEXT_PREFIX, UNET, VAE, average_key


def shown(*words: object) -> str:
    result = CliRunner().invoke(root, ["inspect", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.mark.parametrize(("family", "blocks"), [("sd1", 26), ("sd2", 26), ("sdxl", 20)])
def test_a_checkpoint(family: str, blocks: int, family_files: dict[str, Path], tmp_path: Path) -> None:
    lineage = describe("finetune", {"steps": 3}, {})
    model = load_checkpoint(family_files[family])
    told = {"modelspec.title": "Named", "aid.lineage": lineage.embedded()}
    save_checkpoint(model, tmp_path / "model.bin", told)  # whatever it is called
    found = inspect(tmp_path / "model.bin")
    assert found.kind == "checkpoint" and found.size == (tmp_path / "model.bin").stat().st_size
    assert found.about["prediction"] == model.architecture.prediction
    assert (
        len(found.blocks) == blocks and found.blocks[0].name == "BASE" and found.blocks[-1].name[:3] == "OUT"
    )
    parameters = sum(p.numel() for module in (model.unet,) for p in module.parameters())
    assert next(part for part in found.parts if part.name == "U-Net").parameters == parameters
    assert sum(block.size for block in found.blocks) == sum(part.size for part in found.parts)
    assert found.metadata["modelspec.title"] == "Named" and found.lineage == lineage
    text = shown(tmp_path / "model.bin")
    for expected in ("checkpoint", "OUT08", "AutoV2", found.hashes["sha256"], "Named", "finetune", "steps=3"):
        assert expected in text
    assert "title: Named" in text and "modelspec.title:" not in text
    told = json.loads(shown(tmp_path / "model.bin", "--json"))
    assert told["hashes"] == found.hashes and told["metadata"]["modelspec.title"] == "Named"
    assert "AutoV2" not in shown(tmp_path / "model.bin", "--quick")


def test_vae_unet_adapter_embedding_and_others(family_files: dict[str, Path], tmp_path: Path) -> None:
    tensors = read_tensors(family_files["sd1"])

    def kind(name: str, content: dict[str, torch.Tensor]) -> Inspection:
        write_tensors(tmp_path / name, content, {})
        return inspect(tmp_path / name)

    vae = {key.removeprefix(VAE): one for key, one in tensors.items() if key.startswith(VAE)}
    assert kind("vae.safetensors", vae).kind == "VAE"
    unet = {key: one for key, one in tensors.items() if key.startswith(UNET)}
    assert kind("unet.safetensors", unet).kind == "U-Net"
    assert kind("x.safetensors", {"a": torch.ones(2), "b": torch.ones(2)}).kind == "weights"
    lora = {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(8, 320),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.ones(320, 8),
        "lora_unet_down_blocks_0_attentions_0_proj_in.alpha": torch.tensor(4.0),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_b": torch.ones(4, 9),
    }
    adapter = kind("lora.safetensors", lora)
    assert adapter.kind == "adapter"
    assert adapter.about == {"method": "LoRA, LoHa", "modules": "2 (1 in text encoders)", "rank": "8, 4"}
    for width in (768, 16):
        save_embedding(Embedding("bad", torch.ones(3, width)), tmp_path, {"modelspec.title": "bad"})
        for ending in ("safetensors", "pt"):
            found = inspect(tmp_path / f"bad.{ending}")
            assert (found.kind, found.about["vectors"]) == ("embedding", f"3 of {width}")
            assert found.hashes["AutoV2"]


ATTENTION = "transformer_blocks.0.attn2.to_k.weight"
HINT = "controlnet_cond_embedding.conv_in.weight"
TOKENS = "embeddings.token_embedding.weight"
FACES = ("ip_adapter.0.to_q_lora.down.weight", "ip_adapter.0.to_q_lora.up.weight")


@pytest.mark.parametrize(
    ("tensors", "kind", "architecture"),
    [
        ({"control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
          f"control_model.input_blocks.1.1.{ATTENTION}": (320, 768)}, "ControlNet", "SD1"),
        ({HINT: (16, 3, 3, 3), f"down_blocks.1.attentions.0.{ATTENTION}": (640, 2048)}, "ControlNet", "SDXL"),
        ({"lora_controlnet": (0,), "input_blocks.0.0.up": (320, 4)}, "ControlNet", ""),
        ({"ip_adapter.1.to_k_ip.weight": (320, 768), FACES[0]: (4, 320), FACES[1]: (320, 4)},
         "IP-Adapter", "SD1"),
        ({"body.0.block1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 64, 3, 3)}, "T2I-Adapter", ""),
        ({"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)}, "T2I-Adapter", ""),
        ({"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
         "upscaler", ""),
        ({f"text_model.{TOKENS}": (9, 768), "a": (1,)}, "text encoder", "CLIP ViT-L, SD1's and SDXL's first"),
        ({f"cond_stage_model.transformer.text_model.{TOKENS}": (9, 768), "logit_scale": ()},
         "text encoder", "CLIP ViT-L, SD1's and SDXL's first"),
        ({"token_embedding.weight": (9, 1280), "ln_final.weight": (1280,)}, "text encoder",
         "OpenCLIP ViT-bigG, SDXL's second"),
        ({"vision_model.embeddings.class_embedding": (1024,), "logit_scale": ()}, "image encoder", ""),
        ({f"{VAE}encoder.conv_in.weight": (128, 3, 3, 3), f"{UNET}x_embedder.proj.weight": (1536, 16, 2, 2)},
         "model of another family", "SD3"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "a": (1,)}, "model of another family",
         "Flux"),
    ],
)  # fmt: skip
def test_what_lies_beside_models(
    tensors: dict[str, tuple[int, ...]], kind: str, architecture: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {key: torch.zeros(shape) for key, shape in tensors.items()}, {})
    found = inspect(path, hashes=False)
    assert (found.kind, found.about.get("architecture", "")) == (kind, architecture)


def test_tensors_in_a_pickles_dictionaries_are_seen(tmp_path: Path) -> None:
    """As Real-ESRGAN's and IP-Adapter's own files have them."""
    upscaler = {"conv_first.weight": torch.ones(64, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.ones(2)}
    face = {"image_proj": {"norm.weight": torch.ones(2)}, "ip_adapter": {"1.to_k_ip.weight": torch.ones(2)}}
    for kind, content in (("upscaler", {"params_ema": upscaler}), ("IP-Adapter", face)):
        torch.save(content, tmp_path / kind)
        assert inspect(tmp_path / kind).kind == kind
        with pytest.raises(FileError, match="holds no tensors"):
            read_tensors(tmp_path / kind)


def test_a_checkpoint_of_averages_alone(family_files: dict[str, Path], tmp_path: Path) -> None:
    tensors = read_tensors(family_files["sd1"])
    averages = {average_key(key) if key.startswith(UNET) else key: one for key, one in tensors.items()}
    write_tensors(tmp_path / "ema.safetensors", averages, {})
    found = inspect(tmp_path / "ema.safetensors")
    assert found.kind == "averages of a checkpoint" and "averages" in [part.name for part in found.parts]
    with pytest.raises(ModelError, match=r"`aid inspect .*` tells what it is"):
        load_checkpoint(tmp_path / "ema.safetensors")


def test_an_sdxl_with_layers_left_out(tmp_path: Path) -> None:
    """SSD-1B has neither the middle's transformers nor most of those around it."""
    shapes = {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), f"{UNET}label_emb.0.0.weight": (1, 2816),
        f"{UNET}input_blocks.4.1.{ATTENTION}": (1, 2048), f"{VAE}encoder.conv_in.weight": (128, 3, 3, 3),
        f"{TEXT_PREFIX['sdxl']}{TOKENS}": (1, 768), f"{TEXT_2}token_embedding.weight": (1, 1280),
        f"{TEXT_2}ln_final.weight": (1280,),
    }  # fmt: skip
    write_tensors(tmp_path / "a.safetensors", {key: torch.zeros(one) for key, one in shapes.items()}, {})
    told = inspect(tmp_path / "a.safetensors").about["architecture"]
    assert told == "stable-diffusion-xl-v1-base with layers left out: 3 of 1,680 tensors of its U-Net"


LORA = "transformer_blocks.0.attn2"
DOWN, UP = torch.ones(4, 1024), torch.ones(320, 4)


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        (  # diffusers' first files
            {
                f"unet.{LORA}.processor.to_k_lora.down.weight": DOWN,
                f"unet.{LORA}.processor.to_k_lora.up.weight": UP,
            },
            {"method": "LoRA", "architecture": "SD2", "modules": "1 (0 in text encoders)", "rank": "4"},
        ),
        (
            {
                "text_encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": torch.ones(2, 768),
                "text_encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": torch.ones(768, 2),
            },
            {
                "method": "LoRA",
                "architecture": "SD1 or SDXL",
                "modules": "1 (1 in text encoders)",
                "rank": "2",
            },
        ),
        (
            {f"{LORA}.to_k.lora.down.weight": DOWN, f"{LORA}.to_k.lora.up.weight": UP},
            {"method": "LoRA", "architecture": "SD2", "modules": "1 (0 in text encoders)", "rank": "4"},
        ),
        (
            {
                f"base_model.model.unet.{LORA}.to_k.lora_A.weight": DOWN,
                f"base_model.model.unet.{LORA}.to_k.lora_B.weight": UP,
                f"base_model.model.unet.{LORA}.to_k.lora_magnitude_vector": torch.ones(320),
            },
            {
                "method": "LoRA, DoRA",
                "architecture": "SD2",
                "modules": "1 (0 in text encoders)",
                "rank": "4",
            },
        ),
        (
            {
                "lora_unet_label_emb_0_0.lokr_w1": torch.ones(2, 2),
                "lora_unet_label_emb_0_0.lokr_w2_a": torch.ones(640, 8),
                "lora_unet_label_emb_0_0.lokr_w2_b": torch.ones(8, 1408),
                "lora_unet_out_0.w_norm": torch.ones(320),
                "lora_unet_out_0.b_norm": torch.ones(320),
            },
            {
                "method": "LoKr, norms",
                "architecture": "SDXL",
                "modules": "2 (0 in text encoders)",
                "rank": "8",
            },
        ),
    ],
)
def test_adapters_are_known_as_their_reader_knows_them(
    tensors: dict[str, torch.Tensor], about: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, {})
    adapter = load_adapter(path)
    assert (adapter.family, len(adapter.changes)) == (about["architecture"], int(about["modules"][0]))
    monkeypatch.setattr(Header, "read", lambda *_: pytest.fail("a tensor is read"))
    found = inspect(path, hashes=False)
    assert (found.kind, found.about) == ("adapter", about)


def test_parts_of_models(family_files: dict[str, Path], tmp_path: Path) -> None:
    convert(family_files["sdxl"], tmp_path / "folder", Conversion())
    whole = inspect(family_files["sdxl"])
    unet, vae = (inspect(tmp_path / "folder" / part) for part in ("unet", "vae"))
    assert (unet.kind, vae.kind) == ("U-Net", "VAE")
    assert vae.about["architecture"].startswith("SD VAE, 4 channels")
    assert unet.parts[0] == next(part for part in whole.parts if part.name == "U-Net")
    tensors = read_tensors(family_files["sdxl"])
    bare = {key.removeprefix(UNET): one for key, one in tensors.items() if key.startswith(UNET)}
    write_tensors(tmp_path / "bare.safetensors", bare, {})
    found = inspect(tmp_path / "bare.safetensors")
    assert (found.kind, found.parts, found.blocks) == ("U-Net", unet.parts, unet.blocks)
    assert [block.name for block in found.blocks] == [block.name for block in whole.blocks]
    no_vae = {key: one for key, one in tensors.items() if not key.startswith(VAE)}
    write_tensors(tmp_path / "no_vae.safetensors", no_vae, read_header(family_files["sdxl"]).metadata)
    found = inspect(tmp_path / "no_vae.safetensors")
    assert (found.kind, found.about) == ("checkpoint without VAE", whole.about)


def test_a_diffusers_folder(family_files: dict[str, Path], tmp_path: Path) -> None:
    model = load_checkpoint(family_files["sdxl"])
    save_checkpoint(model, tmp_path / "folder", {}, torch.bfloat16, "diffusers")
    found = inspect(tmp_path / "folder")
    assert found.kind == "checkpoint" and found.dtypes == {"BF16": sum(found.dtypes.values())}
    assert len(found.blocks) == 20 and list(found.hashes) == ["of its parts"]
    assert not inspect(tmp_path / "folder", hashes=False).hashes


def test_pictures(tmp_path: Path) -> None:
    from aid.sd.picture.infotext import png_bytes

    picture = Image.new("RGB", (8, 16))
    parameters = "a cat\nNegative prompt: dog\nSteps: 3, Sampler: Euler a, Seed: 1"
    lineage = describe("generate", {"steps": 3}, {})
    (tmp_path / "a.jpg").write_bytes(png_bytes(picture, parameters, lineage.embedded()))
    found = inspect(tmp_path / "a.jpg")
    assert (found.kind, found.about["picture"]) == ("picture", "PNG, 8x16")
    assert found.about["parameters"] == parameters and found.lineage == lineage
    assert "Negative prompt: dog" in shown(tmp_path / "a.jpg")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\x00" + parameters.encode("utf-16-be")
    for ending in ("jpg", "webp"):
        picture.save(tmp_path / f"b.{ending}", exif=exif)
        assert inspect(tmp_path / f"b.{ending}").about["parameters"] == parameters
    picture.save(tmp_path / "b.gif", comment=parameters.encode())
    assert inspect(tmp_path / "b.gif").about["parameters"] == parameters
    picture.save(tmp_path / "plain.jpg", comment=b"made with a camera: yes")
    assert "parameters" not in inspect(tmp_path / "plain.jpg").about
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(PictureError, match=r"c\.png is not a readable picture"):
        inspect(tmp_path / "c.png")


@pytest.mark.parametrize("prompt", ["a cat", "猫、青い髪"])
@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"UNICODE\x00", "utf-16-be"), (b"UNICODE\x00", "utf-16-le"), (b"UNICODE\x00", "utf-16"),
        (b"UNICODE\x00", "utf-8"), (b"ASCII\x00\x00\x00", "utf-8"), (bytes(8), "utf-8"), (b"", "utf-8"),
    ],
)  # fmt: skip
def test_tools_encode_comments_each_in_its_own_way(
    head: bytes, encoding: str, prompt: str, tmp_path: Path
) -> None:
    parameters = f"{prompt}\nNegative prompt: dog\nSteps: 3, Sampler: Euler a, Seed: 1"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = head + parameters.encode(encoding)
    Image.new("RGB", (8, 16)).save(tmp_path / "theirs.webp", exif=exif.tobytes())
    assert inspect(tmp_path / "theirs.webp").about["parameters"] == parameters


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"hello"), ("zip", b"PK\x03\x04nothing")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=name):
            inspect(tmp_path / name)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileError, match="does not exist"):
            inspect(missing)


def test_an_artifact_folder_is_its_model(family_files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copyfile(family_files["sd1"], tmp_path / "model.safetensors")
    assert inspect(tmp_path, hashes=False).path == tmp_path / "model.safetensors"
    style = tmp_path / "lora" / "style.safetensors"
    style.parent.mkdir()
    write_tensors(style, {"lora_unet_x.lora_down.weight": torch.ones(1, 2)}, {})
    assert inspect(style.parent).path == style
