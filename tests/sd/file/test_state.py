"""States of a training: the newest whole one counts, and what is put back is the same to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aid.core.artifact import SCRATCH
from aid.errors import FileError
from aid.sd.file.state import (
    fitting,
    load_state,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_state,
)


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    return module, torch.optim.AdamW(module.parameters(), 1e-2, fused=True)


def learn(module: torch.nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def test_a_restored_module_and_optimiser_go_on_bitwise(tmp_path: Path) -> None:
    module, optimiser = network()
    learn(module, optimiser, range(3))
    save_state(tmp_path, 3, {**module_tensors(module), **optimiser_tensors(optimiser)}, keep=2)
    learn(module, optimiser, range(3, 6))
    again, its_optimiser = network()
    state = load_state(tmp_path)
    assert state is not None and state[0] == 3
    restore_module(again, state[1])
    restore_optimiser(its_optimiser, state[1])
    learn(again, its_optimiser, range(3, 6))
    for name, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_damaged_state_is_passed_over_and_old_ones_go(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"x": torch.tensor([step])}, keep=2)
    files = sorted((tmp_path / SCRATCH).iterdir())
    assert len(files) == 2
    files[-1].write_bytes(files[-1].read_bytes()[:-1])
    state = load_state(tmp_path)
    assert state is not None and state[0] == 2 and state[1].read("x").item() == 2


def test_a_state_of_another_training_is_told_of(tmp_path: Path) -> None:
    module, optimiser = network()
    learn(module, optimiser, range(1))
    whole = {**module_tensors(module), **optimiser_tensors(optimiser)}
    for name in ("module.0.weight", "optimiser.0.exp_avg", "optimiser.99.step"):
        save_state(tmp_path, 1, {**whole, name: torch.ones(5)}, keep=1)
        state = load_state(tmp_path)
        assert state is not None
        again, its_optimiser = network()
        with (
            pytest.raises(FileError, match=r"state-00000001.* is no state of this training"),
            fitting(state[1]),
        ):
            restore_module(again, state[1])
            restore_optimiser(its_optimiser, state[1])
