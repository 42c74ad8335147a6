"""Optimisers by name, and their state as flat tensors that restore it to the bit.

torch's own need nothing more; bitsandbytes' and pytorch-optimizer's are imported when they are asked for.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aid.errors import SettingsError
from aid.sd.file.state import laid_like, optimiser_tensors, restore_optimiser
from aid.sd.file.tensorfile import Header
from aid.train.optimiser.fused import FusedAdamW
from aid.train.optimiser.group import Group
from aid.train.optimiser.rounding import RoundedAdamW
from aid.train.settings import TrainingSettings

PLAIN = "optimiser.plain"  # all that is no tensor, as JSON in bytes
NO_OPTIONS = {"params", "lr", "seed", "args"}  # rates and seed are settings of their own
NUMBER = (bool, int, float, type(None))
Words = dict[str, Any]
Kind = Callable[..., Optimizer]


def adamw() -> Kind:
    """See aid.train.optimiser.fused."""
    return FusedAdamW


def adamw_bf16() -> Kind:
    """AdamW in bfloat16 with random rounding: see aid.train.optimiser.rounding."""
    return RoundedAdamW


def adafactor() -> Kind:
    """Shazeer & Stern 2018: steps as large as the weights they change."""
    return torch.optim.Adafactor


def adafactor_absolute() -> Kind:
    """Adafactor whose steps are the rate, as AIDXL's config has it, and without momentum."""
    made: Kind = _library("pytorch_optimizer").AdaFactor
    return made


def adamw_8bit() -> Kind:
    """Dettmers et al. 2021."""
    made: Kind = _library("bitsandbytes").optim.AdamW8bit
    return made


def lion() -> Kind:
    """Chen et al. 2023."""
    made: Kind = _library("pytorch_optimizer").Lion
    return made


def prodigy() -> Kind:
    """Mishchenko & Defazio 2023: rates are factors, 1 for what it finds. It knows the first group's alone."""
    made: Kind = _library("pytorch_optimizer").Prodigy
    return made


def schedule_free() -> Kind:
    """Defazio et al. 2024."""
    made: Kind = _library("pytorch_optimizer").ScheduleFreeAdamW
    return made


OPTIMISERS: dict[str, Callable[[], Kind]] = {
    "adamw": adamw,
    "adamw_8bit": adamw_8bit,
    "adamw_bf16": adamw_bf16,
    "adafactor": adafactor,
    "adafactor_absolute": adafactor_absolute,
    "lion": lion,
    "prodigy": prodigy,
    "schedule_free": schedule_free,
}
OWN_WORDS: dict[str, Words] = {
    "adafactor_absolute": {
        "scale_parameter": False, "relative_step": False, "warmup_init": False, "betas": (None, 0.999),
    }
}  # fmt: skip
PACKAGES = {"pytorch_optimizer": "pytorch-optimizer", "bitsandbytes": "bitsandbytes"}


def create_optimiser(groups: Sequence[Group], settings: TrainingSettings) -> Optimizer:
    """Raises SettingsError for a library that isn't there and for options that it doesn't know."""
    kind = OPTIMISERS[settings.optimiser]()
    given: Words = {"weight_decay": settings.weight_decay, **settings.optimiser_options}
    if settings.betas is not None:
        given["betas"] = settings.betas
    words = {**OWN_WORDS.get(settings.optimiser, {}), **known(given, kind, settings.optimiser)}
    if settings.optimiser == "adamw_bf16":
        words["seed"] = settings.seed
    if settings.optimiser == "adamw_8bit":  # which lays weights so at its first step, a resumed run's too
        for parameter in (parameter for group in groups for parameter in group.parameters):
            parameter.data = parameter.data.contiguous()
    tables = [{"params": group.parameters, "lr": group.rate} for group in groups]
    try:
        return kind(tables, **words)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingsError(f"{settings.optimiser} refuses its options: {error}") from error


def known(given: Words, kind: Kind, name: str) -> Words:
    """Options as `kind` takes them, switches as such. Raises SettingsError for one that it doesn't have or
    that is no number: some libraries let any name pass, and do nothing."""
    usual = {
        option: one.default
        for option, one in inspect.signature(kind).parameters.items()
        if option not in NO_OPTIONS and (option == "betas" or isinstance(one.default, NUMBER))
    }
    if unknown := sorted(given.keys() - usual.keys()):
        raise SettingsError(f"{name} has no option {', '.join(unknown)}", ", ".join(usual))
    return {
        option: bool(value) if isinstance(usual[option], bool) else value for option, value in given.items()
    }


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = PACKAGES[name]
        raise SettingsError(
            f"the optimiser is {package}'s, and that isn't installed ({error})",
            "an installed library",
            f"pip install {package}",
        ) from error


def state_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """All that the next step depends on. Other libraries also keep numbers beside tensors, and some of both
    in their groups."""
    if _is_torchs(optimiser):
        return optimiser_tensors(optimiser)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    held = {f"state.{index}": optimiser.state.get(one) for index, one in enumerate(_parameters(optimiser))}
    tables = {table: values for table, values in held.items() if values}
    tables |= {f"group.{index}": values for index, values in enumerate(optimiser.param_groups)}
    for table, values in tables.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{table}.{name}"] = value
            elif name != "params":
                plain.setdefault(table, {})[name] = value
    written = json.dumps(plain).encode()
    return {**tensors, PLAIN: torch.frombuffer(bytearray(written), dtype=torch.uint8)}


def restore_state(optimiser: Optimizer, saved: Header) -> None:
    """Put a saved state back: tensors in their own type, and in the memory layout of their parameter."""
    if _is_torchs(optimiser):
        restore_optimiser(optimiser, saved)
        return
    parameters = _parameters(optimiser)
    optimiser.state.clear()
    plain = json.loads(bytes(saved.read(PLAIN).tolist()))
    for table, values in plain.items():
        kind, _, index = table.partition(".")
        if kind == "state":
            optimiser.state[parameters[int(index)]].update(values)
        else:
            _update_group(optimiser.param_groups[int(index)], values)
    for key in saved.tensors:
        parts = key.split(".", 3)
        if len(parts) == 4 and parts[0] == "optimiser":
            _, kind, index, name = parts
            value = saved.read(key)
            if kind == "state":
                like = parameters[int(index)]
                optimiser.state[like][name] = _laid_like(value, like)
            else:
                group = optimiser.param_groups[int(index)]
                group[name] = value.to(group["params"][0].device)


def _parameters(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _update_group(group: Words, values: Words) -> None:
    """Numbers as they were; what JSON can't hold as itself keeps the value it has."""
    for name, value in values.items():
        held = group.get(name)
        group[name] = tuple(value) if isinstance(held, tuple) else value


def _laid_like(value: Tensor, like: Tensor) -> Tensor:
    if value.shape != like.shape:
        return value.to(like.device)
    return laid_like(value, like)


def _is_torchs(optimiser: Optimizer) -> bool:
    return isinstance(optimiser, (torch.optim.AdamW, torch.optim.Adafactor))


@contextmanager
def at_rest(optimiser: Optimizer, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the weights are those to use: a schedule-free optimiser trains at another point. Afterwards
    they are what they were, to the bit."""
    rest, work = getattr(optimiser, "eval", None), getattr(optimiser, "train", None)
    if rest is None or work is None:
        yield
        return
    own = [parameter.detach().clone() for parameter in parameters]
    rest()
    try:
        yield
    finally:
        work()
        with torch.no_grad():
            for parameter, value in zip(parameters, own, strict=True):
                parameter.copy_(value)
