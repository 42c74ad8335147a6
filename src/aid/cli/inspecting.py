"""`aid inspect`: what a file is."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aid.cli.console import print_table
from aid.cli.looking import JSON, print_lineage
from aid.cli.options import InputPath

if TYPE_CHECKING:
    from aid.sd.inspection import Inspection, Share

MAX_VALUE = 200  # characters of one metadata value shown to a person; --json has all
LINE = 110


def inspect_file(path: Path, as_json: bool, quick: bool) -> None:
    """Show what FILE is: the architecture, blocks, precision, hashes, metadata and lineage of a checkpoint,
    VAE, LoRA, embedding or picture, told by its content."""
    from aid.sd.inspection import inspect

    found = inspect(path, hashes=not quick)
    if as_json:
        click.echo(json.dumps(_json(found), ensure_ascii=False, indent=1))
    else:
        _print(found)


def _json(found: Inspection) -> dict[str, object]:
    told = dataclasses.asdict(found)
    told["path"] = str(found.path)
    told["lineage"] = found.lineage.model_dump(mode="json") if found.lineage else None
    return told


def _print(found: Inspection) -> None:
    click.echo(f"{found.path}: {found.kind}, {_bytes(found.size)}")
    for name, text in found.about.items():
        indented = textwrap.indent(text, "    ").strip() if "\n" in text else text
        click.echo(f"  {name}: {indented}")
    if found.dtypes:
        total = max(1, sum(found.dtypes.values()))
        click.echo("  precision: " + ", ".join(f"{name} {n / total:.1%}" for name, n in found.dtypes.items()))
    _print_shares("Part", found.parts)
    _print_shares("Block", found.blocks)
    _print_pairs("Hashes", found.hashes)
    _print_metadata(found.metadata)
    if found.lineage:
        click.echo("\nLineage")
        print_lineage(found.lineage)


def _print_metadata(metadata: Mapping[str, str]) -> None:
    """ModelSpec's and kohya's keys in words, others as they are."""
    from aid.sd.model.metadata import MODELSPEC, TRAINING
    from aid.sd.model.metadata_words import metadata_words

    _print_pairs("Description", {name: _short(value) for name, value in metadata_words(metadata).items()})
    others = {
        name: _short(text) for name, text in metadata.items() if not name.startswith((MODELSPEC, TRAINING))
    }
    _print_pairs("Metadata", others)
    if hidden := len(metadata) - len(others):
        click.echo(f"  {hidden} of {MODELSPEC}* and {TRAINING}*, which --json shows as they are")


def _print_shares(title: str, shares: Sequence[Share]) -> None:
    rows = [(one.name, one.tensors, f"{one.parameters:,}", _bytes(one.size)) for one in shares]
    if rows:
        click.echo()
        print_table("", (title, "Tensors", "Parameters", "Size"), rows, False)


def _print_pairs(title: str, pairs: dict[str, str]) -> None:
    if pairs:
        click.echo(f"\n{title}")
    for name, value in pairs.items():
        click.echo(textwrap.fill(f"{name}: {value}", LINE, initial_indent="  ", subsequent_indent="    "))


def _short(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}... ({len(value)} characters)"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


COMMAND = click.Command(
    "inspect",
    callback=inspect_file,
    help=inspect_file.__doc__,
    params=[
        click.Argument(["path"], metavar="FILE", type=InputPath()),
        JSON,
        click.Option(["--quick"], is_flag=True, help="Read the header alone: no hashes."),
    ],
)
