"""Modes that look at whole tensors, against sd-mecha (PyPI) and formulas written out in torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_chain import Tensors, merged, narrow

from aid.errors import SettingsError
from aid.merge.linear import LINEAR
from aid.merge.recipe import MODES
from aid.merge.whole import WHOLE, Numbers
from aid.sd.model.architecture import TINY

METHODS = "sd_mecha.extensions.builtin.merge_methods"
SHAPES = [(), (7,), (5, 130), (6, 4, 3, 3)]
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
VAE = "first_stage_model.decoder.conv_out.weight"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return narrow(TINY, tmp_path_factory.mktemp("whole"))


def drawn(shape: tuple[int, ...], count: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, generator=chance, dtype=torch.float64) for _ in range(count)]


def ours(
    mode: str, models: list[torch.Tensor], alpha: float, beta: float = 0.0, gamma: float = 1.0
) -> torch.Tensor:
    told = Numbers(alpha, beta, gamma, np.random.default_rng(0))
    return torch.from_numpy(np.asarray(WHOLE[mode]([one.numpy() for one in models], told)))


def mecha(name: str) -> Callable[..., torch.Tensor]:
    """One of sd-mecha's merge methods as a plain function of tensors."""
    for place in ("linear", "ties"):
        found = getattr(importlib.import_module(f"{METHODS}.{place}"), name, None)
        if found is not None:
            method: Callable[..., torch.Tensor] = found.__wrapped__
            return method
    raise LookupError(name)


def test_every_mode_has_its_number_of_models() -> None:
    assert MODES.keys() == LINEAR.keys() | WHOLE.keys()


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


def columns(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """supermerger's similarity for cosineB."""
    whole = torch.dot(a.view(-1), b.view(-1)) / (a.norm() * b.norm())
    return (torch.cosine_similarity(a, b, dim=0) + whole) / 2


def test_cosine_b_takes_its_range_from_the_whole_model(models: dict[str, Path], tmp_path: Path) -> None:
    result = merged(
        models,
        tmp_path / "out",
        precision="fp32",
        chain=[{"mode": "cosine_b", "models": ["a", "b"], "alpha": 0.2}],
    )
    a, b = ({key: t.float() for key, t in load_file(models[name]).items()} for name in "ab")
    keys = [
        key for key in a if "model" in key and not key.startswith("first_stage") and "position_ids" not in key
    ]
    found = torch.cat([columns(a[key], b[key]).reshape(-1) for key in keys]).double().numpy()
    found = found[found >= np.percentile(found, 1, method="midpoint")]
    found = found[found <= np.percentile(found, 99, method="midpoint")]
    for key in (FIRST_CONV, TOKENS):
        share = ((columns(a[key], b[key]) - found.min()) / (found.max() - found.min()) - 0.2).clip(0, 1)
        torch.testing.assert_close(
            result[key], (b[key] * (1 - share) + a[key] * share).float(), rtol=1e-4, atol=1e-6
        )
    assert torch.equal(result[VAE], a[VAE])


def test_smooth_add_smooths_the_difference(models: dict[str, Path], tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter, median_filter

    chain = [{"mode": "smooth_add", "models": ["a", "b", "c"], "alpha": 0.5}]
    result = merged(models, tmp_path / "out", chain=chain)
    a, b, c = (load_file(models[name])[FIRST_CONV].float().numpy() for name in "abc")
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
    with pytest.raises(SettingsError, match="a share of the values"):
        merged(models, tmp_path / "out", chain=[{"mode": mode, "models": ["a", "b"], "beta": beta}])
