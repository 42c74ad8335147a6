"""LoRA: trained here it does the same in diffusers as in AID, for SD1, SD2 and SDXL; it continues bitwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.interrupting import Interrupting

from aid.core.lineage import embedded_lineage
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.fitting import applied
from aid.sd.adapter.use import Use
from aid.sd.file.tensorfile import read_header, read_tensors
from aid.sd.model.architecture import TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint
from aid.train.loop import drop_old
from aid.train.lora import kohya_tensors, lora, put_on
from aid.train.settings import LoraInputs, LoraSettings
from aid.train.weight_types import frozen_types

QUICK = LoraSettings(
    name="tiny", rank=2, alpha=1.0, conv_rank=1, steps=5, batch_size=3, regularisation_share=0.34,
    unet_rate=2e-2, text_rate=1e-2, text_stop=3, warmup=1, save_every=2, checkpointing=False, output="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(lively_checkpoint: Path, dataset: Path) -> LoraInputs:
    return LoraInputs(checkpoint=lively_checkpoint, dataset=dataset)


@pytest.fixture(scope="module")
def straight(inputs: LoraInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(QUICK, inputs, tmp_path_factory.mktemp("straight") / "out", Workbench(threads=1))


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_is_bitwise(inputs: LoraInputs, straight: Path, tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        lora(QUICK, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(stop)))
    lora(QUICK, inputs, tmp_path / "out", Workbench(threads=1))
    for path in straight.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_is_kept_on_the_way_says_so(inputs: LoraInputs, tmp_path: Path) -> None:
    out = lora(QUICK.model_copy(update={"keep_every": 2}), inputs, tmp_path / "out", Workbench(threads=1))
    files = sorted((out / "kept").iterdir())
    told = [read_header(path).metadata for path in files]
    assert [path.stem for path in files] == [one["ss_output_name"] for one in told]
    assert [one["ss_steps"] for one in told] == [str(step) for step in range(2, QUICK.steps, 2)]
    assert all(one["ss_sd_model_name"] == inputs.checkpoint.name for one in told)


def test_the_newest_alone_may_stay(inputs: LoraInputs, tmp_path: Path) -> None:
    few = QUICK.model_copy(update={"keep_every": 1, "keep_newest": 2})
    out = lora(few, inputs, tmp_path / "out", Workbench(threads=1))
    assert {path.stem for path in (out / "kept").iterdir()} == {"tiny-000003", "tiny-000004"}
    (out / "kept" / "tiny-1000000.safetensors").touch()
    drop_old(out / "kept", 1)
    assert [path.stem for path in (out / "kept").iterdir()] == ["tiny-1000000"]


def test_the_model_beside_is_in_sixteen_bits_for_nothing(
    inputs: LoraInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 it is what autocast makes of it: the LoRA has the same bits as beside one in float32."""
    half = QUICK.model_copy(update={"precision": "bf16"})
    assert load_checkpoint(inputs.checkpoint, "cpu", frozen_types(half)).dtype == torch.bfloat16
    small = lora(half, inputs, tmp_path / "small", Workbench(threads=1))
    monkeypatch.setattr("aid.train.lora.frozen_types", lambda _: torch.float32)
    large = lora(half, inputs, tmp_path / "large", Workbench(threads=1))
    expected = read_tensors(large / "tiny.safetensors")
    assert all(
        torch.equal(one, expected[name]) for name, one in read_tensors(small / "tiny.safetensors").items()
    )


def unet_output(unet: torch.nn.Module, context: torch.Tensor) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return unet(x, torch.tensor([10, 700]), context).sample


def test_in_diffusers_it_does_what_it_does_here(straight: Path, lively_checkpoint: Path) -> None:
    adapter = load_adapter(straight / "tiny.safetensors")
    ours, theirs = load_checkpoint(lively_checkpoint), load_checkpoint(lively_checkpoint)
    words = ours.tokenizer(["by alpha, red hair"] * 2, padding="max_length", return_tensors="pt").input_ids
    pipe = StableDiffusionPipeline(
        theirs.vae, theirs.text_encoder, theirs.tokenizer, theirs.unet, None, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(straight / "tiny.safetensors")
    with torch.no_grad():
        plain = ours.text_encoder(words).last_hidden_state
    before = unet_output(ours.unet, plain)
    with applied(ours, [Use(adapter)]) as matches, torch.no_grad():
        assert not matches[0].unmatched
        text = ours.text_encoder(words).last_hidden_state
        picture = unet_output(ours.unet, plain)
        torch.testing.assert_close(pipe.text_encoder(words).last_hidden_state, text, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(unet_output(pipe.unet, plain), picture, atol=1e-5, rtol=1e-4)
    assert (picture - before).abs().max() > 1e-2 and (text - plain).abs().max() > 1e-3


def test_what_is_trained_is_what_is_saved(lively_checkpoint: Path) -> None:
    """The hooks of training compute what the file, put on, does."""
    model, plain = load_checkpoint(lively_checkpoint), load_checkpoint(lively_checkpoint)
    pairs = put_on(model, QUICK)
    chance = torch.Generator().manual_seed(0)
    for pair in pairs.values():
        pair.up.data.normal_(std=0.1, generator=chance)
    context = torch.randn(2, 77, 16, generator=chance)
    from aid.sd.adapter.file import save_adapter

    path = lively_checkpoint.with_name("pairs.safetensors")
    save_adapter(path, kohya_tensors(pairs), {}, torch.float32)
    with applied(plain, [Use(load_adapter(path))]):
        expected = unet_output(plain.unet, context)
    torch.testing.assert_close(unet_output(model.unet, context), expected, atol=1e-4, rtol=1e-3)


def test_the_file_tells_kohyas_words_and_its_past(straight: Path) -> None:
    path = straight / "tiny.safetensors"
    told = read_header(path).metadata
    assert told["ss_network_dim"] == "2" and told["ss_base_model_version"] == "sd_v1"
    assert told["ss_network_module"] == "networks.lora" and len(told["sshs_model_hash"]) == 64
    assert json.loads(told["ss_network_args"])["conv_dim"] == "1"
    assert json.loads(told["ss_tag_frequency"])["dataset"]["by alpha"] == 6
    assert told["modelspec.architecture"].endswith("/lora") and not [k for k in told if "_at" in k]
    made = embedded_lineage(path)
    assert made is not None and made.node.verb == "train lora"


def test_without_convolutions_and_text_it_is_smaller(inputs: LoraInputs, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"steps": 1, "conv_rank": 0, "text_rate": 0.0, "output": "fp16"})
    made = read_tensors(lora(settings, inputs, tmp_path / "out") / "tiny.safetensors")
    assert made and all(key.startswith("lora_unet_") and "resnets" not in key for key in made)
    assert {tensor.dtype for tensor in made.values()} == {torch.float16}
    assert len(made) % 3 == 0


def test_blocks_at_rate_zero_learn_nothing(inputs: LoraInputs, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"steps": 2, "block_rates": {"IN": 0.0, "BASE": 0.0, "OUT": 0.5}})
    made = read_tensors(lora(settings, inputs, tmp_path / "out") / "tiny.safetensors")
    moved = {key.split("_blocks")[0] for key, up in made.items() if "lora_up" in key and up.any()}
    assert any("up" in name for name in moved) and any("mid" in key for key in made if made[key].any())
    assert not any(made[key].any() for key in made if "lora_up" in key and ("_down_" in key or "_te_" in key))


@pytest.mark.parametrize("architecture", [TINY_SD2, TINY_SDXL], ids=["sd2", "sdxl"])
def test_sd2_and_sdxl_learn(architecture: Architecture, dataset: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_checkpoint(create_checkpoint(architecture, 1), base, {})
    second = {"text_2_rate": 1e-2} if architecture.text_2_width else {}
    settings = QUICK.model_copy(update={"steps": 2, "conv_rank": 0, "text_stop": 0, **second})
    out = lora(settings, LoraInputs(checkpoint=base, dataset=dataset), tmp_path / "out")
    adapter = load_adapter(out / "tiny.safetensors")
    model = load_checkpoint(base)
    with applied(model, [Use(adapter)]) as matches:
        assert not matches[0].unmatched
    assert read_header(out / "tiny.safetensors").metadata["ss_clip_skip"] == "None", "they have none"
    parts = {"lora_te1_", "lora_te2_"} if architecture.family == "sdxl" else {"lora_te_"}
    raws = {change.raw for change in adapter.changes.values()}
    assert all(any(raw.startswith(part) for raw in raws) for part in parts)


def test_a_block_without_anything_trained_is_refused(inputs: LoraInputs, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"text_rate": 0.0, "block_rates": {"BASE": 0.5}})
    with pytest.raises(SettingsError, match="block_rates names BASE"):
        lora(settings, inputs, tmp_path / "out")
    with pytest.raises(ValueError, match="Did you mean"):
        LoraSettings(steps=1, block_rates={"IM05": 1.0})
