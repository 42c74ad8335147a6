"""`aid convert`: weights into safetensors or a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aid.cli.options import InputPath
from aid.errors import SettingsError


def convert_weights(
    source: Path,
    target: Path,
    dtype: str | None,
    layout: str | None,
    vae: Path | None,
    ema: bool,
    untransposed: bool,
    prediction: Any,
    words: tuple[str, ...],
) -> None:
    """Write SOURCE (.safetensors, .ckpt, .pt, a diffusers folder) to TARGET: one .safetensors file, or, under
    a name without that ending, a diffusers folder. Only one tensor is in memory at a time; old pickles are
    read without running anything. Averages, optimiser and schedule are left out."""
    from aid.sd.conversion import Conversion, Layout, convert
    from aid.sd.file.precision import PRECISIONS

    chosen: Layout | None = "ldm" if layout == "ldm" else "diffusers" if layout == "diffusers" else None
    wanted = Conversion(
        dtype=PRECISIONS[dtype] if dtype else None,
        layout=chosen,
        vae=vae,
        ema=ema,
        untransposed=untransposed,
        prediction=prediction,
        metadata=_assigned(words),
    )
    made = convert(source, target, wanted)
    left = ", ".join(f"{count} {name}" for name, count in made.dropped.items())
    click.echo(f"{made.path}: {made.tensors} tensors" + (f"; left out: {left}" if left else ""))


def _assigned(words: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise SettingsError(f"--metadata {name}", "KEY=VALUE")
    return {name: value for name, _, value in pairs}


COMMAND = click.Command(
    "convert",
    callback=convert_weights,
    help=convert_weights.__doc__,
    params=[
        click.Argument(["source"], type=InputPath()),
        click.Argument(["target"], type=click.Path(path_type=Path)),
        click.Option(["--dtype"], type=click.Choice(["fp32", "fp16", "bf16"]), help="[the source's]"),
        click.Option(
            ["--layout"],
            type=click.Choice(["ldm", "diffusers"]),
            help="One file as A1111, ComfyUI and kohya's tools read it, or a folder.  [by TARGET's name]",
        ),
        click.Option(["--vae"], type=InputPath(), help="Bake this VAE in, in place of the source's."),
        click.Option(["--ema"], is_flag=True, help="Take the averaged weights (model_ema)."),
        click.Option(
            ["--untransposed"],
            is_flag=True,
            help="SDXL: take text_projection as kohya's trainers do, which don't transpose it.",
        ),
        click.Option(
            ["--prediction"], type=click.Choice(["epsilon", "v"]), help="What the U-Net predicts.  [detected]"
        ),
        click.Option(
            ["--metadata", "words"], multiple=True, metavar="KEY=VALUE", help="No VALUE removes the key."
        ),
    ],
)  # fmt: skip
