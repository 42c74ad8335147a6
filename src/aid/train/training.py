"""One training in memory: what is trained, its optimiser, its averaged weights, and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from aid.errors import ModelError, SettingsError
from aid.sd.drawing.recording import forget
from aid.sd.file.state import laid_like
from aid.sd.file.tensorfile import Header
from aid.sd.model.architecture import FAMILY_NAMES, Architecture
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.device import sent, strictly_same_bits
from aid.sd.model.learning import Learning
from aid.sd.prompt.text import Conditioning
from aid.train.optimiser.average import Average
from aid.train.optimiser.fused import FusedAdamW, clip_factor
from aid.train.optimiser.group import Group
from aid.train.optimiser.in_backward import InBackward
from aid.train.optimiser.optimiser import at_rest, restore_state, state_tensors
from aid.train.settings import CommonSettings
from aid.train.step.condition import Written, tell
from aid.train.step.loss import Diffusion
from aid.train.step.passes import Given, Passes
from aid.train.step.plan import Step
from aid.train.team import ALONE, Team

BARE = "bare"  # in a state: passes weren't recorded
Encode = Callable[[Sequence[str], int], Conditioning | Written]  # captions, and the step they are for
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
        fused_backward: bool = False,
        after: Callable[[], None] = lambda: None,
        team: Team = ALONE,
    ) -> None:
        self.model, self.groups, self.optimiser, self.settings = model, list(groups), optimiser, settings
        self.encode, self.factor, self.after = encode, factor, after
        self.device, self.team = model.device, team
        self.learning = Learning(*(part for name, part in model.parts().items() if name != "vae"))
        self.diffusion = Diffusion(self.device, model.architecture, settings)
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.average = Average(self.parameters if ema else [], ema, settings.seed)
        self.at_work: list[bool] = []
        self.adopted: Sequence[Tensor] = ()  # weights to be saved instead of the last, once training is over
        self.beside: Callable[[], dict[str, Tensor]] = dict  # what a state holds that is no weight
        self.may_change: Callable[[], object] = list  # waits for what is still to be copied of the state
        recorded = self.device.type == "cuda" and not (fused_backward or team.sharded)
        self.passes = Passes(self._loss, recorded)
        learning = (group.parameters for group in self.groups)
        self.in_backward = InBackward(optimiser, learning) if fused_backward else None

    def gradients(self, step: Step) -> tuple[float, float]:
        """Fill the gradients of a step; its mean loss and the gradient's norm. No weight is changed, but with
        a fused backward pass: there all are, unless the loss is no finite number. A picture counts the same
        in a batch that is not full."""
        count = len(step.whole)
        places = max(count, self.settings.batch_size)
        self._thaw(step.index)
        if self.in_backward is not None:
            with self.learning, strictly_same_bits(self.device):
                return self._fused(step, count / places, self.in_backward)
        total = torch.zeros((), device=self.device)
        with self.learning, strictly_same_bits(self.device):
            for part in self.team.share(step).parts(self.settings.part_size):
                total += self.passes(self._given(part, len(part.records) / places))
        self.team.sum_gradients(self.parameters)
        norm = self.team.norm(self.parameters)
        loss_value, norm_value = torch.stack([self.team.sum(total), norm.to(total)]).tolist()
        self._clip(norm_value)
        return loss_value * places / count, norm_value

    def _clip(self, norm: float) -> None:
        """Bring gradients to the limit of their norm, at the latest when they are used."""
        factor = clip_factor(norm, self.settings.gradient_norm)
        if isinstance(self.optimiser, FusedAdamW) and self.optimiser.plain:
            self.optimiser.scale = factor
        elif factor < 1:
            self.team.scale(self.parameters, factor)

    def _fused(self, step: Step, filled: float, update: InBackward) -> tuple[float, float]:
        self._set_rates(step.index)
        loss = self._loss(self._given(step, 1.0))
        value = float(loss.detach())
        if not math.isfinite(value):
            return value, math.nan
        self.may_change()
        (filled * loss).backward()  # type: ignore[no-untyped-call]
        return value, update.settle()

    def _thaw(self, index: int) -> None:
        """Ask for the gradients of those groups alone that are at work."""
        at_work = [group.at_work(index) for group in self.groups]
        if at_work != self.at_work:
            for group, wanted in zip(self.groups, at_work, strict=True):
                for parameter in group.parameters:
                    parameter.requires_grad_(wanted)
                    parameter.grad = None
            self.passes.forget()
        self.at_work = at_work

    def update(self, index: int) -> None:
        """Let the gradients change the weights."""
        self.may_change()
        if self.in_backward is None:
            self._set_rates(index)
            self.optimiser.step()
            self.discard()
        self.average.update(index)
        self.after()

    def pass_over(self, index: int) -> None:
        """Leave a step out: the weights stay, and have its share of the averages all the same."""
        self.may_change()
        self.average.update(index)

    def _set_rates(self, index: int) -> None:
        factor = self.factor(index)
        for table, group in zip(self.optimiser.param_groups, self.groups, strict=True):
            table["lr"] = group.rate * factor

    def discard(self) -> None:
        """Forget the gradients; where passes are recorded they stay where they are, as zeros."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.passes.recorded and gradients:
            torch._foreach_zero_(gradients)
            return
        for parameter in self.parameters:
            parameter.grad = None

    def _given(self, step: Step, share: float) -> Given:
        """What the passes need of a step that is a share of the batch."""
        noised, draws = step.noised.to(self.device), self.settings.noise_draws
        if self.device.type == "cpu" and not self.model.unet.conv_in.weight.requires_grad:
            # torch's channels_last group norm crashes where its weight learns and its input asks no gradient
            noised.latents.requires_grad_()
        with self._mixed():
            captions = self.encode(step.captions, step.index)
        weights = sent(step.weights * share, self.device)
        told = tell(self.model, captions, step.records, draws)
        return Given(noised, told, weights.repeat_interleave(draws))

    def _loss(self, given: Given) -> Tensor:
        with self._mixed():
            losses = self.diffusion.losses(self.model.unet, given.noised, given.told.condition())
        return (losses * given.weights).mean()

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def rate(self, index: int) -> float:
        """The first group's learning rate at a step; where the optimiser finds one, times that."""
        found = self.optimiser.param_groups[0].get("d", 1.0)
        return float(f"{self.groups[0].rate * self.factor(index) * found:.6g}")

    @contextmanager
    def whole(self, averaged: bool = True) -> Iterator[StableDiffusion]:
        """The whole model on the device with its averaged weights, if there are any, or with the newest."""
        self.passes.forget()
        try:
            self.model.vae.to(self.device)
            with self.settled(averaged):
                yield self.team.whole_model(self.model)
        finally:
            self.model.vae.to("cpu")
            forget(self.model.unet)

    @contextmanager
    def whole_to_draw(self, averaged: bool = True) -> Iterator[StableDiffusion]:
        """The same, to draw with: where weights are in bfloat16 layers compute in that."""
        light = self.model.dtype == torch.bfloat16
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=light)
        with self.whole(averaged) as model, autocast:
            yield model

    @contextmanager
    def settled(self, averaged: bool = True) -> Iterator[None]:
        """U-Net and text encoders with the weights that would be saved, or with the newest."""
        self.may_change()
        average = self.average.applied() if averaged else nullcontext()
        with at_rest(self.optimiser, self.parameters), average, torch.no_grad():
            for parameter, weight in zip(self.parameters, self.adopted, strict=False):
                parameter.copy_(weight)
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        weights = {f"weight.{index}": p.detach() for index, p in enumerate(self.parameters)}
        average = {f"average.{index}": value for index, value in enumerate(self.average.values)}
        held = {**self.team.whole({**weights, **average, **state_tensors(self.optimiser)}), **self.beside()}
        bare = self.device.type == "cuda" and not self.passes.recorded
        return held | ({BARE: torch.ones(1)} if bare else {})

    @torch.no_grad()
    def restore(self, saved: Header) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(laid_like(saved.read(f"weight.{index}"), parameter))
        for index, value in enumerate(self.average.values):
            value.copy_(laid_like(saved.read(f"average.{index}"), value))
        restore_state(self.optimiser, saved)
        if BARE in saved.tensors and self.passes.recorded:
            self.passes.recorded = False  # as it was then given up: bits would differ
            self.passes.forget()


def make_ready(model: StableDiffusion, settings: CommonSettings, team: Team = ALONE) -> None:
    """Freeze all of a model, and lay it out for training; what is trained is thawed step by step.

    Raises ModelError for an inpainting model, which would have to be shown masks, and SettingsError for
    settings of what the model doesn't have.
    """
    require_heard(settings, model.architecture)
    if model.architecture.inpaints:
        raise ModelError(f"{model.path} is an inpainting model", "for training, one that draws from noise")
    for module in model.modules():
        module.requires_grad_(False)
    model.vae.to("cpu")  # latents are cached; only sheets need it
    if team.sharded:
        team.spread(model)  # which wants rows behind one another
    else:
        model.unet.to(memory_format=torch.channels_last)
    if settings.checkpointing:
        model.unet.train().enable_gradient_checkpointing(recompute)


def require_heard(settings: CommonSettings, architecture: Architecture) -> None:
    """Raises SettingsError for settings that would do nothing, as this family has not what they are of."""
    name = FAMILY_NAMES[architecture.family]
    if settings.clip_skip > 1 and not architecture.has_clip_skip:
        found = f"clip_skip is {settings.clip_skip}, and {name} has none: it ends at its last layer but one"
        raise SettingsError(found, "clip_skip = 1")
    for option in ("text_2_rate", "text_2_stop"):
        value = getattr(settings, option, None)
        if value is not None and not architecture.text_2_width:
            found = f"{option} is {value:g}, and {name} has one text encoder"
            raise SettingsError(found, f"{option.replace('_2', '')} alone")


def recompute(layer: Callable[..., Any], *inputs: Any) -> Any:
    """A layer whose activations are computed again for its backward pass; nothing in it is random."""
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
