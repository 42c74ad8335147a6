"""Put a trained VAE beside a fresh U-Net and text encoder, or a starter's: what base.toml starts from.

python starter/initial.py VAE.safetensors OUT.safetensors [--seed 1 | --of CHECKPOINT]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from train_vae import read_vae

from aid.sd.model.architecture import Architecture
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint, save_checkpoint

STARTER = Architecture(
    unet_widths=(32, 64, 128, 128), unet_heads=4, unet_groups=8, text_width=128, text_heads=4
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vae", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--edge-px", type=int, default=64, help="the size it will draw at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--of", type=Path, help="a starter, whose U-Net and text encoder go on")
    chosen = parser.parse_args()
    vae = read_vae(chosen.vae)
    widths, groups = tuple(vae.config.block_out_channels), vae.config.norm_num_groups
    told = {"vae_widths": widths, "vae_groups": groups, "native_edge_px": chosen.edge_px}
    fresh = STARTER.model_copy(update=told)
    model = load_checkpoint(chosen.of) if chosen.of else create_checkpoint(fresh, chosen.seed)
    architecture = model.architecture.model_copy(update=told)
    save_checkpoint(replace(model, vae=vae, architecture=architecture), chosen.out, {}, torch.float32)


if __name__ == "__main__":
    main()
