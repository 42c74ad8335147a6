"""A model that something is trained beside, and that stays as it is."""

from __future__ import annotations

from pathlib import Path

import torch

from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.train.settings import CommonSettings

LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


def load_frozen(path: Path, settings: CommonSettings, device: torch.device) -> StableDiffusion:
    """A checkpoint. Where the passes are in bfloat16 so are its layers' weights, as autocast would make them
    at every pass: the same bits, in half the memory, and a GPU never holds more.
    """
    if settings.precision != "bf16":
        return load_checkpoint(path, device)
    model = load_checkpoint(path)
    for name, part in model.parts().items():
        if name != "vae":  # which waits on the CPU
            for layer in part.modules():
                if isinstance(layer, LAYERS):
                    layer.weight.data = layer.weight.data.bfloat16()
            part.to(device)
    return model
