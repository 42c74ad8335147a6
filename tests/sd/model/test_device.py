"""Where tensors live, and that a GPU is asked for the same bits every time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.model.device import same_bits_on_cuda, torch_device

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def unset() -> Iterator[None]:
    """Torch's switches as a fresh process has them, and put back."""
    kept, told = os.environ.pop(CUBLAS, None), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    os.environ.pop(CUBLAS, None)
    os.environ.update({CUBLAS: kept} if kept else {})
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = told


def test_a_cpu_needs_no_switch() -> None:
    assert torch_device(Workbench("cpu")) == torch.device("cpu")
    assert CUBLAS not in os.environ and not torch.are_deterministic_algorithms_enabled()


def test_a_device_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match="device nonsense can't be used"):
        torch_device(Workbench("nonsense"))
    with pytest.raises(SettingsError, match="device cuda:99 can't be used"):
        torch_device(Workbench("cuda:99"))


@pytest.mark.parametrize(("asked", "rank", "found"), [("cuda", 98, "98"), ("cuda:97", 2, "99")])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(asked: str, rank: int, found: str) -> None:
    with pytest.raises(SettingsError, match=f"device cuda:{found} can't be used"):
        torch_device(Workbench(asked, rank=rank, ranks=100, local_rank=rank))


def test_cuda_is_asked_for_the_same_bits() -> None:
    with pytest.raises(SettingsError, match="cuda:99"):  # the switches are thrown before the first use
        torch_device(Workbench("cuda:99"))
    assert os.environ[CUBLAS] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark


def test_a_choice_of_ones_own_stays() -> None:
    os.environ[CUBLAS] = ":16:8"
    same_bits_on_cuda()
    assert os.environ[CUBLAS] == ":16:8"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_repeats_itself() -> None:
    device = torch_device(Workbench("cuda"))
    values = torch.randn((4, 8, 32, 32), generator=torch.Generator().manual_seed(1)).to(device)
    layer = torch.nn.Conv2d(8, 8, 3, padding=1).to(device)
    gradients = []
    for _ in range(2):
        layer.zero_grad()
        layer(values).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)
