"""Modes that don't only weigh, against sd-mecha (PyPI) and formulas written out in torch."""

from __future__ import annotations

import hashlib
import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter, median_filter
from test_chain import Tensors, merged, narrow

from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import Kernel, kernel
from aid.merge.modes.mode import Given, Mode, Told, parts_of
from aid.merge.modes.native import by_kernel
from aid.merge.modes.nonlinear import NONLINEAR, Counts, range_of
from aid.merge.modes.selection import ranked
from aid.merge.recipe.linear import LINEAR
from aid.merge.recipe.recipe import MODES
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.merge.streaming.aside import Aside
from aid.sd.file.tensorfile import raw_bytes, read_header
from aid.sd.model.architecture import TINY

METHODS = "sd_mecha.extensions.builtin.merge_methods"
SHAPES = [(), (7,), (5, 130), (6, 4, 3, 3)]
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
BIAS = "model.diffusion_model.input_blocks.0.0.bias"
VAE = "first_stage_model.decoder.conv_out.weight"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return narrow(TINY, tmp_path_factory.mktemp("whole"))


def drawn(shape: tuple[int, ...], count: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, generator=chance, dtype=torch.float64) for _ in range(count)]


def ours(
    mode: str,
    models: list[torch.Tensor],
    alpha: float,
    beta: float = 0.0,
    gamma: float = 1.0,
    values: int = 1 << 20,
    of: Mode | None = None,
) -> torch.Tensor:
    """So many values at a time."""
    own, shape = of or NONLINEAR[mode], tuple(models[0].shape)
    working = {torch.float32: "F32", torch.float64: "F64"}[models[0].dtype]
    raw = [memoryview(bytearray(raw_bytes(one))) for one in models]
    item, size = models[0].itemsize, models[0].numel()

    def read(number: int, start: int, count: int) -> Operand:
        return Operand(raw[number][start * item : (start + count) * item], working)

    measured = own.measure(Given(shape, len(models), working, read), beta) if own.measure else None
    step, result = parts_of(own.grain(shape), values), b""
    for start in range(0, size, step):
        count = min(step, size - start)
        told = Told(
            alpha, beta, gamma, 0, "key", shape, start, count, working, measured, around=own.around(shape)
        )
        result += own.part([read(number, *told.given) for number in range(len(models))], told)
    return torch.frombuffer(bytearray(result), dtype=models[0].dtype).reshape(shape)


def mecha(name: str) -> Callable[..., torch.Tensor]:
    """One of sd-mecha's merge methods as a plain function of tensors."""
    for place in ("linear", "ties"):
        found = getattr(importlib.import_module(f"{METHODS}.{place}"), name, None)
        if found is not None:
            method: Callable[..., torch.Tensor] = found.__wrapped__
            return method
    raise LookupError(name)


NUMBERS = {"extract": (0.3, 0.25, 2.0), "slerp": (0.4, 0.0, 1.0)}


@pytest.mark.parametrize("mode", NONLINEAR)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_parts_of_any_size_give_the_same_bytes(mode: str, shape: tuple[int, ...]) -> None:
    models = [one.float() for one in drawn(shape, 3)][: MODES[mode][1]]
    alpha, beta, gamma = NUMBERS.get(mode, (0.6, 0.7, 1.0))
    whole, *parts = (ours(mode, models, alpha, beta, gamma, values) for values in (1 << 20, 1, 7, 64))
    assert all(torch.equal(whole, one) for one in parts)


@pytest.mark.parametrize("mode", ["ties", "ties_mass", "dare", "train_difference", "slerp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 0.0, 1e-30])
def test_the_kernel_s_modes_are_numpy_s(
    mode: str, dtype: torch.dtype, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what agrees, cancels out, stays as it is, or is subnormal; wherever the first guess is."""
    if (native := kernel()) is None:
        pytest.skip("the kernel isn't built: python hatch_build.py")
    monkeypatch.setattr("aid.merge.modes.selection.MANY", 1000)
    chance = torch.Generator().manual_seed(7)
    base = torch.randn(5001, generator=chance, dtype=dtype)
    steps = torch.randint(-2, 3, (3, 5001), generator=chance)
    others = [base + spread * step * torch.rand(5001, generator=chance, dtype=dtype) for step in steps]
    models = [torch.sort(one).values if spread == 1.0 else one for one in (base, *others)]
    models = models[: MODES[mode][1]]
    for share in (0.001, 0.2, 0.8):
        expected = ours(mode, models, 0.7, share)
        for way in (native, Kernel(native.library, plainly=True)):
            assert torch.equal(ours(mode, models, 0.7, share, values=777, of=by_kernel(way, mode)), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bound", [0, 1000])
def test_a_value_of_any_rank_is_found(
    dtype: type[np.floating[Any]], bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sorting finds it, with a sample that tells nothing and without one."""
    monkeypatch.setattr("aid.merge.modes.selection.MANY", bound)
    chance, item = np.random.default_rng(3), np.dtype(dtype).itemsize
    values = np.abs(chance.standard_normal(3000) * 10.0 ** chance.integers(-9, 9, 3000)).astype(dtype)
    values[::3] = 0.5
    for start in (0, 1, 5):
        values[start : start + 900 : 8] = 0.0

    def count(lowest: int, shift: int, bin_bits: int, every: int) -> Counts:
        return Counts.of([values[::every]], lowest, shift, 1 << bin_bits)

    for place in (0, 1, 500, 1500, 2999):
        found = ranked(place, len(values), count, 8 * item - 1)
        assert np.array(found, f"u{item}").view(f"f{item}") == np.sort(values)[place]


def test_every_mode_has_its_number_of_models() -> None:
    assert MODES.keys() == LINEAR.keys() | NONLINEAR.keys()


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_slerp_is_mecha_s(shape: tuple[int, ...], alpha: float) -> None:
    a, b = drawn(shape, 2)
    torch.testing.assert_close(
        ours("slerp", [a, b], alpha), mecha("slerp")(a, b, alpha=torch.tensor(alpha).double())
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "by_mass"), [("ties", False), ("ties_mass", True)])
def test_ties_of_four_is_mecha_s(shape: tuple[int, ...], mode: str, by_mass: bool) -> None:
    base, *others = (one.float() for one in drawn(shape, 5))
    delta = mecha("ties_sum")(*[one - base for one in others], k=0.4, vote_sgn=by_mass)
    torch.testing.assert_close(
        ours(mode, [base, *others], 0.7, 0.4), base + 0.7 * delta, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.2), (0.6, 0.7), (1.0, 0.0), (0.0, 0.5)])
def test_tensor_takes_whole_rows_and_goes_round(alpha: float, beta: float) -> None:
    a, b = drawn((10, 130), 2)
    for mode, count in (("tensor", 10), ("tensor2", 130)):
        first, last = int(count * beta), int(count * (alpha + beta))
        taken = torch.zeros(count, dtype=torch.bool)
        taken[first:last] = True
        if last > count:
            taken[: int(count * (alpha + beta - 1))] = True
        taken = taken[:, None] if mode == "tensor" else taken[None]
        assert torch.equal(ours(mode, [a, b], alpha, beta), torch.where(taken, b, a))


@pytest.mark.parametrize("shape", SHAPES)
def test_train_difference_is_mecha_s(shape: tuple[int, ...]) -> None:
    a, b, c = drawn(shape, 3)
    mask = mecha("train_difference_mask")(a, b, c, alpha=torch.tensor(0.5).double())
    torch.testing.assert_close(ours("train_difference", [a, b, c], 0.5), a + mask * (b - c))
    assert torch.equal(ours("train_difference", [a, b, b], 0.5), a)


def test_extract_is_its_formula() -> None:
    base, b, c = drawn((5, 130), 3)
    alike = ((torch.cosine_similarity(b - base, c - base, dim=-1).unsqueeze(-1) + 1) / 2) ** 2.0
    exact = base + torch.lerp(b - base, c - base, 0.3) * torch.lerp(alike, 1 - alike, 0.25)
    torch.testing.assert_close(ours("extract", [base, b, c], 0.3, 0.25, 2.0), exact)


def test_dare_drops_a_share_and_keeps_the_mean() -> None:
    base, other = torch.zeros(200_000, dtype=torch.float64), torch.ones(200_000, dtype=torch.float64)
    result = ours("dare", [base, other], 0.5, 0.75)
    assert set(result.tolist()) == {0.0, 2.0}
    assert abs(float(result.mean()) - 0.5) < 0.01


def test_dare_draws_one_model_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts, as a generator does at once."""
    base, others = torch.zeros(1001), [torch.full((1001,), float(2**power)) for power in (0, 1, 2)]
    digest = hashlib.sha256(b"0 key").digest()
    chance = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    kept = [chance.random(1001, dtype=np.float32) >= 0.5 for _ in others]
    exact = sum(one.numpy() * own for one, own in zip(others, kept, strict=True)) / 1.5
    assert np.allclose(ours("dare", [base, *others], 1.0, 0.5, values=77).numpy(), exact)


CHAIN = [
    {"name": "smooth", "mode": "smooth_add", "models": ["a", "b", "c"], "alpha": 0.6},
    {"name": "ties", "mode": "ties", "models": ["a", "smooth", "c"], "beta": 0.3},
    {"name": "dare", "mode": "dare", "models": ["ties", "b", "c"], "beta": 0.5},
    {"name": "slerp", "mode": "slerp", "models": ["dare", "a"], "alpha": 0.4},
    {"name": "alike", "mode": "cosine_a", "models": ["b", "slerp"], "alpha": 0.2},
    {"mode": "extract", "models": ["a", "alike", "c"], "beta": 0.2},
]


def test_pieces_threads_and_torch_change_no_byte(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes one in another, too."""
    settings = MergeSettings.model_validate({"chain": CHAIN})
    written = []
    for name, threads, room in (("one", 1, 1 << 20), ("three", 3, 1 << 20), ("small", 2, 1 << 13)):
        monkeypatch.setattr("aid.merge.streaming.stream.STRETCH_BYTES", room)
        out = merge(settings, MergeInputs(models=models), tmp_path / name, Workbench(threads=threads))
        written.append({file.name: file.read_bytes() for file in out.iterdir()})
    monkeypatch.setattr("aid.merge.arithmetic.sums.kernel", lambda: None)
    monkeypatch.setattr("aid.merge.streaming.evaluation.kernel", lambda: None)
    out = merge(settings, MergeInputs(models=models), tmp_path / "torch")
    written.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert written[0] == written[1] == written[2] == written[3]


@pytest.mark.parametrize(("mode", "most"), [("ties", 60), ("smooth_add", 60), ("dare", 68), ("extract", 68)])
def test_memory_does_not_hang_on_a_tensor_s_size(
    models: dict[str, Path], tmp_path: Path, mode: str, most: int
) -> None:
    """64 MiB of float32 a model."""
    if kernel() is None:
        pytest.skip("the kernel isn't built: python hatch_build.py")
    words = []
    for seed, (name, path) in enumerate(models.items()):
        chance = torch.Generator().manual_seed(seed)
        large = torch.randn(4096, 4096, generator=chance).half()
        save_file({**load_file(path), LARGE: large}, tmp_path / path.name, read_header(path).metadata)
        words += ["--models", f"{name}={tmp_path / path.name}"]
    chain = f"chain=[{{mode = '{mode}', models = ['a', 'b', 'c'], beta = 0.2}}]"
    words += ["--set", chain, "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", PEAK, "merge", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < most << 10


LARGE = "model.diffusion_model.middle_block.1.large.weight"
PEAK = """
from aid.cli import main
main()
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


Array = NDArray[np.float32]


def cosine_of(a: Array, b: Array) -> tuple[Array, np.float32]:
    """Each column's, and the whole's."""
    columns = np.sum(a * b, axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)).clip(1e-16)
    with np.errstate(invalid="ignore"):
        return columns, np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


def supermerger_s(mode: str, a: Array, b: Array) -> tuple[Array, Array]:
    """What goes into the range, and what of it A's share is taken from."""
    if mode == "cosine_a":
        a, b = (one / np.linalg.norm(one, axis=0).clip(1e-12) for one in (a, b))
    columns, whole = cosine_of(a, b)
    mean = (columns + whole) / 2
    return (columns if mode == "cosine_a" else mean), mean


@pytest.mark.parametrize("mode", ["cosine_a", "cosine_b"])
@pytest.mark.parametrize("alpha", [0.2, -0.1])
def test_cosine_modes_take_their_range_as_supermerger_does(
    models: dict[str, Path], tmp_path: Path, mode: str, alpha: float
) -> None:
    """From the whole model: cosineA from the columns alone, cosineB from their mean with the whole."""
    a, b = (load_file(models[name]) for name in "ab")
    a[FIRST_CONV][:, 1] = 0  # one column; the other has no length at all
    b[BIAS][:] = 0
    given = {"a": tmp_path / "a.safetensors", "b": tmp_path / "b.safetensors"}
    for tensors, path in zip((a, b), given.values(), strict=True):
        save_file(tensors, path, read_header(models["a"]).metadata)
    chain = [{"mode": mode, "models": ["a", "b"], "alpha": alpha}]
    result = merged(given, tmp_path / "out", precision="fp32", chain=chain)
    keys = [key for key in a if not key.startswith("first_stage") and "position_ids" not in key]
    pairs = {key: (a[key].float().numpy(), b[key].float().numpy()) for key in keys}
    found = np.concatenate([supermerger_s(mode, *pair)[0].ravel() for pair in pairs.values()])
    found = found[~np.isnan(found)].astype(np.float64)
    found = found[found >= np.percentile(found, 1, method="midpoint")]
    found = found[found <= np.percentile(found, 99, method="midpoint")]
    shares = []
    for key in (FIRST_CONV, TOKENS):
        one, other = pairs[key]
        share = (supermerger_s(mode, one, other)[1] - found.min()) / (found.max() - found.min())
        share = (share - (abs(alpha) if mode == "cosine_a" else alpha)).clip(0, 1)
        shares += share.ravel().tolist()
        expected = torch.from_numpy(other * (1 - share) + one * share).float()
        torch.testing.assert_close(result[key], expected, rtol=1e-4, atol=1e-5)
    assert np.mean([0 < share < 1 for share in shares]) > 0.5, "shares that tell a range from another"
    assert torch.equal(result[VAE], a[VAE].float())
    assert torch.equal(result[BIAS], b[BIAS].float())  # not alike at all, where supermerger has NaN


AXES = st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 11]), max_size=5)


@given(
    shape=AXES.filter(lambda shape: math.prod(shape) < 3000),
    values=st.sampled_from([1, 7, 64, 1 << 20]),
    steps=st.sampled_from([0, 2, 50]),
    seed=st.integers(0, 99),
)
@example(shape=[3, 4101], values=1, steps=0, seed=0)  # more columns than go at once
@example(shape=[2, 457, 3, 3], values=1, steps=2, seed=0)
def test_smooth_add_is_scipy_s_whatever_the_parts(
    shape: list[int], values: int, steps: int, seed: int
) -> None:
    """The same bytes by the kernel, with and without vector instructions, and by numpy, also of tensors that
    are smaller than a part's surroundings."""
    chance = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(shape, generator=chance, dtype=torch.float64) for _ in range(3))
    if steps:
        b, c = ((one * steps).round() / steps for one in (b, c))
    native = kernel()
    ways = [by_kernel(way, "smooth_add") for way in (native, native and replace(native, plainly=True)) if way]
    found = [
        ours("smooth_add", [a, b, c], 0.7, values=values, of=way) for way in (*ways, NONLINEAR["smooth_add"])
    ]
    assert len({bytes(raw_bytes(one)) for one in found}) == 1
    smoothed = gaussian_filter(median_filter((b - c).numpy(), size=3), sigma=1)
    np.testing.assert_allclose(found[0].numpy(), a.numpy() + 0.7 * smoothed, rtol=1e-13, atol=1e-14)


def test_smooth_add_smooths_the_difference(models: dict[str, Path], tmp_path: Path) -> None:
    chain = [{"mode": "smooth_add", "models": ["a", "b", "c"], "alpha": 0.5}]
    result = merged(models, tmp_path / "out", chain=chain)
    a, b, c = (load_file(models[name])[FIRST_CONV].double().numpy() for name in "abc")
    exact = a + 0.5 * gaussian_filter(median_filter(b - c, size=3), sigma=1)
    assert torch.equal(result[FIRST_CONV], torch.from_numpy(exact).half())


def test_a_chain_joins_both_kinds_and_chance_is_of_the_seed(models: dict[str, Path], tmp_path: Path) -> None:
    def chained(out: str, seed: int) -> Tensors:
        chain = [
            {"name": "x", "models": ["a", "b"], "alpha": 0.25},
            {"name": "y", "mode": "dare", "models": ["a", "x", "c"], "alpha": 1.0, "beta": 0.5, "seed": seed},
            {"models": ["y", "b"], "alpha": {"IN": 0.5}, "freeze": ["OUT"]},
        ]
        return merged(models, tmp_path / out, chain=chain)

    one, two, other = chained("one", 1), chained("two", 1), chained("other", 2)
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two"))
    assert len(first) == len(second)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one[FIRST_CONV], other[FIRST_CONV])
    a, b, c = (load_file(models[name])[FIRST_CONV].double() for name in "abc")
    candidates = [0.5 * (a + d * 0.25 * (b - a) + e * (c - a)) + 0.5 * b for d in (0, 1) for e in (0, 1)]
    nearest = torch.stack([(one[FIRST_CONV].double() - exact).abs() for exact in candidates]).amin(dim=0)
    assert float(nearest.max()) < 1e-3


@pytest.mark.parametrize(("mode", "beta"), [("ties", 0.0), ("dare", 1.0), ("ties_mass", 1.5)])
def test_a_share_that_cannot_be_is_refused(
    models: dict[str, Path], tmp_path: Path, mode: str, beta: float
) -> None:
    with pytest.raises(SettingsError, match=f"beta is {beta:g}; expected for {mode} the share of"):
        merged(models, tmp_path / "out", chain=[{"mode": mode, "models": ["a", "b"], "beta": beta}])


LIKENESS = st.floats(-4, 4) | st.just(math.nan) | st.sampled_from([0.25, -1.0])


@given(values=st.lists(LIKENESS, min_size=1, max_size=300), parts=st.integers(1, 4))
def test_a_models_range_is_what_sorting_tells(values: list[float], parts: int) -> None:
    """Of supermerger: sorted, cut below the first percentile, then above the last."""
    kept = np.sort([value for value in values if not math.isnan(value)])
    if not len(kept):
        return
    kept = kept[kept >= np.percentile(kept, 1, method="midpoint")]
    kept = kept[kept <= np.percentile(kept, 99, method="midpoint")]
    aside = [lambda part=part: part for part in np.array_split(np.array(values), parts)]
    assert range_of(aside) == (kept[0], kept[-1])


@given(st.lists(st.binary(max_size=50), max_size=9))
def test_what_is_laid_aside_is_read_again(contents: list[bytes]) -> None:
    aside = Aside()
    kept = [aside.keep(content) for content in contents]
    assert [read() for read in reversed(kept)] == contents[::-1]


@pytest.mark.parametrize("mode", sorted(NONLINEAR))
def test_half_precision_is_rounded_once(mode: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Beside the same merge in single precision: at most .51 of a spacing off."""
    given = ["a", "b"] if mode in ("cosine_a", "cosine_b", "tensor", "tensor2", "slerp") else ["a", "b", "c"]
    chain = [{"mode": mode, "models": given, "alpha": 0.3, "beta": 0.4}]
    exact = merged(models, tmp_path / "single", chain=chain, precision="fp32")
    for key, half in merged(models, tmp_path / "half", chain=chain).items():
        if half.dtype == torch.float16:
            wanted = exact[key].double().numpy()
            spacing = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float64)
            assert np.max(np.abs(half.double().numpy() - wanted) / spacing, initial=0) <= 0.51, key
