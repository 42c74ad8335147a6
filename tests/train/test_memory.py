"""Little memory: rounding at random loses nothing, weights can change within the backward pass, and profiles
fit what their names say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_finetune import QUICK
from tests.interrupting import Interrupting

from aid.core.workbench import Workbench
from aid.sd.file.tensorfile import read_tensors
from aid.train.optimiser import in_backward
from aid.train.optimiser.rounding import (
    PIECE_NUMBERS,
    RoundedAdamW,
    pieces,
    random_bits,
    round_stochastically,
)
from aid.train.run import finetune
from aid.train.settings import FinetuneInputs, FinetuneSettings

CPU = torch.device("cpu")
FUSED = {"fused_backward": True, "gradient_norm": 0.0}


@given(st.floats(width=32), st.integers(0, 99))
def test_a_number_becomes_one_of_its_two_neighbours(value: float, seed: int) -> None:
    values = torch.full((64,), value)
    rounded = round_stochastically(values, random_bits(seed, 0, 0, CPU)).float()
    bits = values.view(torch.int32)
    below = bits.bitwise_and(-65536).view(torch.float32)
    if not values[0].isfinite():
        torch.testing.assert_close(rounded, values, equal_nan=True)
        return
    above = torch.where(below == values, below, (bits.bitwise_and(-65536) + 65536).view(torch.float32))
    assert bool(((rounded == below) | (rounded == above)).all())


def test_the_expected_value_is_the_number_itself() -> None:
    """Against the standard error of the mean of a million, which rounding to the nearest misses by far."""
    for value in (1.0 + 2**-10, -3.14159, 1e-20, 65_504.3):
        values = torch.full((1_000_000,), value)
        rounded = round_stochastically(values, random_bits(5, 1, 2, CPU)).double()
        error = (rounded.mean() - values[0].double()).abs()
        assert error <= 5 * rounded.std() / 1000
        assert error < (values[0].bfloat16().double() - values[0].double()).abs() / 20


def test_small_steps_add_up_only_when_rounded_at_random() -> None:
    weight, plain = torch.ones(1000).bfloat16(), torch.ones(1000).bfloat16()
    for step in range(200):
        weight = round_stochastically(weight.float() + 1e-4, random_bits(0, step, 0, CPU))
        plain = (plain.float() + 1e-4).bfloat16()
    assert bool((plain == 1).all()) and weight.float().mean() == pytest.approx(1.02, abs=1e-3)


def test_small_weights_are_changed_together_as_adamw_changes_them_apart() -> None:
    """Of float32 ones nothing is rounded: the same as torch's AdamW, whatever shares a piece."""
    shapes = [(3, 5), (7,), (2, 4, 3, 3), (PIECE_NUMBERS // 64 + 1, 64), (1,)]
    chance = torch.Generator().manual_seed(1)
    ours = [torch.randn(shape, generator=chance) for shape in shapes]
    ours[2] = ours[2].contiguous(memory_format=torch.channels_last)
    theirs = [weight.clone() for weight in ours]
    words = {"lr": 1e-2, "weight_decay": 0.1}
    mine, peer = RoundedAdamW([{"params": ours}], **words), torch.optim.AdamW(theirs, **words)
    assert [len(together) for together in pieces(ours)] == [3, 1, 1]
    for _ in range(3):
        for weight, other in zip(ours, theirs, strict=True):
            weight.grad = torch.randn(weight.shape, generator=chance)
            other.grad = weight.grad.clone()
        ours[0].grad = theirs[0].grad = None  # one stands still
        mine.step()
        peer.step()
    for weight, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint: Path, dataset: Path) -> FinetuneInputs:
    return FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)


def model_of(inputs: FinetuneInputs, out: Path, **change: object) -> dict[str, torch.Tensor]:
    settings = FinetuneSettings.model_validate(QUICK.model_dump() | {"output": "fp32", "steps": 4} | change)
    return read_tensors(finetune(settings, inputs, out, Workbench(threads=1)) / "model.safetensors")


@pytest.mark.parametrize(
    ("optimiser", "together"),
    [("adamw", 1), ("adamw", 5000), ("adamw", in_backward.TOGETHER), ("adafactor", 5000), ("lion", 5000)],
)
def test_a_fused_backward_pass_gives_the_same_model(
    inputs: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str, together: int
) -> None:
    monkeypatch.setattr(in_backward, "TOGETHER", together)
    apart = model_of(inputs, tmp_path / "apart", gradient_norm=0.0, optimiser=optimiser)
    fused = model_of(inputs, tmp_path / "fused", **FUSED, optimiser=optimiser)
    assert all(torch.equal(apart[key], fused[key]) for key in apart)


def test_the_smallest_profile_learns_in_sixteen_bits_and_continues_to_the_bit(
    inputs: FinetuneInputs, tmp_path: Path
) -> None:
    words = QUICK.model_dump(
        exclude={"precision", "optimiser", "checkpointing", "fused_backward", "gradient_norm"}
    )
    sheets = {"every": 2, "prompts": ["by alpha"], "steps": 2, "width": 64, "height": 64}
    small = {"memory_profile": "12gb", "steps": 4, "noise_draws": 1, "samples": sheets}
    settings = FinetuneSettings.model_validate(words | small)
    assert (settings.optimiser, settings.precision, settings.checkpointing) == ("adamw_bf16", "bf16", True)
    straight = finetune(settings, inputs, tmp_path / "straight", Workbench(threads=1))
    with pytest.raises(KeyboardInterrupt):
        finetune(settings, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(3)))
    finetune(settings, inputs, tmp_path / "out", Workbench(threads=1))
    for name in ("model.safetensors", "log.jsonl", "samples/step-000004.png"):
        assert (tmp_path / "out" / name).read_bytes() == (straight / name).read_bytes(), name
    before, after = read_tensors(inputs.checkpoint), read_tensors(straight / "model.safetensors")
    assert sum(not torch.equal(before[key], after[key]) for key in before) > 600


def test_what_a_profile_sets_can_be_set_otherwise_and_contradictions_are_named() -> None:
    chosen = FinetuneSettings(steps=1, memory_profile="16gb", part_size=2)
    assert (chosen.part_size, chosen.optimiser) == (2, "adamw_bf16")
    assert FinetuneSettings.model_validate(chosen.model_dump()) == chosen
    with pytest.raises(ValidationError, match="set gradient_norm, part_size to 0"):
        FinetuneSettings(steps=1, fused_backward=True)
    with pytest.raises(ValidationError, match="can't be left out"):
        FinetuneSettings(steps=1, fused_backward=True, gradient_norm=0, trouble="skip")
    with pytest.raises(ValidationError, match="prodigy needs all gradients"):
        FinetuneSettings(steps=1, fused_backward=True, gradient_norm=0, optimiser="prodigy")
    with pytest.raises(ValidationError, match="adafactor_absolute needs all gradients at once"):
        FinetuneSettings(steps=1, fused_backward=True, gradient_norm=0, optimiser="adafactor_absolute")
    with pytest.raises(ValidationError, match="set `precision` to bf16"):
        FinetuneSettings(steps=1, optimiser="adamw_bf16")
