"""Put a trained VAE beside a fresh U-Net and text encoder: what base.toml starts from.

python starter/initial.py VAE.safetensors OUT.safetensors --seed 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from aid.sd.model.architecture import Architecture
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint

STARTER = Architecture(
    unet_widths=(32, 64, 128, 128), unet_heads=4, unet_groups=8,
    text_width=128, text_heads=4, vae_widths=(16, 32, 64, 64), vae_groups=4, native_edge_px=64,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vae", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    model = create_checkpoint(STARTER, chosen.seed)
    model.vae.load_state_dict(load_file(chosen.vae))
    save_checkpoint(model, chosen.out, {}, torch.float32)


if __name__ == "__main__":
    main()
