"""`aid grid`: one prompt along up to three axes; a palette of styles is `aid grid PROMPT --x style`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aid import starter
from aid.cli.options import input_path
from aid.cli.verb_command import bench, verb_command, verb_values
from aid.core.release import Release

PROMPT = click.Argument(["words_of_prompt"], metavar="[PROMPT]", default="")
HELP = """Draw PROMPT once for every combination of what varies along x, y and z, into the gallery --out:
labelled sheets, and index.html to look through them. `--x style` is a palette of all the model's styles;
`--axes` lists what else may vary. Without --checkpoint, AID's own starter draws; a release draws
as its card recommends, and what you give counts first."""


def command() -> click.Command:
    made = verb_command("grid", _run, [PROMPT])
    made.help = HELP
    made.params.insert(
        1,
        click.Option(
            ["--axes"],
            is_flag=True,
            is_eager=True,
            callback=_list_axes,
            expose_value=False,
            help="List all that an axis may vary, and stop.",
        ),
    )
    return made


def _run(words_of_prompt: str, out: Path, device: str, threads: int, **given: Any) -> None:
    if words_of_prompt:
        given["prompt"] = words_of_prompt
    checkpoint = given.get("checkpoint") or _first(given.get("checkpoints")) or starter.shipped("release")
    release = Release.at(checkpoint)
    recommended = release.recommended() if release else {}
    settings, inputs = verb_values("grid", given, {"checkpoint": checkpoint, **recommended})

    from aid.generate.grid.page import PAGE_FILE
    from aid.generate.grid.run import grid

    click.echo(grid(settings, inputs, out, bench(device, threads)) / PAGE_FILE)


def _first(words: tuple[str, ...] | None) -> Path | None:
    """The path of the first of `--checkpoints NAME=PATH`, which also is what has no axis."""
    if not words:
        return None
    name, equals, path = words[0].partition("=")
    return input_path(path if equals else name)


def _list_axes(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from aid.generate.grid.axis import Known, kinds

    every = kinds(Known())
    formatter = click.HelpFormatter()
    formatter.write_dl([(name, kind.about) for name, kind in every.items()])
    click.echo(formatter.getvalue().rstrip())
    context.exit()
