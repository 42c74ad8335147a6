"""Chains of steps, conventions and the stream: as a person meets them, and against sd-mecha (PyPI)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import aid.merge.streaming.stream as stream
from aid.cli import main
from aid.core.workbench import Workbench
from aid.errors import ModelError, SettingsError
from aid.merge.arithmetic.portable import PORTABLE
from aid.merge.arithmetic.sums import kernel
from aid.merge.recipe.curve import numbers_of
from aid.merge.recipe.recipe import plan
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.model.architecture import TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
TIME = "model.diffusion_model.time_embed.0.weight"
LABEL = "model.diffusion_model.label_emb.0.0.weight"
HEAD = "model.diffusion_model.out.2.weight"
VAE = "first_stage_model.decoder.conv_out.weight"
MIDDLE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
Tensors = dict[str, torch.Tensor]


def family_of_three(base: Path, folder: Path) -> dict[str, Path]:
    """Three fp16 models, no two tensors of which are equal."""
    with safe_open(base, "pt") as file:
        metadata = file.metadata()
    for seed, name in enumerate("abc"):
        chance = torch.Generator().manual_seed(seed)
        tensors = {
            key: tensor
            if key.endswith("position_ids")
            else (tensor.float() + 0.1 * torch.randn(tensor.shape, generator=chance)).half()
            for key, tensor in load_file(base).items()
        }
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    return {name: folder / f"{name}.safetensors" for name in "abc"}


@pytest.fixture(scope="session")
def trio(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return family_of_three(tiny_checkpoint, tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return narrow(TINY_SDXL, tmp_path_factory.mktemp("sdxl"))


def narrow(architecture: Architecture, folder: Path) -> dict[str, Path]:
    save_checkpoint(create_checkpoint(architecture, seed=3), folder / "base.safetensors", {})
    return family_of_three(folder / "base.safetensors", folder)


def merged(models: dict[str, Path], out: Path, **settings: object) -> Tensors:
    merge(MergeSettings.model_validate(settings), MergeInputs(models=models), out, Workbench(threads=2))
    return load_file(out / "model.safetensors")


def doubles(models: dict[str, Path]) -> list[dict[str, np.ndarray]]:
    return [{key: t.double().numpy() for key, t in load_file(path).items()} for path in models.values()]


def assert_rounded_once(result: Tensors, exact: dict[str, np.ndarray]) -> None:
    for key, tensor in result.items():
        if not key.endswith("position_ids"):
            spacing = np.spacing(np.abs(exact[key]).astype(np.float16)).astype(np.float64)
            error = np.abs(tensor.double().numpy() - exact[key]) / spacing
            assert np.max(error, initial=0) <= 0.50001, key


LINEAR = {
    "weighted_sum": lambda a, b, c: 0.7 * a + 0.3 * b,
    "add_difference": lambda a, b, c: a + 0.3 * (b - c),
    "subtract": lambda a, b, c: a - 0.3 * (b - c),
    "sum_twice": lambda a, b, c: 0.6 * (0.7 * a + 0.3 * b) + 0.4 * c,
    "triple_sum": lambda a, b, c: 0.3 * a + 0.3 * b + 0.4 * c,
}


@pytest.mark.parametrize("mode", LINEAR)
def test_a_mode_is_its_formula_rounded_once(trio: dict[str, Path], tmp_path: Path, mode: str) -> None:
    models = list("ab" if mode == "weighted_sum" else "abc")
    chain = [{"mode": mode, "models": models, "alpha": 0.3, "beta": 0.4}]
    a, b, c = doubles(trio)
    exact = {key: LINEAR[mode](a[key], b[key], c[key]) for key in a}
    assert_rounded_once(merged(trio, tmp_path / "out", chain=chain), exact)


@pytest.fixture(scope="module")
def near(trio: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models, five spacings of fp16 apart, so that decimal weights often hit the middle between two
    numbers."""
    folder = tmp_path_factory.mktemp("near")
    with safe_open(trio["a"], "pt") as file:
        metadata = file.metadata()
    for number, name in enumerate("abc"):
        tensors = {
            key: tensor if key.endswith("ids") else (tensor.view(torch.int16) + 5 * number).view(torch.half)
            for key, tensor in load_file(trio["a"]).items()
        }
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    return {name: folder / f"{name}.safetensors" for name in "abc"}


def test_the_order_of_what_is_added_never_matters(near: dict[str, Path], tmp_path: Path) -> None:
    def made(out: str, models: dict[str, Path], **settings: object) -> torch.Tensor:
        every = merged(models, tmp_path / out, **settings)
        return torch.cat([tensor.flatten() for key, tensor in sorted(every.items()) if key.startswith("m")])

    def chained(out: str, mode: str, models: str, alpha: float, beta: float = 0.0) -> torch.Tensor:
        return made(out, near, chain=[{"mode": mode, "models": [*models], "alpha": alpha, "beta": beta}])

    all_blocks = {"BASE": 0.3, "IN": 0.3, "M00": 0.3, "OUT": 0.3}
    others = {"BASE": 0.4, "IN": 0.4, "M00": 0.4, "OUT": 0.4}
    a, b, c = (near[name] for name in "abc")
    one = made("one", {"a": a, "b": b, "c": c}, primary="a", weights={"b": all_blocks, "c": others})
    two = made("two", {"a": a, "b": c, "c": b}, primary="a", weights={"c": all_blocks, "b": others})
    three = made("three", {"x": a, "y": b, "z": c}, primary="y", weights={"x": all_blocks, "z": others})
    assert torch.equal(one, two) and torch.equal(one, three)
    assert torch.equal(chained("four", "triple_sum", "abc", 0.3, 0.4), one)
    assert torch.equal(chained("five", "triple_sum", "bac", 0.3, 0.4), one)
    assert torch.equal(chained("six", "triple_sum", "cba", 0.3, 0.3), one)
    forth = chained("seven", "weighted_sum", "ab", 0.3)
    assert torch.equal(forth, chained("eight", "weighted_sum", "ba", 0.7))
    spread = [chained(f"dare {n}", "ties", f"a{n}", 0.5, 0.5) for n in ("bc", "cb")]
    assert torch.equal(*spread)


def test_a_chain_of_any_depth_is_one_sum(trio: dict[str, Path], tmp_path: Path) -> None:
    chain = [
        {
            "name": "x",
            "mode": "add_difference",
            "models": ["a", "b", "c"],
            "alpha": {"IN": 0.5, "BASE": 0.25},
        },
        {"name": "y", "models": ["x", "c"], "alpha": {"OUT": 0.3}, "elements": ["OUT03-05:attn:1.0"]},
        {"name": "z", "mode": "subtract", "models": ["y", "x", "a"], "alpha": 0.125, "freeze": ["M00"]},
    ]
    a, b, c = doubles(trio)
    exact = {}
    for key in a:
        block = block_of(key)
        first = {"IN": 0.5, "BA": 0.25}.get(block[:2], 0.0)
        second = 0.3 if block.startswith("OUT") else 0.0
        second = 1.0 if block in ("OUT03", "OUT04", "OUT05") and "attn" in key else second
        x = a[key] + first * (b[key] - c[key])
        y = (1 - second) * x + second * c[key]
        exact[key] = y if block == "M00" else y - 0.125 * (x - a[key])
    out = tmp_path / "out"
    assert_rounded_once(merged(trio, out, chain=chain), exact)
    blocks = json.loads((out / "blocks.json").read_bytes())
    assert blocks["IN00"]["shares"] == pytest.approx({"a": 1.0, "b": 0.4375, "c": -0.4375})
    assert blocks["M00"]["shares"] == {"a": 1.0}


def test_what_cancels_out_is_not_read(trio: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(trio["c"])
    tensors = {
        key: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }
    with safe_open(trio["c"], "pt") as file:
        save_file(tensors, tmp_path / "c.safetensors", file.metadata())
    models = {**trio, "c": tmp_path / "c.safetensors"}
    chain = [
        {"name": "sum", "mode": "add_difference", "models": ["a", "c", "b"], "alpha": 1.0},
        {"mode": "subtract", "models": ["sum", "c", "b"], "alpha": 1.0},
    ]
    result, own = merged(models, tmp_path / "out", chain=chain), load_file(trio["a"])
    assert all(torch.equal(result[key], own[key]) for key in own)


def test_torch_writes_the_kernel_s_bytes_and_threads_change_nothing(
    trio: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MergeSettings(
        preset="aid-v1", weights={"b": {"IN": 0.3}, "c": {"BASE": 0.1, "OUT": 0.9}}, primary="a"
    )
    settings = settings.model_copy(update={"preset": ""})
    inputs, written = MergeInputs(models=trio), []
    for name, threads, size in (("one", 1, 1 << 20), ("three", 3, 4 << 10), ("torch", 2, 48 << 10)):
        monkeypatch.setattr(stream, "STRETCH_BYTES", size)
        if name == "torch":
            monkeypatch.setattr(stream, "arithmetic", lambda formats: PORTABLE)
        out = merge(settings, inputs, tmp_path / name, Workbench(threads=threads))
        written.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert kernel() is None or written[0] == written[2]
    assert written[0] == written[1]


def test_merging_imports_no_torch_and_little_memory(trio: dict[str, Path], tmp_path: Path) -> None:
    if kernel() is None:
        pytest.skip("the kernel isn't built: python hatch_build.py")
    script = """
import sys
from aid.cli import main
main()
status = open("/proc/self/status").read()
peak = int(status.partition("VmHWM:")[2].split()[0])
print(peak, *sorted({"torch", "numpy"} & set(sys.modules)))
"""
    words = [word for name, path in trio.items() for word in ("--models", f"{name}={path}")]
    words += ["--set", "chain=[{models = ['a', 'b']}]", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, "merge", *words], capture_output=True, text=True, check=True
    )
    peak, *loaded = done.stdout.splitlines()[-1].split()
    assert loaded == []
    assert int(peak) < 64 << 10


def test_broken_tensors_can_be_kept_and_are_named(trio: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(trio["b"])
    tensors[FIRST_CONV].view(-1)[5] = torch.inf
    with safe_open(trio["b"], "pt") as file:
        save_file(tensors, tmp_path / "b.safetensors", file.metadata())
    models = {**trio, "b": tmp_path / "b.safetensors"}
    chain = [{"models": ["a", "b"]}]
    with pytest.raises(
        ModelError, match=rf"b \(.*b.safetensors\): {re.escape(FIRST_CONV)} holds NaN or infinity"
    ):
        merged(models, tmp_path / "out", chain=chain)
    result = merged(models, tmp_path / "out", chain=chain, broken="keep")
    assert torch.isinf(result[FIRST_CONV]).sum() == 1
    assert list(json.loads((tmp_path / "out/broken.json").read_bytes())) == [FIRST_CONV]


@pytest.mark.parametrize("mode", ["ties", "ties_mass", "dare", "train_difference", "slerp", "cosine_a"])
@pytest.mark.parametrize("model", ["a", "b"])
def test_what_a_mode_leaves_out_may_be_broken_too(
    mode: str, model: str, trio: dict[str, Path], tmp_path: Path
) -> None:
    """Modes that drop values could drop a NaN, and nobody would know."""
    tensors = load_file(trio[model])
    tensors[FIRST_CONV].view(-1)[5] = torch.nan
    models = trio | {model: tmp_path / "broken.safetensors"}
    with safe_open(trio[model], "pt") as file:
        save_file(tensors, models[model], file.metadata())
    names = ["a", "b", "c"] if mode == "train_difference" else ["a", "b"]
    chain = [{"mode": mode, "models": names, "alpha": 0.1, "beta": 0.1}]
    with pytest.raises(ModelError, match=rf"{model} \(.*\): {re.escape(FIRST_CONV)} holds NaN or infinity"):
        merged(models, tmp_path / "out", chain=chain)


GIVERS = {  # of A's and B's tensors under each convention, when IN00 alone is 1
    "mbw": {TIME: "b", LABEL: "a", HEAD: "a", VAE: "a"},
    "supermerger": {TIME: "b", LABEL: "b", HEAD: "a", VAE: "a"},
    "mecha": {TIME: "a", LABEL: "a", HEAD: "a", VAE: "a"},
}


@pytest.mark.parametrize("convention", GIVERS)
def test_the_same_numbers_mean_what_each_tool_means(
    sdxl: dict[str, Path], tmp_path: Path, convention: str
) -> None:
    chain = [{"models": ["a", "b"], "alpha": {"IN00": 1.0}}]
    result = merged(sdxl, tmp_path / "out", chain=chain, convention=convention)
    parents = {name: load_file(path) for name, path in sdxl.items()}
    for key, giver in {**GIVERS[convention], FIRST_CONV: "b"}.items():
        assert torch.equal(result[key], parents[giver][key]), key


def test_conventions_place_vae_head_and_projection(sdxl: dict[str, Path], tmp_path: Path) -> None:
    parents = {name: load_file(path) for name, path in sdxl.items()}
    projection = "conditioner.embedders.1.model.text_projection"
    for convention, alpha, givers in (
        ("mecha", {"VAE": 1.0, "OUT08": 1.0}, {VAE: "b", HEAD: "b", projection: "a"}),
        ("mecha", {"BASE": 1.0}, {VAE: "a", TIME: "b", LABEL: "b", projection: "b"}),
        ("supermerger", {"BASE": 1.0}, {VAE: "b", TIME: "a", projection: "a"}),
        ("mbw", {"BASE": 1.0}, {VAE: "b", LABEL: "b", projection: "b"}),
    ):
        out = tmp_path / f"{convention}-{'-'.join(alpha)}"
        result = merged(sdxl, out, chain=[{"models": ["a", "b"], "alpha": alpha}], convention=convention)
        for key, giver in givers.items():
            assert torch.equal(result[key], parents[giver][key]), (convention, key)
    with pytest.raises(SettingsError, match="VAE is not a block of sdxl"):
        merged(sdxl, tmp_path / "bad", chain=[{"models": ["a", "b"], "alpha": {"VAE": 1.0}}])


def test_curves_and_families() -> None:
    settings = MergeSettings.model_validate({"chain": [{"models": ["a", "b"], "alpha": "GRAD_V"}]})
    sd1, sdxl = (plan(settings, ["a", "b"], family) for family in ("sd1", "sdxl"))
    assert sd1.shares("OUT11") == {"b": 1.0}
    assert sd1.shares("M00") == {"a": 1.0}
    assert sd1.shares("IN06") == {"a": 0.5, "b": 0.5}
    assert sdxl.shares("IN08") == pytest.approx(sd1.shares("IN08"))
    assert "IN09" not in sdxl.blocks
    with pytest.raises(SettingsError, match=r"GRAD_W is no curve of weights.*Did you mean GRAD_V\?"):
        plan(MergeSettings.model_validate({"chain": [{"models": ["a", "b"], "alpha": "GRAD_W"}]}), ["a", "b"])


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ("SMOOTHSTEP*2", "2SMOOTHSTEP"),
        ("R_SMOOTHSTEP*4", "4R_SMOOTHSTEP"),
        ("SMOOTHSTEP/2", "HALF_SMOOTHSTEP"),
        ("R_SMOOTHSTEP/3", "ONE_THIRD_R_SMOOTHSTEP"),
        ("smoothstep/4", "ONE_FOURTH_SMOOTHSTEP"),
        ("REVERSE-SMOOTHSTEP", "REVERSE_SMOOTHSTEP"),
    ],
)
def test_curves_have_supermerger_s_names_too(theirs: str, own: str) -> None:
    one, other = (
        plan(MergeSettings.model_validate({"chain": [{"models": ["a", "b"], "alpha": name}]}), ["a", "b"])
        for name in (theirs, own)
    )
    assert one.by_model() == other.by_model()
    with pytest.raises(SettingsError, match=r"SMOOTHSTEP\*9 is no curve of weights; expected .*2SMOOTHSTEP"):
        numbers_of("SMOOTHSTEP*9", "alpha", "sd1", ())


def test_sd2_is_merged_too(tmp_path: Path) -> None:
    models = narrow(TINY_SD2, tmp_path)
    result = merged(models, tmp_path / "out", chain=[{"models": ["a", "b"], "alpha": 0.5}])
    a, b, _ = doubles(models)
    assert_rounded_once(result, {key: 0.5 * a[key] + 0.5 * b[key] for key in a})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chain": [{"models": ["a", "b"], "mode": "weighted_sun"}]}, "Did you mean weighted_sum"),
        ({"chain": [{"models": ["a"]}]}, "step 1 of the chain gives weighted_sum 1 models; expected 2"),
        ({"chain": [{"models": ["a", "d"]}]}, "step 1 of the chain names d"),
        ({"chain": [{"name": "a", "models": ["a", "b"]}]}, "a name that is taken"),
        ({"chain": [{"models": ["a", "b"]}], "primary": "a"}, "given beside preset"),
        ({"chain": [{"models": ["a", "b"], "alpha": {"IN12": 1}}]}, "IN12 is not a block of sd1"),
        ({"chain": [{"models": ["a", "b"], "alpha": float("inf")}]}, "alpha is inf"),
        ({"chain": [{"models": ["a", "b"], "elements": ["IN:attn"]}]}, "no rule for elements"),
        ({"chain": [{"models": ["a", "b"], "freeze": ["OUT12"]}]}, "OUT12 is not a block"),
        (
            {"chain": [{"mode": "ties", "models": ["a", "b"]}]},
            "beta is 0; expected for ties the share of the differences that is kept, above 0 and at most 1",
        ),
        ({"chain": [{"mode": "dare", "models": ["a", "b"], "beta": 1}]}, "is dropped, from 0 to below 1"),
    ],
)
def test_steps_that_cannot_be_meant_are_named(
    trio: dict[str, Path], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        merged(trio, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_adapters_are_baked_by_block_and_negative_ones_take_away(
    trio: dict[str, Path], tmp_path: Path
) -> None:
    name, key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "attn1.to_q.weight"
    chance = torch.Generator().manual_seed(5)
    up, down = torch.randn(8, 2, generator=chance), torch.randn(2, 8, generator=chance)
    lora = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(lora, tmp_path / "l.safetensors")
    inputs = MergeInputs(models=trio, loras={"l": tmp_path / "l.safetensors"})
    for number, (weight, expected) in enumerate([({"IN01": -0.5}, -0.5), ({"IN02": 3}, 0.0), (0.25, 0.25)]):
        chain = [{"models": ["a", "b"], "alpha": 0.5}]
        settings = MergeSettings.model_validate({"chain": chain, "lora_weights": {"l": weight}})
        result = load_file(merge(settings, inputs, tmp_path / f"out{number}") / "model.safetensors")
        changed = f"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.{key}"
        a, b = (load_file(trio[model])[changed].float() for model in "ab")
        exact = 0.5 * a + 0.5 * b + expected * 0.5 * (up @ down)
        torch.testing.assert_close(result[changed], exact.half(), rtol=1e-3, atol=1e-5)
    with pytest.raises(SettingsError, match="names k, which is not among the LoRAs; expected l"):
        merge(settings.model_copy(update={"lora_weights": {"k": 1.0}}), inputs, tmp_path / "bad")


def test_adapters_are_baked_from_the_command_line(trio: dict[str, Path], tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = load_file(trio["a"])[MIDDLE].shape[0]
    lora = {f"{name}.lora_up.weight": torch.ones(width, 1), f"{name}.lora_down.weight": torch.ones(1, width)}
    save_file(lora, tmp_path / "l.safetensors")
    words = ["--models", f"base={trio['a']}", "--loras", f"l={tmp_path / 'l.safetensors'}"]
    main(["merge", *words, "--set", "lora_weights.l=-0.5", "--out", str(tmp_path / "out")])
    result = load_file(tmp_path / "out/model.safetensors")[MIDDLE]
    torch.testing.assert_close(result, load_file(trio["a"])[MIDDLE] - 0.5, rtol=1e-3, atol=1e-3)


def test_pruning_leaves_the_model_alone(trio: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(trio["a"])
    extra = {"betas": torch.ones(4), "model_ema.diffusion_modelout2weight": torch.ones(4)}
    with safe_open(trio["a"], "pt") as file:
        save_file(tensors | extra, tmp_path / "a.safetensors", file.metadata())
    models, chain = {**trio, "a": tmp_path / "a.safetensors"}, [{"models": ["a", "b"]}]
    assert merged(models, tmp_path / "whole", chain=chain).keys() == tensors.keys() | extra.keys()
    assert merged(models, tmp_path / "pruned", chain=chain, prune=True).keys() == tensors.keys()
