"""`aid again`: a picture drawn again from its own text."""

from __future__ import annotations

from pathlib import Path

import click

from aid import starter
from aid.cli.options import InputPath
from aid.cli.verb_command import DEVICE, THREADS, bench
from aid.errors import AidError, FileError


def draw_again(
    pictures: tuple[Path, ...],
    places: tuple[Path, ...],
    wildcards: Path | None,
    out: Path,
    device: str,
    threads: int,
) -> None:
    """Draw each PICTURE again from the text that it carries, with the model, VAE, embeddings and LoRAs that
    it names by their hashes. What is missing is named, and the other pictures are drawn."""
    from aid.generate.again import again
    from aid.sd.picture.likeness import likeness

    searched, failed = [*places, starter.FOLDER], 0
    for picture in pictures:
        try:
            file = again(picture, searched, out, bench(device, threads), wildcards)
        except AidError as error:
            if len(pictures) == 1:
                raise
            click.echo(str(error) if str(picture) in str(error) else f"{picture}: {error}", err=True)
            failed += 1
            continue
        click.echo(file)
        click.echo(likeness(picture, file), err=True)
    if failed:
        raise FileError(
            f"{failed} of {len(pictures)} pictures couldn't be drawn again",
            "pictures whose texts tell how they were made, and the files that these name",
            "The lines above say what each lacks.",
        )


COMMAND = click.Command(
    "again",
    callback=draw_again,
    help=draw_again.__doc__,
    params=[
        click.Argument(
            ["pictures"], metavar="PICTURE...", nargs=-1, required=True, type=click.Path(path_type=Path)
        ),
        click.Option(
            ["--checkpoint", "--from", "places"],
            type=InputPath(),
            multiple=True,
            help="A file, or a folder to search: of models, VAEs, embeddings, LoRAs, pictures drawn from. "
            "What ships with AID is searched too.",
        ),
        click.Option(["--wildcards"], type=click.Path(path_type=Path), help="The folder it was drawn with."),
        click.Option(
            ["--out"],
            type=click.Path(path_type=Path),
            default=Path("pictures"),
            help="The folder that the new picture goes into.  [pictures]",
        ),
        DEVICE,
        THREADS,
    ],
)
