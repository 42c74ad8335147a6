"""Train the starter's VAE: SD1's AutoencoderKL topology (248 keys), narrower.

    python starter/train_vae.py WORLD OUT.safetensors --edge-px 64 --minutes 30

Run it again to continue: the state lies beside OUT. The loss is L1 + an edge term (L1 of finite
differences) + a light KL; at the end the latents are rescaled to unit variance under SD1's fixed
factor 0.18215, so every tool may treat the file as any SD1 VAE.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

SCALE = 0.18215  # SD1's latent factor
WIDTHS = (16, 32, 64, 64)


def read_world(world: Path, edge_px: int) -> torch.Tensor:
    """Every picture under `world` as uint8 [n, 3, edge, edge]; cached beside it."""
    cache = world.parent / f"{world.name}-{edge_px}.npy"
    if not cache.exists():
        paths = sorted(world.glob("*/*.webp"))
        pixels = np.empty((len(paths), 3, edge_px, edge_px), np.uint8)
        for row, path in enumerate(paths):
            picture = Image.open(path).convert("RGB").resize((edge_px, edge_px), Image.Resampling.BOX)
            pixels[row] = np.asarray(picture).transpose(2, 0, 1)
        np.save(cache, pixels)
    return torch.from_numpy(np.load(cache))


def build_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        norm_num_groups=WIDTHS[0] // 4,  # one channel a group made it grey
        latent_channels=4,
    )
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.weight") and "resnets" in name:
            parameter.data.mul_(0.1)  # near-identity residual blocks at the start
    vae.encoder.conv_out.weight.data[4:].zero_()
    vae.encoder.conv_out.bias.data[4:].fill_(-6.0)
    return vae.to(memory_format=torch.channels_last)


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(
    vae: AutoencoderKL, x: torch.Tensor, kl_weight: float, decoder_only: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.set_grad_enabled(not decoder_only):
        posterior = vae.encode(x).latent_dist
        z = posterior.sample()
    if decoder_only:  # a little noise: what the decoder will meet was drawn, not encoded
        z = z + 0.05 / SCALE * torch.randn_like(z)
    y = vae.decode(z).sample
    pixel = (y - x).abs().mean() + (y - x).square().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    return pixel + edge + kl_weight * posterior.kl().mean() / x[0].numel(), (y - x).square().mean().detach()


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Shift and scale the latents to zero mean and unit variance under 0.18215, function unchanged."""
    sample = pixels[:: max(1, len(pixels) // 512)].float() / 127.5 - 1
    latents = vae.encode(sample).latent_dist.mean
    mean = latents.mean((0, 2, 3))
    factor = 1 / (SCALE * latents.std((0, 2, 3)))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:4] *= factor[:, None, None, None]
    encode.bias[:4] = (encode.bias[:4] - mean) * factor
    encode.bias[4:] += 2 * factor.log()
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight /= factor[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--edge-px", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="continue from this VAE's weights")
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder, and so all latents")
    parser.add_argument("--kl", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    pixels = read_world(chosen.world, chosen.edge_px)
    is_held = torch.arange(len(pixels)) % 97 == 0
    held, trained = pixels[is_held], pixels[~is_held]
    vae = build_vae()
    if chosen.start:
        vae.load_state_dict(load_file(chosen.start))
    if chosen.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimiser = torch.optim.AdamW(
        vae.parameters(), lr=chosen.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    average = {name: value.clone() for name, value in vae.state_dict().items()}
    state_path = chosen.out.with_suffix(".state.pt")
    step, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        average, step, spent = state["average"], state["step"], state["spent"]
    order = torch.Generator().manual_seed(chosen.seed + step)
    budget, began, saved = chosen.minutes * 60, time.time() - spent, time.time()
    history: list[float] = []
    while (spent := time.time() - began) < budget:
        rate = chosen.rate * min(1.0, step / 100) * (1.02 - min(1.0, spent / budget))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(trained), (chosen.batch,), generator=order)
        x = (trained[rows].float() / 127.5 - 1).to(memory_format=torch.channels_last)
        loss, square = loss_of(vae, x, chosen.kl, chosen.decoder_only)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        keep = min(0.998, step / (step + 10))
        for name, value in vae.state_dict().items():
            average[name].lerp_(value, 1 - keep)
        history.append(10 * np.log10(4 / square.item()))
        if step % 100 == 0:
            print(
                f"step {step} {spent:.0f} s psnr {np.mean(history[-100:]):.2f} dB loss {loss.item():.4f}",
                flush=True,
            )
        if time.time() - saved > 120:
            saved = time.time()
            part = state_path.with_suffix(".part")
            torch.save(
                {
                    "vae": vae.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average,
                    "step": step,
                    "spent": spent,
                },
                part,
            )
            os.replace(part, state_path)
    vae.load_state_dict(average)
    vae.eval()
    with torch.no_grad():
        x = held[:128].float() / 127.5 - 1
        before = vae(x).sample
        if not chosen.decoder_only:
            fold_scale(vae, pixels)
        after = vae(x).sample
        latents = vae.encode(x).latent_dist.mean * SCALE
    psnr = 10 * np.log10(4 / (after.clamp(-1, 1) - x).square().mean().item())
    print(
        f"psnr {psnr:.2f} dB; folding moved a pixel by {(before - after).abs().max():.1e}; "
        f"latent std {latents.std():.3f}"
    )
    metadata = {
        "made_by": "starter/train_vae.py",
        "steps": str(step),
        "edge_px": str(chosen.edge_px),
        "psnr_db": f"{psnr:.2f}",
        "config": json.dumps(dict(vae.config), default=str),
    }
    save_file({n: v.contiguous() for n, v in vae.state_dict().items()}, str(chosen.out), metadata=metadata)


if __name__ == "__main__":
    main()
