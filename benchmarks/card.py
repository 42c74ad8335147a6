"""What each model gives to the card's merge of three: held-out loss by noise level, and the pictures.

    aid make starter/merge.toml --out RUN
    python benchmarks/card.py RUN [--draws N] [--json FILE]

S is the style model alone; H gives the detail model's blocks (IN00-05), P the composition model's (IN06-11
and M00). Figures are of pairs, the same held-out picture and noise, or the same shot, beside S; +- is half
of a 95 % interval. Pictures are compared by areas of 8x8 pixels and within these, in 256 levels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reporting import Row, report
from torch import Tensor

from aid.core.dataset import Dataset
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.sd.model.location import resolve_checkpoint
from aid.sd.model.text_encoder import encode_ids
from aid.sd.sampling.noise import alphas_cumprod
from aid.train.balance.measure import fixed_captions
from aid.train.settings import FinetuneSettings
from aid.train.step.batch import token_windows

MERGES = {"S+H": "s-h", "S+P": "s-p", "S+H+P": "s-h-p"}
LEVELS = (100, 300, 500, 700, 900)  # timesteps
AREA = 8


@torch.no_grad()
def losses(model: StableDiffusion, dataset: Dataset, draws: int) -> Tensor:
    """Mean squared errors of the noise. [held-out pictures, levels]"""
    held = [record for record in dataset.records if record.split == "held"]
    write, chance = fixed_captions(FinetuneSettings(steps=1)), torch.Generator().manual_seed(0)
    latents = torch.from_numpy(dataset.fetch(held)[:, 0]).float() * model.architecture.vae_scale
    told = encode_ids(model.text_encoder, token_windows([write(record) for record in held], 1)[:, 0])
    alphas, found = alphas_cumprod(), []
    for t in LEVELS:
        level = torch.zeros(len(held))
        for _ in range(draws):
            noise = torch.randn(latents.shape, generator=chance)
            x = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
            steps = torch.full((len(held),), t)
            level += (model.unet(x, steps, told).sample - noise).square().mean((1, 2, 3)) / draws
        found.append(level)
    return torch.stack(found, 1)


def pictures(folder: Path) -> np.ndarray:
    """[pictures, height, width, 3], 0 to 255."""
    return np.stack(
        [
            np.asarray(Image.open(path).convert("RGB"), np.float64)
            for path in sorted(folder.glob("[0-9]*-[0-9]*.png"))
        ]
    )


def coarse_and_fine(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares of each pair's difference: of areas' means, and of what is left."""
    difference = own - other
    count, height, width, colours = difference.shape
    areas = difference.reshape(count, height // AREA, AREA, width // AREA, AREA, colours)
    means = areas.mean((2, 4), keepdims=True)
    return (
        np.sqrt(np.square(means).mean((1, 2, 3, 4, 5))),
        np.sqrt(np.square(areas - means).mean((1, 2, 3, 4, 5))),
    )


def told(name: str, pairs: np.ndarray, unit: str) -> Row:
    half = 1.96 * pairs.std(ddof=1) / np.sqrt(len(pairs))
    return Row(f"{name} (+- {half:.2f})", float(pairs.mean()), unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    dataset, rows = Dataset(chosen.run / "dataset"), list[Row]()

    def of(folder: str) -> Tensor:
        return losses(load_checkpoint(resolve_checkpoint(chosen.run / folder)), dataset, chosen.draws)

    before = of("style")
    for name, folder in MERGES.items():
        changes = 100 * (of(folder) - before) / before.mean(0)
        for level, pairs in zip(LEVELS, changes.T.numpy(), strict=True):
            rows.append(told(f"{name}: loss at timestep {level}, beside S", pairs, "%"))
    own = pictures(chosen.run / "seen-s")
    for name, folder in MERGES.items():
        coarse, fine = coarse_and_fine(pictures(chosen.run / f"seen-{folder}"), own)
        rows.append(told(f"{name}: pictures' areas beside S's", coarse, "levels"))
        rows.append(told(f"{name}: within the areas", fine, "levels"))
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
