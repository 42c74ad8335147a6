"""Adapters baked into a merge some rows at a time: what baking whole tensors gives, whatever the pieces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_chain import narrow

from aid.core.workbench import Workbench
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.adapter.bake import bake
from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.target import skeleton
from aid.sd.adapter.use import Use
from aid.sd.file.tensorfile import read_tensors
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL, Architecture

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"  # of each kind one
VALUE, OUT = QUERY.replace("to_q", "to_v"), QUERY.replace("to_q", "to_out_0")
FEED, ENTER = QUERY.replace("attn1_to_q", "ff_net_2"), QUERY.replace("attn1_to_q", "norm1")
CONV, CP = "lora_unet_down_blocks_1_resnets_0_conv2", "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te1_encoder_layers_0_self_attn_v_proj"


def every_kind(architecture: Architecture, path: Path, seed: int) -> Path:
    chance, targets = torch.Generator().manual_seed(seed), skeleton(architecture)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=chance)

    def pair(name: str, inner: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
        out, into, *edges = targets[name].shape
        up, down = (out, 2, *(1 for _ in edges)), (2, into, *(inner or edges))
        return {f"{name}.lora_up.weight": drawn(*up), f"{name}.lora_down.weight": drawn(*down)}

    shape = targets[VALUE].shape
    half = [(f"{VALUE}.hada_w{n}_{part}", size) for n in "12" for part, size in zip("ab", shape, strict=True)]
    tensors = {name: drawn(*((size, 2) if name.endswith("a") else (2, size))) for name, size in half}
    tensors |= pair(QUERY) | pair(CONV) | pair(TEXT) | pair(FEED) | pair(CP, (1, 1))
    tensors[f"{CP}.lora_mid.weight"] = drawn(2, 2, 3, 3)
    tensors[f"{FEED}.dora_scale"] = 1 + drawn(targets[FEED].shape[0], 1)
    tensors[f"{OUT}.lokr_w1"], tensors[f"{OUT}.lokr_w2"] = (
        drawn(2, 2),
        drawn(*(n // 2 for n in targets[OUT].shape)),
    )
    tensors[f"{OUT}.diff_b"] = drawn(targets[OUT].shape[0])
    tensors[f"{ENTER}.w_norm"], tensors[f"{ENTER}.b_norm"] = drawn(*targets[ENTER].shape), drawn(shape[0])
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("architecture", [TINY, TINY_SD2, TINY_SDXL], ids=lambda one: one.family)
def test_rows_are_what_whole_tensors_are(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = narrow(architecture, tmp_path)["a"]
    loras = {
        name: every_kind(architecture, tmp_path / f"{name}.safetensors", n) for n, name in enumerate("xy")
    }
    settings, inputs = MergeSettings(primary="a"), MergeInputs(models={"a": model}, loras=loras)
    written = []
    for name, rows, stretch, threads in (
        ("whole", 1 << 16, 1 << 20, 1),
        ("rows", 64, 1 << 20, 1),
        ("bits", 64, 1 << 12, 3),
    ):
        monkeypatch.setattr("aid.merge.adapter.ROWS", rows)
        monkeypatch.setattr("aid.merge.stream.STRETCH_BYTES", stretch)
        out = merge(settings, inputs, tmp_path / name, Workbench(threads=threads))
        written.append((out / "model.safetensors").read_bytes())
    assert written[1] == written[2]
    expected = bake(read_tensors(model), architecture, [Use(load_adapter(path)) for path in loras.values()])
    for name in ("whole", "rows"):
        found = load_file(tmp_path / name / "model.safetensors")
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-6, msg=key)
    own = load_file(model)
    changed = {key for key in own if not torch.equal(own[key], found[key])}
    assert len(changed) == 10


def test_baking_imports_neither_diffusers_nor_transformers(tmp_path: Path) -> None:
    model = narrow(TINY, tmp_path)["a"]
    lora = every_kind(TINY, tmp_path / "x.safetensors", 0)
    script = """
import sys
from aid.cli import main
main()
print(*sorted({"diffusers", "transformers"} & set(sys.modules)))
"""
    words = ["merge", "--models", f"base={model}", "--loras", f"x={lora}", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
