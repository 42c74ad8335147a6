"""VAE latents from the workers of a Ray cluster, as many as it has GPUs, or machines."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aid.core.dataset import Latents
from aid.dataset.cluster import Worked, connected, opened
from aid.dataset.cutting.cut import View
from aid.dataset.cutting.fitting import Size
from aid.dataset.latents.latent import Encoder, encode
from aid.sd.model.checkpoint import load_vae

Job = tuple[str, bool]  # a cut picture's path, and whether it is mirrored


class ClusterEncoder(Encoder):
    """Collects batches while pictures are cut, and has them encoded at the end. Pixels come from the cut
    pictures, which are lossless."""

    def __init__(self, vae: Any, vae_path: Path, address: str, *words: Any) -> None:
        super().__init__(vae, *words)
        self.vae_path, self.address = vae_path, address
        self.batches: list[tuple[Size, list[str], list[Job]]] = []
        self.collected: dict[Size, list[tuple[str, Job]]] = {}

    def take(self, key: str, view: View, mirrored: bool) -> None:
        waiting = self.collected.setdefault(view.size, [])
        waiting.append((key, (str(self.vault.folder / view.file), mirrored)))
        if len(waiting) == self.batch:
            self._collect(view.size)

    def _collect(self, size: Size) -> None:
        waiting = self.collected.pop(size)
        self.batches.append((size, [key for key, _ in waiting], [job for _, job in waiting]))

    def encode_rest(self) -> None:
        for size in sorted(self.collected):
            self._collect(size)
        made = encoded(self.vae_path, [jobs for _, _, jobs in self.batches], self.batch, self.address)
        for (size, keys, _), latents in zip(self.batches, made, strict=True):
            self.vault.put(size, dict(zip(keys, latents, strict=True)))
            self.tick(len(keys))


def encoded(vae: Path, batches: list[list[Job]], count: int, address: str) -> Iterator[Latents]:
    """Latents of each batch, by as many workers with a VAE as there are GPUs, or machines."""
    if not batches:
        return
    ray = connected(address)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = gpus or len([node for node in ray.nodes() if node["Alive"]])
    rows = [{"job": pickle.dumps(jobs)} for jobs in batches]
    data = ray.data.from_items(rows).map(
        VaeWorker,
        fn_constructor_args=(str(vae), "cuda" if gpus else "cpu", count),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
    )
    for row in data.iter_rows():
        yield opened(row)


class VaeWorker(Worked):
    """Encodes batches of cut pictures; each is filled up to `count`, as one machine alone does it."""

    def __init__(self, vae: str, device: str, count: int) -> None:
        super().__init__(self.encode)
        self.vae, self.count = load_vae(Path(vae), device), count

    def encode(self, jobs: list[Job]) -> Latents:
        pixels = [np.asarray(Image.open(path).convert("RGB")) for path, _ in jobs]
        turned = [one[:, ::-1] if job[1] else one for one, job in zip(pixels, jobs, strict=True)]
        return encode(self.vae, turned + turned[-1:] * (self.count - len(turned)))[: len(jobs)]
