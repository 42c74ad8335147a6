"""`aid generate`: one prompt into a plain folder, or a whole gallery as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aid import starter
from aid.cli.verb_command import bench, verb_command, verb_values
from aid.core.release import Release

PROMPT = click.Argument(["words_of_prompt"], metavar="[PROMPT]", default="")
HELP = """Draw PROMPT into the folder --out (default `pictures`), or, without PROMPT, a whole gallery as an
artifact. Without --checkpoint, the starter that ships with AID draws. A release draws with its own
embeddings and as its card recommends; what you give goes first."""


def command() -> click.Command:
    made = verb_command("generate", _run, [PROMPT])
    made.help = HELP
    for option in made.params:
        if option.name == "out":
            option.required = False
    return made


def _run(words_of_prompt: str, out: Path | None, device: str, threads: int, **given: Any) -> None:
    if not words_of_prompt and out is None:
        raise click.UsageError("Give a PROMPT, or --out for a gallery.")
    if words_of_prompt:
        given["prompt"] = words_of_prompt
    checkpoint = given.get("checkpoint") or starter.shipped("release")
    settings, inputs = verb_values("generate", given, {"checkpoint": checkpoint, **_recommended(checkpoint)})

    from aid.generate.run import generate, one_off

    if words_of_prompt:
        for file in one_off(settings, inputs, out or Path("pictures"), bench(device, threads)):
            click.echo(file)
    else:
        assert out is not None
        click.echo(generate(settings, inputs, out, bench(device, threads)))


def _recommended(checkpoint: Path) -> dict[str, Any]:
    release = Release.at(checkpoint)
    return release.recommended() if release else {}
