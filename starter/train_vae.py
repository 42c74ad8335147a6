"""Train the starter's VAE: SD1's AutoencoderKL topology (248 keys), narrower.

    python starter/train_vae.py WORLD OUT.safetensors --edge-px 128 64 --steps 6000 --drawings DRAWINGS

Of each batch half comes from the world. The other half, from DRAWINGS (starter/drawings.py) and the world
alike, is varied: closer, mirrored, in other colours. A VAE that has seen ten styles alone blurs every other.
Pictures are read at twice the largest edge; with several, steps take turns between them.

Run it again to continue: the state lies in OUT.unfinished, and with the same settings and --threads the
result is the same to the byte as in one go. The loss is L1 + an edge term (L1 of finite differences) + a
light KL; at the end the latents are brought to unit variance under SD1's fixed factor 0.18215, so every
tool may treat the file as any SD1 VAE, and with --start to that one's axes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d

from aid.core.files import replacing, sha256_file, sha256_of
from aid.errors import FileError, SettingsError
from aid.sd.file.state import (
    load_state,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_state,
)
from aid.sd.file.tensorfile import write_tensors
from aid.sd.model.checkpoint import VAE_SCALE
from aid.sd.model.device import same_bits_on_cuda
from aid.train.step.batch import step_generator


def read_pictures(world: Path, edge_px: int) -> torch.Tensor:
    """Every picture under `world` as uint8 [n, 3, edge, edge], mapped from a cache beside it.

    Raises FileError if there are none."""
    paths = sorted(world.glob("*/*.webp"))
    if not paths:
        raise FileError(
            f"{world} holds no pictures", "folders of .webp files, as starter/world.py makes them"
        )
    known = [(str(path.relative_to(world)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    cache = world.parent / f"{world.name}-{edge_px}-{sha256_of(known)[:16]}.npy"
    if not cache.exists():
        pixels = np.empty((len(paths), 3, edge_px, edge_px), np.uint8)
        for row, path in enumerate(paths):
            picture = Image.open(path).convert("RGB").resize((edge_px, edge_px), Image.Resampling.BOX)
            pixels[row] = np.asarray(picture).transpose(2, 0, 1)
        with replacing(cache) as stream:
            np.save(stream, pixels)
    return torch.from_numpy(np.load(cache, mmap_mode="c"))


def build_vae(widths: Sequence[int]) -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=widths[0] // 4,  # one channel a group made it grey
        latent_channels=4,
    )
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.weight") and "resnets" in name:
            parameter.data.mul_(0.1)  # near-identity residual blocks at the start
    vae.encoder.conv_out.weight.data[4:].zero_()
    vae.encoder.conv_out.bias.data[4:].fill_(-6.0)
    return vae.to(memory_format=torch.channels_last)


def read_vae(path: Path) -> AutoencoderKL:
    """A VAE that this script has written, whatever its widths."""
    tensors = load_file(path)
    vae = build_vae([len(tensors[f"encoder.down_blocks.{level}.resnets.0.conv1.bias"]) for level in range(4)])
    vae.load_state_dict(tensors)
    return vae.eval()


def reduced(pictures: torch.Tensor, edge: int) -> torch.Tensor:
    """uint8 [n, 3, k edge, k edge] -> float [n, 3, edge, edge] in -1..1."""
    return avg_pool2d(pictures.float(), pictures.shape[-1] // edge) / 127.5 - 1


def varied(picture: torch.Tensor, edge: int, chance: torch.Generator) -> torch.Tensor:
    """uint8 [3, 2k edge, 2k edge] -> float [1, 3, edge, edge] in -1..1.

    A third at twice the size, half mirrored, half with channels exchanged, some of those as negatives."""
    closer, mirrored, exchanged, negative = (
        torch.rand(4, generator=chance) < torch.tensor([0.33, 0.5, 0.5, 0.1])
    ).tolist()
    if closer:
        half = picture.shape[-1] // 2
        top, left = torch.randint(half + 1, (2,), generator=chance).tolist()
        picture = picture[:, top : top + half, left : left + half]
    x = reduced(picture[None], edge)
    if mirrored:
        x = x.flip(-1)
    if exchanged:
        x = x[:, torch.randperm(3, generator=chance)]
    return -x if exchanged and negative else x


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(
    vae: AutoencoderKL, x: torch.Tensor, kl_weight: float, decoder_only: bool, chance: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the mean square error alone."""
    with torch.set_grad_enabled(not decoder_only):
        posterior = vae.encode(x).latent_dist
        z = posterior.sample(chance)
    if decoder_only:  # a little noise: what the decoder will meet was drawn, not encoded
        z = z + 0.05 / VAE_SCALE * torch.randn(z.shape, generator=chance).to(z)
    y = vae.decode(z).sample
    pixel = (y - x).abs().mean() + (y - x).square().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    return pixel + edge + kl_weight * posterior.kl().mean() / x[0].numel(), (y - x).square().mean().detach()


def towards(latents: torch.Tensor, wanted: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """M [4, 4] and c [4], so that M z + c has mean 0 and variance 1, and lies nearest to what is `wanted`."""
    z = latents.permute(0, 2, 3, 1).reshape(-1, 4).double()
    matrix, shift = torch.eye(4).to(z), torch.zeros(4).to(z)
    if wanted is not None:
        with_one = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        found = torch.linalg.lstsq(with_one, wanted.permute(0, 2, 3, 1).reshape(-1, 4).double()).solution
        matrix, shift = found[:4].T, found[4]
    moved = z @ matrix.T + shift
    factor = 1 / moved.std(0)
    return factor[:, None] * matrix, factor * (shift - moved.mean(0))


@torch.no_grad()
def fold(vae: AutoencoderKL, pixels: torch.Tensor, edge: int, start: AutoencoderKL | None) -> None:
    """Give the latents zero mean and unit variance under 0.18215, and where there is a `start` its axes, so
    that a U-Net taught on its latents can go on. What comes back from encoding and decoding is unchanged."""
    sample = reduced(pixels[:: max(1, len(pixels) // 512)], edge)
    mean = vae.encode(sample).latent_dist.mean
    matrix, shift = towards(
        mean * VAE_SCALE, start.encode(sample).latent_dist.mean * VAE_SCALE if start else None
    )
    shift = shift / VAE_SCALE
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:4] = (matrix @ encode.weight[:4, :, 0, 0].double())[:, :, None, None]
    encode.bias[:4] = matrix @ encode.bias[:4].double() + shift
    encode.bias[4:] += 2 * matrix.norm(dim=1).log()
    back = decode.weight[:, :, 0, 0].double() @ matrix.inverse()
    decode.weight.copy_(back[:, :, None, None])
    decode.bias.copy_(decode.bias.double() - back @ shift)


class Training:
    """The VAE, its optimiser, and its averaged weights."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        torch.manual_seed(chosen.seed)
        self.vae = build_vae(chosen.widths)
        if chosen.start and not chosen.axes_only:
            self.vae.load_state_dict(load_file(chosen.start))
        self.vae.to(chosen.device)
        if chosen.decoder_only:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        trained = [parameter for parameter in self.vae.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=chosen.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.average = {name: value.clone() for name, value in self.vae.state_dict().items()}

    def step(self, index: int, pictures: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One step, all its randomness from (seed, index); its loss and mean square error."""
        chosen = self.chosen
        for group in self.optimiser.param_groups:
            group["lr"] = chosen.rate * min(1.0, index / 100) * (1.02 - index / chosen.steps)
        chance = step_generator(chosen.seed, index)
        edge = chosen.edge_px[index % len(chosen.edge_px)]
        x = self.batch(edge, pictures, others, chance)
        loss, square = loss_of(self.vae, x, chosen.kl, chosen.decoder_only, chance)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step()
        keep = min(0.998, (index + 1) / (index + 11))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.vae.state_dict().values()), 1 - keep)
        return loss.detach(), square

    def batch(
        self, edge: int, pictures: torch.Tensor, others: torch.Tensor, chance: torch.Generator
    ) -> torch.Tensor:
        """Half the world as it is, half of everything varied; [batch, 3, edge, edge] in -1..1."""
        half = self.chosen.batch // 2
        rows = torch.randint(len(pictures), (self.chosen.batch - half,), generator=chance)
        all_rows = torch.randint(len(others) + len(pictures), (half,), generator=chance).tolist()
        rest = [
            varied(others[row] if row < len(others) else pictures[row - len(others)], edge, chance)
            for row in all_rows
        ]
        whole = torch.cat([reduced(pictures[rows], edge), *rest])
        return whole.contiguous(memory_format=torch.channels_last)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on."""
        average = {f"average.{name}": value for name, value in self.average.items()}
        return {**module_tensors(self.vae), **average, **optimiser_tensors(self.optimiser)}

    def resume(self, folder: Path) -> int:
        """Continue from the newest whole state; the number of steps already done."""
        state = load_state(folder)
        if state is None:
            return 0
        done, saved = state
        restore_module(self.vae, saved)
        restore_optimiser(self.optimiser, saved)
        for name, value in self.average.items():
            value.copy_(saved.read(f"average.{name}"))
        return done


def sha256_of_pictures(pictures: torch.Tensor) -> str:
    return hashlib.sha256(pictures.cpu().numpy()).hexdigest()


def finish(training: Training, pictures: torch.Tensor, held: torch.Tensor, data: dict[str, str]) -> None:
    """Write the averaged weights, scaled, with how they were made in the metadata."""
    vae, chosen = training.vae, training.chosen
    edge, device = chosen.edge_px[0], vae.device
    start = read_vae(chosen.start).to(device) if chosen.start else None
    vae.load_state_dict(training.average)
    vae.eval()
    with torch.no_grad():
        x = reduced(held[:128], edge)
        before = vae(x).sample
        if not chosen.decoder_only:
            fold(vae, pictures, edge, start)
        after = vae(x).sample
        latents = vae.encode(x).latent_dist.mean * VAE_SCALE
    psnr = 10 * np.log10(4 / (after.clamp(-1, 1) - x).square().mean().item())
    print(
        f"psnr {psnr:.2f} dB; folding moved a pixel by {(before - after).abs().max():.1e}; "
        f"latent std {latents.std():.3f}"
    )
    metadata = {
        "made_by": "starter/train_vae.py",
        **{
            name: str(getattr(chosen, name))
            for name in ("edge_px", "widths", "steps", "batch", "rate", "kl", "seed")
        },
        "start_sha256": sha256_file(chosen.start) if chosen.start else "",
        "machine": machine(vae.device, chosen.threads),
        **data,
        "psnr_db": f"{psnr:.2f}",
        "config": json.dumps(dict(vae.config), default=str),
    }
    write_tensors(chosen.out, vae.cpu().state_dict(), metadata)


def machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.machine()}, {threads} threads"


def refuse_another(folder: Path, chosen: argparse.Namespace) -> None:
    """Raise SettingsError if what lies unfinished in `folder` was begun with other settings."""
    asked = json.dumps({name: str(value) for name, value in vars(chosen).items() if name != "threads"})
    told = folder / "settings.json"
    if told.exists() and told.read_text() != asked:
        raise SettingsError(
            f"{folder} was begun with {told.read_text()}", asked, "Use those again, or delete that folder."
        )
    with replacing(told) as stream:
        stream.write(asked.encode())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drawings", type=Path, help="drawings of other hands, for half of each batch")
    parser.add_argument("--edge-px", type=int, nargs="+", default=[64], help="edges of the training pictures")
    parser.add_argument("--widths", type=int, nargs=4, default=[16, 32, 64, 64])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="begin with this VAE's weights, and end at its axes")
    parser.add_argument("--axes-only", action="store_true", help="begin anew, and end at the axes of --start")
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder, and so all latents")
    parser.add_argument("--kl", type=float, default=3e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500, help="steps between saved states")
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)
    read_px = 2 * max(chosen.edge_px)
    if uneven := [edge for edge in chosen.edge_px if read_px % (2 * edge)]:
        largest = max(chosen.edge_px)
        raise SettingsError(f"--edge-px {uneven[0]} beside {largest}", f"edges that divide {largest}")
    if chosen.device.startswith("cuda"):
        same_bits_on_cuda()
    pixels = read_pictures(chosen.world, read_px).to(chosen.device)
    is_held = torch.arange(len(pixels)) % 97 == 0
    held, trained = pixels[is_held], pixels[~is_held]
    others = read_pictures(chosen.drawings, read_px).to(chosen.device) if chosen.drawings else pixels[:0]
    training, unfinished = Training(chosen), chosen.out.with_suffix(".unfinished")
    refuse_another(unfinished, chosen)
    history: list[torch.Tensor] = []
    for index in range(training.resume(unfinished), chosen.steps):
        loss, square = training.step(index, trained, others)
        history = [*history[-99:], square]
        if (index + 1) % 100 == 0:
            psnr = -10 * (torch.stack(history) / 4).log10().mean()
            print(f"step {index + 1} psnr {psnr:.2f} dB loss {loss:.4f}", flush=True)
        if (index + 1) % chosen.save_every == 0:
            save_state(unfinished, index + 1, training.tensors(), keep=2)
    finish(
        training,
        pixels,
        held,
        {"world_sha256": sha256_of_pictures(pixels), "drawings_sha256": sha256_of_pictures(others)},
    )
    shutil.rmtree(unfinished)


if __name__ == "__main__":
    main()
