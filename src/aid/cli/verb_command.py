"""The commands that run a verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from pydantic import BaseModel

from aid.cli.lines import Lines
from aid.cli.options import assignments, collect, merge_trees, options, settings_file
from aid.core.workbench import Progress, Silence, Workbench
from aid.errors import SettingsError
from aid.make import Step, checked
from aid.verbs import VERBS

DEVICE = click.Option(["--device"], default="auto", help="auto, cpu, cuda or cuda:N.  [auto]")
THREADS = click.Option(["--threads"], type=int, default=0, help="CPU threads; 0 is torch's choice.  [0]")
RAY = click.Option(["--ray"], default="", help="Prepare on a Ray cluster: auto, local or HOST:PORT.  [off]")
LAUNCHED = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def command(name: str) -> click.Command:
    """The command of one verb, its options made from its settings and inputs."""

    def run(out: Path, device: str, threads: int, ray: str = "", **given: Any) -> None:
        settings, inputs = verb_values(name, given)
        if Step(name, name, settings, inputs, out).kept():
            click.echo(f"{out} is kept: neither settings nor inputs have changed", err=True)
        else:
            VERBS[name].load()(settings, inputs, out, replace(bench(device, threads), ray=ray))
        click.echo(out)

    made = verb_command(name, run)
    made.params += [RAY] if name == "prepare" else []
    return made


def verb_command(
    name: str, callback: Callable[..., None], arguments: Sequence[click.Parameter] = ()
) -> click.Command:
    """A command with a verb's options, and those that every verb has."""
    found = VERBS[name]
    path = click.Path(path_type=Path)
    common = [
        click.Option(["--out"], type=path, required=True, help="The artifact's folder."),
        click.Option(["--settings", "file"], type=path, help="Settings in TOML."),
        click.Option(["--set", "words"], multiple=True, help="Any setting, dotted.", metavar="NAME=VALUE"),
    ]
    fields = options(found.inputs_type()) + options(found.settings_type())
    params = [*arguments, *fields, *common, DEVICE, THREADS]
    return click.Command(name.rpartition(" ")[2], params=params, callback=callback, help=found.summary)


def verb_values(
    name: str, given: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Any, Any]:
    """A verb's settings and inputs: `defaults` by field, then --settings, then --set, then options."""
    settings_type, inputs_type = VERBS[name].settings_type(), VERBS[name].inputs_type()
    written = merge_trees(settings_file(given.get("file")), assignments(given.get("words") or ()))
    typed = merge_trees(written, collect(settings_type, given))
    settings = checked(settings_type, _over(defaults, settings_type, typed), "settings")
    inputs = _over(defaults, inputs_type, collect(inputs_type, given))
    return settings, checked(inputs_type, inputs, "inputs")


def _over(defaults: Mapping[str, Any], model: type[BaseModel], typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, laid over those defaults that are the model's fields."""
    return merge_trees({name: value for name, value in defaults.items() if name in model.model_fields}, typed)


def bench(device: str, threads: int) -> Workbench:
    """Of this process; `torchrun` and `accelerate launch` say in the environment which of several it is."""
    rank, ranks, local = (_from_launcher(name, other) for name, other in LAUNCHED.items())
    if not 0 <= rank < ranks:
        raise SettingsError(
            f"the environment says RANK={rank} and WORLD_SIZE={ranks}",
            "a rank below the number of processes",
            "Start AID by torchrun or accelerate launch, or unset both.",
        )
    sharded = ranks > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")
    return Workbench(device, threads, Silence() if rank else _progress(), rank, ranks, local, sharded)


def _progress() -> Progress:
    if not sys.stderr.isatty():
        return Lines()
    from aid.cli.console import Bars  # rich takes 30 ms

    return Bars()


def _from_launcher(name: str, other: int) -> int:
    word = os.environ.get(name, "")
    return int(word) if word.isdecimal() else other
