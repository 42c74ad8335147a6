"""Where tensors live."""

from __future__ import annotations

import torch

from aid.core.workbench import Workbench
from aid.errors import SettingsError


def torch_device(bench: Workbench) -> torch.device:
    """The bench's device, "auto" being a GPU if there is one; applies its thread count.

    Raises SettingsError for a device that torch can't use here.
    """
    if bench.threads > 0:
        torch.set_num_threads(bench.threads)
    name = bench.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device {name} can't be used ({reason})", "auto, cpu, cuda or cuda:N") from error
    return torch.device(name)
