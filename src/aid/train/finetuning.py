"""One fine-tuning run in memory: model, optimiser, averaged weights, and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aid.sd.checkpoint import StableDiffusion
from aid.sd.state import optimiser_tensors, restore_optimiser
from aid.sd.tensorfile import Header
from aid.sd.text_encoder import encode_ids
from aid.train.average import Average
from aid.train.loss import Diffusion
from aid.train.plan import Step
from aid.train.settings import FinetuneSettings


class Finetuning:
    """U-Net and text encoder under one AdamW, each with its own rate."""

    def __init__(
        self, model: StableDiffusion, settings: FinetuneSettings, steps: int, device: torch.device
    ) -> None:
        self.model, self.settings, self.steps, self.device = model, settings, steps, device
        self.diffusion = Diffusion(device, settings.weighting, settings.snr_gamma)
        model.vae.requires_grad_(False).to("cpu")  # latents are cached; only sheets need it
        model.unet.to(memory_format=torch.channels_last)
        groups = [(model.unet, settings.unet_rate), (model.text_encoder, settings.text_rate)]
        for module, rate in groups:
            module.requires_grad_(rate > 0)
        if settings.checkpointing:
            model.unet.train().enable_gradient_checkpointing()
        self.parameters = [p for module, _ in groups for p in module.parameters() if p.requires_grad]
        trained = [(module, rate) for module, rate in groups if rate > 0]
        self.optimiser = torch.optim.AdamW(
            [{"params": list(module.parameters()), "lr": rate, "rate": rate} for module, rate in trained],
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.average = Average(self.parameters if settings.ema else [], settings.ema)

    def step(self, step: Step) -> tuple[float, float]:
        """One optimiser step; its loss and gradient norm."""
        factor = rate_factor(step.index, self.steps, self.settings.warmup, self.settings.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * factor
        total = 0.0
        for part in step.parts(self.settings.part_size):
            loss = self.loss(part) * (len(part.records) / len(step.records))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        limit = self.settings.gradient_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(step.index)
        return total, norm.item()

    def loss(self, step: Step) -> Tensor:
        noised = step.noised.to(self.device)
        draws = self.settings.noise_draws
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            text = self.encode(step.ids.to(self.device)).repeat_interleave(draws, 0)
            losses = self.diffusion.losses(self.model.unet, noised.latents, noised.noise, noised.t, text)
        return (losses * step.weights.to(self.device).repeat_interleave(draws)).mean()

    def encode(self, ids: Tensor) -> Tensor:
        """Windows of 77 ids, [b, windows, 77] -> [b, windows * 77, width]."""
        hidden = encode_ids(self.model.text_encoder, ids.flatten(0, 1), self.settings.clip_skip)
        return hidden.reshape(len(ids), -1, hidden.shape[-1])

    def unet_rate(self) -> float:
        """The learning rate now of the first group."""
        return float(f"{self.optimiser.param_groups[0]['lr']:.6g}")

    @contextmanager
    def averaged(self) -> Iterator[StableDiffusion]:
        """The whole model on the device with its averaged weights, or its own if averaging is off."""
        self.model.vae.to(self.device)
        with self.average.applied():
            yield self.model
        self.model.vae.to("cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        weights = {f"weight.{index}": p.detach() for index, p in enumerate(self.parameters)}
        average = {f"average.{index}": value for index, value in enumerate(self.average.values)}
        return {**weights, **average, **optimiser_tensors(self.optimiser)}

    @torch.no_grad()
    def restore(self, saved: Header) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(saved.read(f"weight.{index}"))
        for index, value in enumerate(self.average.values):
            value.copy_(saved.read(f"average.{index}"))
        restore_optimiser(self.optimiser, saved)


def rate_factor(index: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate at step `index` of `steps`, as a factor."""
    if index < warmup:
        return (index + 1) / warmup
    passed = (index - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}[schedule]
