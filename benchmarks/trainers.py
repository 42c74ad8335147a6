"""The training loops of other tools, as their scripts run them, for a model in memory.

diffusers' examples/dreambooth/train_dreambooth.py with --train_text_encoder reads the picture's file and
encodes it in every step. kohya-ss/sd-scripts' train_db.py with --cache_latents tokenises in every step; its
AdamW is torch's as it comes. diffusers' examples/text_to_image/train_text_to_image_sdxl.py trains the U-Net
alone; latents and texts are encoded before. All go through accelerate and diffusers' DDPMScheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor

from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.tokenizer import load_tokenizer

Run = Callable[[], None]
CAPTION = "by style, 1girl, red hair, smile, outdoors"


class Loop:
    """What all scripts have in common. `trained` are the model's parts that are."""

    def __init__(
        self,
        model: StableDiffusion,
        precision: str = "no",
        trained: Sequence[str] = ("unet", "text_encoder"),
    ) -> None:
        self.accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision=precision)
        self.model = model
        model.vae.requires_grad_(False)
        self.parameters = [one for part in trained for one in getattr(model, part).parameters()]
        optimiser = torch.optim.AdamW(self.parameters, lr=1e-6, weight_decay=1e-2)
        schedule = get_scheduler("constant", optimizer=optimiser)
        for part in trained:
            setattr(model, part, self.accelerator.prepare(getattr(model, part)).train())
        self.optimiser, self.schedule = self.accelerator.prepare(optimiser, schedule)
        self.noise = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
        )
        self.tokenizer = load_tokenizer()

    def context(self, batch: int) -> Tensor:
        encoded: Tensor = self.model.text_encoder(self.tokens(batch))[0]
        return encoded

    def tokens(self, batch: int) -> Tensor:
        words = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        rows = [self.tokenizer(CAPTION, **words).input_ids for _ in range(batch)]
        return torch.cat(rows).to(self.model.device)

    def step(self, latents: Tensor, **told: Any) -> None:
        """`told` is what the U-Net is given beside the noisy latents."""
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(latents),), device=latents.device)
        x = self.noise.add_noise(latents, noise, t)
        predicted = self.model.unet(x, t, return_dict=False, **told)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="none").mean(
            (1, 2, 3)
        )
        self.accelerator.backward(loss.mean())
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        loss.mean().detach().item()


def diffusers_loop(model: StableDiffusion, edge: int, batch: int, folder: Path) -> Run:
    loop, files = Loop(model), []
    chance = np.random.default_rng(0)
    for index in range(batch):
        files.append(folder / f"{index}.png")
        Image.fromarray(chance.integers(0, 256, (edge, edge, 3), dtype=np.uint8)).save(files[-1])

    def read(path: Path) -> Tensor:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR))
        return torch.from_numpy(values).permute(2, 0, 1).float() / 127.5 - 1

    def step() -> None:
        pixels = torch.stack([read(path) for path in files]).contiguous().to(model.device)
        with torch.no_grad():
            latents = model.vae.encode(pixels).latent_dist.sample() * model.architecture.vae_scale
        loop.step(latents, encoder_hidden_states=loop.context(batch))

    return step


def kohya_loop(model: StableDiffusion, edge: int, batch: int) -> Run:
    loop = Loop(model)
    cached = np.random.default_rng(0).normal(size=(batch, 4, edge // 8, edge // 8)).astype(np.float32)

    def step() -> None:
        latents = torch.stack([torch.from_numpy(row) for row in cached]).to(model.device)
        loop.step(latents * model.architecture.vae_scale, encoder_hidden_states=loop.context(batch))

    return step


def sdxl_loop(model: StableDiffusion, edge: int, batch: int, precision: str, recomputed: bool) -> Run:
    device, architecture = model.device, model.architecture
    if recomputed:
        model.unet.enable_gradient_checkpointing()
    loop = Loop(model, precision, ["unet"])
    latents = torch.randn(batch, 4, edge // 8, edge // 8, device=device)
    text = torch.randn(batch, 77, architecture.context_width, device=device)
    pooled = torch.randn(batch, architecture.text_2_width, device=device)

    def step() -> None:
        sizes = torch.tensor([[edge, edge, 0, 0, edge, edge]] * batch, device=device)
        beside = {"text_embeds": pooled, "time_ids": sizes}
        loop.step(latents, encoder_hidden_states=text, added_cond_kwargs=beside)

    return step
