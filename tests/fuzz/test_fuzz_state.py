"""Damaged states of an unfinished training, torch's optimiser and one that keeps plain numbers besides."""

from __future__ import annotations

from pathlib import Path

import torch
from damage import SAFETENSORS
from fuzzing import Target, fuzz

from aid.sd.file.state import fitting, load_state, module_tensors, restore_module, save_state
from aid.train.optimiser.group import Group
from aid.train.optimiser.optimiser import create_optimiser, restore_state, state_tensors
from aid.train.settings import FinetuneSettings

KINDS = ("adamw", "adamw_bf16")


def begun(kind: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = torch.nn.Linear(3, 2)
    settings = FinetuneSettings.model_validate(
        {"steps": 1, "optimiser": kind, "precision": "bf16", "ema": 0.0}
    )
    return module, create_optimiser([Group(list(module.parameters()), 0.1)], settings)


def state(kind: str, folder: Path) -> bytes:
    module, optimiser = begun(kind)
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    save_state(folder, 3, {**module_tensors(module), **state_tensors(optimiser)}, 1)
    return next(folder.rglob("state-*")).read_bytes()


def read(folder: Path) -> None:
    """A file without a whole header is passed over; one that has another's content is told of."""
    found = load_state(folder / next(folder.iterdir()).name)
    if found is None:
        return
    module, optimiser = begun(next(folder.iterdir()).name)
    with fitting(found[1]):
        restore_module(module, found[1])
        restore_state(optimiser, found[1])


def test_damaged_states(tmp_path: Path) -> None:
    samples = [{f"{kind}/scratch/state-00000003.safetensors": state(kind, tmp_path / kind)} for kind in KINDS]
    fuzz(Target("state", samples, read, {"": SAFETENSORS}), tmp_path / "fuzzed")
