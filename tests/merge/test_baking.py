"""Adapters baked into a merge: as wearing them does, in the same bytes whatever the pieces, without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_chain import narrow

from aid.core.workbench import Silence, Workbench
from aid.errors import ModelError
from aid.merge.arithmetic.magnitude import Rows, add_decomposed, add_squares, no_squares, norms_of
from aid.merge.arithmetic.product import Matrix, add_multiplied, add_product
from aid.merge.arithmetic.sums import kernel
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.adapter.file import load_adapter
from aid.sd.adapter.fitting import applied
from aid.sd.adapter.kind import KINDS, decompose
from aid.sd.adapter.target import skeleton
from aid.sd.adapter.use import Use
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import load_checkpoint, save_checkpoint

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"  # of each kind one
VALUE, OUT = QUERY.replace("to_q", "to_v"), QUERY.replace("to_q", "to_out_0")
FEED, ENTER = QUERY.replace("attn1_to_q", "ff_net_2"), QUERY.replace("attn1_to_q", "norm1")
CONV, CP = "lora_unet_down_blocks_1_resnets_0_conv2", "lora_unet_mid_block_resnets_0_conv1"
QUERY_KEY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
TEXT, PROJECTION = "lora_te1_encoder_layers_0_self_attn_v_proj", "lora_te2_text_projection"


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
    if PROJECTION in targets:  # which the file keeps transposed
        tensors |= pair(PROJECTION)
    tensors |= pair(QUERY) | pair(CONV) | pair(TEXT) | pair(FEED) | pair(CP, (1, 1))
    tensors[f"{CP}.lora_mid.weight"] = drawn(2, 2, 3, 3)
    tensors[f"{FEED}.dora_scale"] = 1 + drawn(targets[FEED].shape[0], 1)
    tensors[f"{TEXT}.dora_scale"] = 1 + drawn(1, targets[TEXT].shape[1])  # one for each input, and so:
    tensors[f"{CONV}.dora_scale"] = 1 + drawn(1, targets[CONV].shape[1], 1, 1)
    tensors[f"{OUT}.lokr_w1"], tensors[f"{OUT}.lokr_w2"] = (
        drawn(2, 2),
        drawn(*(n // 2 for n in targets[OUT].shape)),
    )
    tensors[f"{OUT}.diff_b"] = drawn(targets[OUT].shape[0])
    tensors[f"{ENTER}.w_norm"], tensors[f"{ENTER}.b_norm"] = drawn(*targets[ENTER].shape), drawn(shape[0])
    save_file(tensors, path)
    return path


FAMILIES = pytest.mark.parametrize("architecture", [TINY, TINY_SD2, TINY_SDXL], ids=lambda one: one.family)


def baked(model: Path, loras: Sequence[Path], out: Path, threads: int = 2, **settings: object) -> Path:
    inputs = MergeInputs(models={"a": model}, loras={path.stem: path for path in loras})
    made = merge(MergeSettings(primary="a", **settings), inputs, out, Workbench(threads=threads))  # type: ignore[arg-type]
    return made / "model.safetensors"


def two_adapters(architecture: Architecture, folder: Path) -> list[Path]:
    return [every_kind(architecture, folder / f"{name}.safetensors", seed) for seed, name in enumerate("xy")]


@FAMILIES
def test_baking_gives_what_wearing_does(architecture: Architecture, tmp_path: Path) -> None:
    """In a file, under LDM's names, OpenCLIP's joined q, k and v and the projection included."""
    own, loras = narrow(architecture, tmp_path)["a"], two_adapters(architecture, tmp_path)
    model = load_checkpoint(own, dtype=torch.float32)
    with applied(model, [Use(load_adapter(path)) for path in loras]):
        save_checkpoint(model, tmp_path / "worn.safetensors", {}, torch.float32)
    worn, given = load_file(tmp_path / "worn.safetensors"), load_file(own)
    for precision, exactness in (("fp32", 1e-5), ("fp16", 1e-3)):
        found = load_file(baked(own, loras, tmp_path / precision, precision=precision))
        assert found.keys() == worn.keys()
        for key, tensor in worn.items():
            torch.testing.assert_close(
                found[key].to(tensor.dtype), tensor, rtol=exactness, atol=1e-5, msg=key
            )
    changed = {key for key in given if not torch.equal(given[key], found[key].to(given[key].dtype))}
    assert len(changed) == 10 + (architecture.family == "sdxl")


@FAMILIES
def test_the_pieces_make_no_difference(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, loras = narrow(architecture, tmp_path)["a"], two_adapters(architecture, tmp_path)
    written = set()
    for name, rows, stretch, threads in (
        ("whole", 1 << 16, 1 << 20, 1),
        ("rows", 64, 1 << 20, 1),
        ("bits", 64, 1 << 12, 3),
        ("plain", 1 << 16, 1 << 20, 1),
    ):
        monkeypatch.setattr("aid.merge.streaming.adapter.ROWS", rows)
        monkeypatch.setattr("aid.merge.streaming.stream.STRETCH_BYTES", stretch)
        if name == "plain":
            monkeypatch.setattr("aid.merge.arithmetic.sums.kernel", lambda: None)
            monkeypatch.setattr("aid.merge.arithmetic.product.kernel", lambda: None)
            monkeypatch.setattr("aid.merge.arithmetic.magnitude.kernel", lambda: None)
        written.add(baked(own, loras, tmp_path / name, threads).read_bytes())
    assert len(written) == 1


SIZES = st.integers(1, 21)


@given(rows=SIZES, rank=SIZES, columns=SIZES, working=st.sampled_from(["F32", "F64"]), seed=st.integers(0, 9))
def test_products_are_rounded_once(rows: int, rank: int, columns: int, working: str, seed: int) -> None:
    """By the kernel with and without vector instructions, and by numpy."""
    chance, native = np.random.default_rng(seed), kernel()
    left, right = (chance.standard_normal(size, np.float32) for size in ((rows, rank), (rank, columns)))
    before = chance.standard_normal((rows, columns)).astype({"F32": np.float32, "F64": np.float64}[working])
    exact = before + 0.7 * (left.astype(np.float64) @ right.astype(np.float64))
    found = []
    for way in (native, native and replace(native, plainly=True), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aid.merge.arithmetic.product.kernel", lambda way=way: way)
            out = before.copy()
            add_product(matrix(left), matrix(right), 0.7, out.data.cast("B"), working)
        found.append(out.tobytes())
    assert len(set(found)) == 1
    spacing = np.spacing(np.abs(exact).astype(before.dtype)).astype(np.float64)
    slack = 1e-12 if working == "F64" else 0.500001 * spacing
    assert (np.abs(out - exact) <= slack).all()


@given(rows=SIZES, rank=SIZES, columns=SIZES, working=st.sampled_from(["F32", "F64"]), seed=st.integers(0, 9))
def test_products_of_products_are_those_of_floats(
    rows: int, rank: int, columns: int, working: str, seed: int
) -> None:
    """By the kernel with and without vector instructions, and by numpy: as each product alone would be."""
    chance, native = np.random.default_rng(seed), kernel()
    dtype = {"F32": np.float32, "F64": np.float64}[working]
    one, other = (
        tuple(chance.standard_normal(size, np.float32) for size in ((rows, rank), (rank, columns)))
        for _ in range(2)
    )
    before = chance.standard_normal((rows, columns)).astype(dtype)
    halves = np.zeros((2, rows, columns), np.float32)
    for pair, half in zip((one, other), halves, strict=True):
        add_product(*map(matrix, pair), 1.0, half.data.cast("B"), "F32")
    found = {(before + (halves[0] * halves[1]).astype(dtype) * 0.7 * 0.3).tobytes()}
    for way in (native, native and replace(native, plainly=True), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aid.merge.arithmetic.product.kernel", lambda way=way: way)
            out = before.copy()
            pairs = ((matrix(left), matrix(right)) for left, right in (one, other))
            add_multiplied(*pairs, 0.7, 0.3, out.data.cast("B"), working)
        found.add(out.tobytes())
    assert len(found) == 1


def matrix(array: np.ndarray) -> Matrix:
    return Matrix(array.data.cast("B"), *array.shape)


@given(
    outputs=SIZES,
    inputs=SIZES,
    each=st.sampled_from([1, 9]),
    working=st.sampled_from(["F32", "F64"]),
    by_inputs=st.booleans(),
    seed=st.integers(0, 9),
)
def test_magnitudes_are_put_on_in_parts(
    outputs: int, inputs: int, each: int, working: str, by_inputs: bool, seed: int
) -> None:
    """By the kernel with and without vector instructions, and by numpy, at once and row by row: the same
    bytes, and what torch makes of the whole in doubles."""
    chance, native = np.random.default_rng(seed), kernel()
    dtype = {"F32": np.float32, "F64": np.float64}[working]
    before = chance.standard_normal((outputs, inputs, each)).astype(dtype)
    delta = chance.standard_normal(before.shape, np.float32)
    magnitude = 1 + chance.standard_normal((1, inputs, 1) if by_inputs else (outputs, 1, 1), np.float32)
    found = []
    for way, height in (
        (native, outputs),
        (native, 1),
        (native and replace(native, plainly=True), 3),
        (None, 2),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aid.merge.arithmetic.magnitude.kernel", lambda way=way: way)
            out, squares = before.copy(), no_squares(inputs)
            parts = [slice(at, at + height) for at in range(0, outputs, height)]
            rows = [
                Rows(raw(out[own]), working, len(out[own]), inputs, each, raw(delta[own]), 0.7)
                for own in parts
            ]
            for own in rows:
                add_squares(own, squares)
            norms = norms_of(squares) if by_inputs else None
            for own, part in zip(rows, parts, strict=True):
                add_decomposed(own, 0.6, raw(magnitude if by_inputs else magnitude[part]), norms)
        found.append(out.tobytes())
    assert len(set(found)) == 1
    whole, change, own = (torch.from_numpy(one).double() for one in (before, delta, magnitude))
    exact = whole + 0.6 * decompose(whole, 0.7 * change, own)
    slack = 1e-9 if working == "F64" else 1e-5
    np.testing.assert_allclose(out, exact.numpy(), rtol=slack, atol=slack)


def raw(array: np.ndarray) -> memoryview:
    return memoryview(array).cast("B")


def test_broken_adapters_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    own, lora = narrow(TINY, tmp_path)["a"], every_kind(TINY, tmp_path / "x.safetensors", 0)
    tensors = load_file(lora)
    tensors[f"{QUERY}.lora_up.weight"][0, 0] = float("inf")
    save_file(tensors, lora)
    with pytest.raises(ModelError, match=r"x\.safetensors: .*to_q\.lora_up\.weight holds NaN or infinity"):
        baked(own, [lora], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(kernel() is None, reason="no compiler was at hand")
def test_baking_loras_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    own, lora = narrow(TINY, tmp_path)["a"], every_kind(TINY, tmp_path / "x.safetensors", 0)
    tensors = {
        key: tensor.half() for key, tensor in load_file(lora).items() if key.startswith((QUERY, CONV, TEXT))
    }
    save_file(tensors | {f"{QUERY}.alpha": torch.tensor(1.0).bfloat16()}, lora)
    script = """
import sys
from aid.cli import main
main()
print(*sorted({"torch", "numpy"} & set(sys.modules)))
"""
    words = ["merge", "--models", f"base={own}", "--loras", f"x={lora}", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda own: own[:, :8], r"to_q\.weight is \[16, 8\] in the checkpoint; expected \[16, 16\]"),
        (lambda own: torch.cat([own] * 4), r"to_q\.weight is \[64, 16\] in the checkpoint"),
        (lambda own: own[0, 0], r"to_q\.weight is \[\] in the checkpoint"),
        (lambda own: own.to(torch.int8), r"to_q\.weight holds I8 in the checkpoint; expected floating point"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_seems(
    changed: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    own, lora = narrow(TINY, tmp_path)["a"], every_kind(TINY, tmp_path / "x.safetensors", 0)
    tensors, key = load_file(own), QUERY_KEY
    with safe_open(own, "pt") as file:
        save_file(tensors | {key: changed(tensors[key]).contiguous()}, own, file.metadata())
    with pytest.raises(ModelError, match=message):
        baked(own, [lora], tmp_path / "out")


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.filterwarnings("error")
def test_adapters_that_are_too_strong_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        for room in ("sums", "product", "magnitude"):
            monkeypatch.setattr(f"aid.merge.arithmetic.{room}.kernel", lambda: None)
    own, loras = narrow(TINY, tmp_path)["a"], two_adapters(TINY, tmp_path)
    with pytest.raises(ModelError, match=r"x and y: .*weight holds NaN or infinity.*smaller weights"):
        baked(own, loras, tmp_path / "out", lora_weights={"x": 1e300, "y": 1.0})
    tensors = load_file(loras[0]) | {f"{QUERY}.alpha": torch.tensor(float("nan"))}
    save_file(tensors, loras[0])
    with pytest.raises(ModelError, match=r"x\.safetensors: .*to_q.*alpha.*(NaN|nan)"):
        baked(own, loras, tmp_path / "out")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    own, lora = narrow(TINY, tmp_path), every_kind(TINY, tmp_path / "x.safetensors", 0)
    tensors = load_file(lora)
    tensors |= {
        key.replace(QUERY, "lora_unet_elsewhere"): one.clone() for key, one in tensors.items() if QUERY in key
    }
    save_file(tensors, lora)
    others = {name: one for name, one in load_file(own["b"]).items() if name != QUERY_KEY}
    with safe_open(own["b"], "pt") as file:
        save_file(others, own["b"], file.metadata())
    said = list[str]()

    class Told(Silence):
        def say(self, text: str) -> None:
            said.append(text)

    settings = MergeSettings(primary="a", weights={"b": {"IN": 0.5}}, broken="keep")
    inputs = MergeInputs(models={"a": own["a"], "b": own["b"]}, loras={"x": lora})
    merge(settings, inputs, tmp_path / "out", Workbench(progress=Told()))
    assert len(said) == 2
    assert said[0].startswith("b (") and f"lacks {QUERY_KEY}: as other models have it" in said[0]
    assert said[1].startswith("x: 1 of 9 parts have no place in this model (lora_unet_elsewhere")


def test_every_kind_goes_by_rows(tmp_path: Path) -> None:
    adapter = load_adapter(every_kind(TINY, tmp_path / "x.safetensors", 0))
    for change in adapter.changes.values():
        if change.kind:
            arrays = {part: tensor.numpy() for part, tensor in change.tensors.items()}
            whole = KINDS[change.kind].delta(arrays)
            rows = [
                KINDS[change.kind].delta(arrays, rows=slice(at, at + 5)) for at in range(0, len(whole), 5)
            ]
            np.testing.assert_allclose(np.concatenate(rows), whole, rtol=1e-6, atol=1e-8)
