"""One training in memory: what is trained, its optimiser, its averaged weights, and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from aid.errors import ModelError
from aid.sd.file.tensorfile import Header
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.prompt.text import Conditioning
from aid.train.average import Average
from aid.train.condition import condition
from aid.train.group import Group
from aid.train.loss import Diffusion
from aid.train.optimiser import at_rest, restore_state, state_tensors
from aid.train.plan import Step
from aid.train.settings import CommonSettings

Encode = Callable[[Sequence[str], int], Conditioning]  # captions, and the step they are for
Factor = Callable[[int], float]  # of the rates at a step


class Training:
    """A model of which `groups` are trained. Fine-tuning, LoRA and embeddings differ in their groups, in how
    captions are encoded, and in what holds `after` every step."""

    def __init__(
        self,
        model: StableDiffusion,
        groups: Sequence[Group],
        optimiser: Optimizer,
        settings: CommonSettings,
        *,
        encode: Encode,
        factor: Factor,
        ema: float = 0.0,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.groups, self.optimiser, self.settings = model, list(groups), optimiser, settings
        self.encode, self.factor, self.after = encode, factor, after
        self.device = model.device
        self.diffusion = Diffusion(self.device, model.architecture, settings)
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.average = Average(self.parameters if ema else [], ema)
        self.at_work: list[bool] = []
        self.adopted: Sequence[Tensor] = ()  # weights to be saved instead of the last, once training is over
        self.beside: Callable[[], dict[str, Tensor]] = dict  # what a state holds that is no weight

    def gradients(self, step: Step) -> tuple[float, float]:
        """Fill the gradients of one step; its mean loss and the gradient's norm. No weight is changed. A
        picture counts the same in a batch that is not full."""
        whole = max(len(step.records), self.settings.batch_size)
        self._thaw(step.index)
        total = torch.zeros((), device=self.device)
        for part in step.parts(self.settings.part_size):
            loss = self.loss(part) * (len(part.records) / whole)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        limit = self.settings.gradient_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        loss_value, norm_value = torch.stack([total, norm.to(total)]).tolist()
        return loss_value * whole / len(step.records), norm_value

    def _thaw(self, index: int) -> None:
        """Ask for the gradients of those groups alone that are at work."""
        at_work = [group.at_work(index) for group in self.groups]
        if at_work != self.at_work:
            for group, wanted in zip(self.groups, at_work, strict=True):
                for parameter in group.parameters:
                    parameter.requires_grad_(wanted)
        self.at_work = at_work

    def update(self, index: int) -> None:
        """Let the gradients change the weights."""
        factor = self.factor(index)
        for table, group in zip(self.optimiser.param_groups, self.groups, strict=True):
            table["lr"] = group.rate * factor
        self.optimiser.step()
        self.discard()
        self.average.update(index)
        self.after()

    def discard(self) -> None:
        """Forget the gradients."""
        self.optimiser.zero_grad(set_to_none=True)

    def loss(self, step: Step) -> Tensor:
        noised, draws = step.noised.to(self.device), self.settings.noise_draws
        if self.device.type == "cpu" and not self.model.unet.conv_in.weight.requires_grad:
            # torch's channels_last group norm crashes where its weight learns and its input asks no gradient
            noised.latents.requires_grad_()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            told = condition(self.encode(step.captions, step.index), step.records, draws)
            losses = self.diffusion.losses(self.model.unet, noised, told)
        return (losses * step.weights.to(self.device).repeat_interleave(draws)).mean()

    def rate(self, index: int) -> float:
        """The first group's learning rate at a step."""
        return float(f"{self.groups[0].rate * self.factor(index):.6g}")

    @contextmanager
    def averaged(self) -> Iterator[StableDiffusion]:
        """The whole model on the device with its averaged weights, or its own if averaging is off."""
        self.model.vae.to(self.device)
        with self.settled():
            yield self.model
        self.model.vae.to("cpu")

    @contextmanager
    def settled(self) -> Iterator[None]:
        """U-Net and text encoders with the weights that would be saved."""
        with at_rest(self.optimiser, self.parameters), self.average.applied(), torch.no_grad():
            for parameter, weight in zip(self.parameters, self.adopted, strict=False):
                parameter.copy_(weight)
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        weights = {f"weight.{index}": p.detach() for index, p in enumerate(self.parameters)}
        average = {f"average.{index}": value for index, value in enumerate(self.average.values)}
        return {**weights, **average, **state_tensors(self.optimiser), **self.beside()}

    @torch.no_grad()
    def restore(self, saved: Header) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(saved.read(f"weight.{index}"))
        for index, value in enumerate(self.average.values):
            value.copy_(saved.read(f"average.{index}"))
        restore_state(self.optimiser, saved)


def make_ready(model: StableDiffusion, settings: CommonSettings) -> None:
    """Freeze all of a model, and lay it out for training; what is trained is thawed step by step.

    Raises ModelError for an inpainting model, which would have to be shown masks.
    """
    if model.architecture.inpaints:
        raise ModelError(f"{model.path} is an inpainting model", "for training, one that draws from noise")
    for module in model.modules():
        module.requires_grad_(False)
    model.vae.to("cpu")  # latents are cached; only sheets need it
    model.unet.to(memory_format=torch.channels_last)
    if settings.checkpointing:
        model.unet.train().enable_gradient_checkpointing()
