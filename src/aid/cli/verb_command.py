"""The commands that run a verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aid.cli.options import assignments, collect, merge_trees, options, settings_file
from aid.core.workbench import Workbench
from aid.make import checked
from aid.verbs import VERBS, Entry

OUT = click.Option(["--out"], type=click.Path(path_type=Path), required=True, help="The artifact's folder.")
SETTINGS = click.Option(["--settings", "file"], type=click.Path(path_type=Path), help="Settings in TOML.")
SET = click.Option(["--set", "words"], multiple=True, help="Any setting, dotted.", metavar="NAME=VALUE")
DEVICE = click.Option(["--device"], default="auto", help="auto, cpu, cuda or cuda:N.  [auto]")
THREADS = click.Option(["--threads"], type=int, default=0, help="CPU threads; 0 is torch's choice.  [0]")


def command(name: str) -> click.Command:
    """The command of one verb, its options made from its settings and inputs."""
    found = VERBS[name]
    fields = options(found.inputs_type()) + options(found.settings_type())
    common = [OUT, SETTINGS, SET, DEVICE, THREADS]
    return click.Command(
        name.rpartition(" ")[2], params=[*fields, *common], callback=_runner(found), help=found.summary
    )


def bench(device: str, threads: int) -> Workbench:
    from aid.cli.console import ConsoleProgress

    return Workbench(device, threads, ConsoleProgress())


def _runner(found: Entry) -> Callable[..., None]:
    def run(
        out: Path, file: Path | None, words: tuple[str, ...], device: str, threads: int, **given: Any
    ) -> None:
        settings_type, inputs_type = found.settings_type(), found.inputs_type()
        values = merge_trees(
            merge_trees(settings_file(file), assignments(words)), collect(settings_type, given)
        )
        settings = checked(settings_type, values, "settings")
        inputs = checked(inputs_type, collect(inputs_type, given), "inputs")
        click.echo(found.load()(settings, inputs, out, bench(device, threads)))

    return run
