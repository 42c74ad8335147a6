"""`aid generate`: one prompt into a plain folder, or a whole gallery as an artifact."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from aid import starter
from aid.cli.verb_command import bench, verb_command, verb_values
from aid.core.release import Release
from aid.core.shot import RANDOM

PROMPT = click.Argument(["words_of_prompt"], metavar="[PROMPT]", default="")
HELP = """Draw PROMPT into the folder --out (default `pictures`), or, without PROMPT, a whole gallery as an
artifact. Without --checkpoint, the starter that ships with AID draws. A release draws with its own
embeddings and as its card recommends; what you give goes first. For a PROMPT, --seed -1 chooses a
random one."""


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
        given |= _by_chance(given)
    checkpoint = given.get("checkpoint") or starter.shipped("release")
    settings, inputs = verb_values("generate", given, {"checkpoint": checkpoint, **_recommended(checkpoint)})

    for note in _misspelt(checkpoint, f"{words_of_prompt}\n{settings.negative_prompt}"):
        click.echo(f"note: {note}", err=True)

    from aid.generate.run import generate, one_off

    if words_of_prompt:
        for file in one_off(settings, inputs, out or Path("pictures"), bench(device, threads)):
            click.echo(file)
    else:
        assert out is not None
        click.echo(generate(settings, inputs, out, bench(device, threads)))


def _by_chance(given: Mapping[str, Any]) -> dict[str, int]:
    """The seeds that are to be random. Their pictures tell them, and so can be drawn again."""
    asked = [name for name in ("seed", "variation_seed") if given.get(name) == RANDOM]
    return {name: secrets.randbelow(2**32) for name in asked}


def _recommended(checkpoint: Path) -> dict[str, Any]:
    release = Release.at(checkpoint)
    return release.recommended() if release else {}


def _misspelt(checkpoint: Path, prompts: str) -> Iterator[str]:
    """What is almost, or was, the name of a style or an embedding of the release that draws, if one does; and
    AID's own styles that it has not."""
    from aid.core.catalogue import load_catalogue
    from aid.sd.prompt.explanation import find_styles, near_embeddings

    if release := Release.at(checkpoint):
        found, notes = find_styles(prompts, release.catalogue)
        notes += near_embeddings(prompts, release.embeddings)
        yield from dict.fromkeys(note.text for note in notes)
        known = {style.at for style in found}
        for style in find_styles(prompts, load_catalogue())[0]:
            called = style.match in ("same", "old name") and style.trigger.startswith("by ")
            if called and style.at not in known:
                own = "`aid styles --checkpoint` lists its own"
                yield f"{style.trigger} is a style of AID's card, not of this model; {own}"
