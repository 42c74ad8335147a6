"""VAE latents, made while other threads decode the next pictures.

Pictures come in the order of their rows and wait, bucket by bucket, until a batch is full. Every batch has
the same number of pictures, the last of a bucket being filled up with repeats: what a picture's latent is,
to the last bit, then doesn't hang on its neighbours, and one of an earlier run may stand for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aid.core.dataset import Latents
from aid.core.files import sha256_of
from aid.core.workbench import Ticker
from aid.dataset.cutting.cut import SHRINK, View
from aid.dataset.cutting.fitting import Size
from aid.dataset.latents.vault import Vault
from aid.errors import ModelError
from aid.sd.file.tensorfile import hash_tensors

CHANNELS = 4  # of the latents of SD1, SD2 and SDXL
KEY_VERSION = 1  # counts up when the same key would mean other latents
Pixels = NDArray[np.uint8]
REUSED = "as before"


class Encoder:
    """Encodes views as they come, but for those whose latents are there; `vae` is that of `load_vae`."""

    def __init__(self, vae: Any, vault: Vault, batch: int, mirrored: bool, tick: Ticker) -> None:
        self.vae, self.vault, self.batch, self.tick = vae, vault, batch, tick
        self.sides = (False, True) if mirrored else (False,)
        self.vae_hash = hash_tensors(vae.state_dict())
        self.waiting: dict[Size, list[tuple[str, Pixels]]] = {}
        self.rows: dict[tuple[Size, bool], list[str]] = {}

    def add(self, sha256: str, view: View) -> None:
        """Take the next view of a picture; encodes a batch when there is one.

        Raises ModelError if the VAE gives anything but finite f=8 latents of 4 channels.
        """
        for mirrored in self.sides:
            key = self.key(sha256, view, mirrored)
            self.rows.setdefault((view.size, mirrored), []).append(key)
            if key in self.vault:
                self.tick(1, REUSED)
                continue
            self.take(key, view, mirrored)

    def take(self, key: str, view: View, mirrored: bool) -> None:
        """A view whose latent is still to be made."""
        waiting = self.waiting.setdefault(view.size, [])
        waiting.append((key, view.pixels[:, ::-1] if mirrored else view.pixels))
        if len(waiting) == self.batch:
            self._encode(view.size)

    def encode_rest(self) -> None:
        for size in sorted(self.waiting):
            self._encode(size)

    def finish(self) -> None:
        """Encode what is left, and write the shards."""
        self.encode_rest()
        self.vault.flush()
        for (size, mirrored), keys in sorted(self.rows.items()):
            self.vault.write_shard(size, mirrored, keys)

    def key(self, sha256: str, view: View, mirrored: bool) -> str:
        """The sha256 of all that a latent depends on."""
        return sha256_of(
            {
                "picture": sha256,
                "box": view.box,
                "size": view.size,
                "mirrored": mirrored,
                "vae": self.vae_hash,
                "batch": self.batch,
                "version": KEY_VERSION,
            }
        )

    def _encode(self, size: Size) -> None:
        batch = self.waiting.pop(size)
        pixels = [pixels for _, pixels in batch]
        latents = encode(self.vae, pixels + pixels[-1:] * (self.batch - len(pixels)))[: len(batch)]
        self.vault.put(size, dict(zip((key for key, _ in batch), latents, strict=True)))
        self.tick(len(batch))


@torch.inference_mode()
def encode(vae: Any, pictures: Sequence[Pixels]) -> Latents:
    """float16 [b, 2, 4, H/8, W/8] of pictures [H, W, 3]: mean and deviation of the posterior, unscaled.

    Raises ModelError if it is anything else, or not finite.
    """
    pixels = torch.from_numpy(np.stack(pictures)).to(vae.device).permute(0, 3, 1, 2)
    posterior = vae.encode(pixels.float().contiguous() * (2 / 255) - 1).latent_dist
    latents: Latents = torch.stack([posterior.mean, posterior.std], dim=1).cpu().numpy().astype("<f2")
    height, width, _ = pictures[0].shape
    expected = [2, CHANNELS, height // SHRINK, width // SHRINK]
    if list(latents.shape[1:]) != expected:
        raise ModelError(f"the VAE gave latents of {list(latents.shape[1:])}", f"{expected}")
    if not np.isfinite(latents).all():
        raise ModelError("the VAE gave latents that are not finite", "those of a sound VAE")
    return latents
