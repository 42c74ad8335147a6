"""What is trained, in groups that share a learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from aid.core.blocks import block_range
from aid.errors import SettingsError
from aid.sd.model.blocks import block_of
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.layouts import PLACES
from aid.train.settings import TrainingSettings


@dataclass(frozen=True)
class Trained:
    """A parameter, the part of the model that it is in or acts on, and its block."""

    part: str
    block: str
    parameter: Tensor


@dataclass(frozen=True)
class Group:
    """Parameters with one rate, trained up to step `stop`; 0 is to the end."""

    parameters: list[Tensor]
    rate: float
    stop: int = 0

    def at_work(self, index: int) -> bool:
        return not self.stop or index < self.stop


def part_rates(settings: TrainingSettings) -> dict[str, tuple[float, int]]:
    """Each part's rate and stopping step."""
    second_rate = settings.text_rate if settings.text_2_rate is None else settings.text_2_rate
    second_stop = settings.text_stop if settings.text_2_stop is None else settings.text_2_stop
    return {
        "unet": (settings.unet_rate, settings.unet_stop),
        "text_encoder": (settings.text_rate, settings.text_stop),
        "text_encoder_2": (second_rate, second_stop),
    }


def weights_of(model: StableDiffusion) -> Iterable[Trained]:
    """Every weight of U-Net and text encoders."""
    family = model.architecture.family
    for part, module in model.parts().items():
        for name, parameter in module.named_parameters() if part != "vae" else ():
            yield Trained(part, block_of(PLACES[part](name, family).key, family), parameter)


def grouped(trained: Iterable[Trained], settings: TrainingSettings) -> list[Group]:
    """Parameters by part and block factor; those whose rate is 0 are left out.

    Raises SettingsError for a block that nothing trained is in, and if nothing is left.
    """
    rates, factors = part_rates(settings), block_factors(settings.block_rates)
    found: dict[tuple[str, float], list[Tensor]] = {}
    blocks = set()
    for one in trained:
        blocks.add(one.block)
        found.setdefault((one.part, factors.get(one.block, 1.0)), []).append(one.parameter)
    for name in settings.block_rates:
        if not blocks & set(block_range(name)):
            raise SettingsError(
                f"block_rates names {name}, where nothing is trained", ", ".join(sorted(blocks))
            )
    groups = [
        Group(parameters, rates[part][0] * factor, rates[part][1])
        for (part, factor), parameters in found.items()
        if rates[part][0] * factor > 0
    ]
    if not groups:
        raise SettingsError("nothing would be trained", "a rate above 0 for a part of this model")
    return groups


def block_factors(rates: dict[str, float]) -> dict[str, float]:
    """Every block named, ranges written out; later names win."""
    return {block: factor for name, factor in rates.items() for block in block_range(name)}
