"""Every optimiser moves weights downhill and continues to the bit; one that isn't there is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aid.errors import SettingsError
from aid.sd.file.state import load_state, save_state
from aid.train.optimiser.group import Group
from aid.train.optimiser.optimiser import OPTIMISERS, at_rest, create_optimiser, restore_state, state_tensors
from aid.train.settings import FinetuneSettings, LoraSettings


def weights() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    conv = torch.randn(4, 3, 3, 3, generator=chance).to(memory_format=torch.channels_last)
    return [
        conv.requires_grad_(),
        torch.randn(72, 64, generator=chance).requires_grad_(),  # smaller ones have no moments of 8 bits
        torch.ones(2).requires_grad_(),
    ]


def made(name: Any, parameters: list[torch.Tensor], **given: Any) -> torch.optim.Optimizer:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes", "0.50", reason="the first that works without a GPU")
    found = {"unet_rate": 1.0, "text_rate": 1.0} if name == "prodigy" else {}
    settings = FinetuneSettings(
        steps=1, optimiser=name, precision="bf16", ema=0.0, weight_decay=0.01, **found, **given
    )
    return create_optimiser([Group(parameters[:2], 0.1), Group(parameters[2:], 0.05)], settings)


def learn(optimiser: torch.optim.Optimizer, parameters: list[torch.Tensor], steps: range) -> None:
    for index in steps:
        loss = sum(((p - index % 3 / 10) ** 2).sum() for p in parameters[: 2 if index == 0 else 3])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("stop", [1, 4])
def test_it_learns_and_continues_to_the_bit(name: str, stop: int, tmp_path: Path) -> None:
    straight = weights()
    whole = made(name, straight)
    laid = [parameter.stride() for parameter in straight]
    learn(whole, straight, range(8))
    assert [parameter.stride() for parameter in straight] == laid, "rounding hangs on it"
    first = weights()
    halted = made(name, first)
    learn(halted, first, range(stop))
    saved = {f"weight.{index}": p.detach() for index, p in enumerate(first)}
    save_state(tmp_path, stop, {**saved, **state_tensors(halted)}, 1)
    again, state = weights(), load_state(tmp_path)
    assert state is not None
    with torch.no_grad():
        for index, parameter in enumerate(again):
            parameter.copy_(state[1].read(f"weight.{index}"))
    continued = made(name, again)
    restore_state(continued, state[1])
    learn(continued, again, range(stop, 8))
    assert all(torch.equal(a, b) for a, b in zip(straight, again, strict=True))
    assert sum((p**2).sum() for p in straight) < sum((p**2).sum() for p in weights())


@pytest.mark.parametrize(
    "rates",
    [
        {},
        {"unet_rate": 1.0},
        {"unet_rate": 1e-4, "text_rate": 1e-4},
        {"unet_rate": 1.0, "text_rate": 1.0, "text_2_rate": 0.5},
        {"unet_rate": 1.0, "text_rate": 0.0, "block_rates": {"IN00-05": 0.5}},
    ],
)
def test_prodigy_refuses_rates_that_it_would_not_heed(rates: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`prodigy` finds one rate"):
        LoraSettings(steps=1, optimiser="prodigy", **rates)
    heeded = {"unet_rate": 1.0, "text_rate": 0.0, "block_rates": {"IN00-05": 0.0}}
    FinetuneSettings(steps=1, optimiser="prodigy", **heeded)


def test_schedule_free_weights_at_rest_are_others_and_leave_no_trace() -> None:
    parameters = weights()
    optimiser = made("schedule_free", parameters)
    learn(optimiser, parameters, range(5))
    before = [parameter.detach().clone() for parameter in parameters]
    with at_rest(optimiser, parameters):
        assert not torch.equal(parameters[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_a_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(SettingsError, match="pip install pytorch-optimizer"):
        made("lion", weights())


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("option", ["speed", "lr"])
def test_an_option_that_would_do_nothing_is_refused(name: str, option: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} has no option {option}; expected .*weight_decay"):
        made(name, weights(), optimiser_options={option: 2.0})


def test_adafactor_by_the_rate_has_momentum_only_where_betas_are_given() -> None:
    for betas, moments in ((None, set()), ((0.9, 0.999), {"exp_avg"})):
        parameters = weights()
        optimiser = made("adafactor_absolute", parameters, betas=betas)
        learn(optimiser, parameters, range(2))
        assert optimiser.state[parameters[0]].keys() & {"exp_avg"} == moments


def test_options_reach_the_optimiser_and_wrong_ones_are_refused() -> None:
    assert made("adamw", weights(), optimiser_options={"eps": 1e-6}).param_groups[0]["eps"] == 1e-6
    with pytest.raises(SettingsError, match="adamw refuses its options"):
        made("adamw", weights(), optimiser_options={"eps": -1.0})
    careful = made("prodigy", weights(), optimiser_options={"safeguard_warmup": True})
    assert careful.param_groups[0]["safeguard_warmup"] is True
    with pytest.raises(ValueError, match="set `ema` to 0"):
        FinetuneSettings(steps=1, optimiser="schedule_free")
