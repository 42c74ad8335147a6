"""`aid merge`: the verb's own options, and `--from` for a merge that was made before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aid.cli.options import InputPath, collect
from aid.cli.verb_command import bench, verb_command, verb_values
from aid.verbs import VERBS


def command() -> click.Command:
    def run(
        out: Path, device: str, threads: int, source: Path | None, folders: tuple[Path, ...], **given: Any
    ) -> None:
        settings, inputs = (
            verb_values("merge", given) if source is None else _recorded(source, folders, given)
        )
        click.echo(VERBS["merge"].load()(settings, inputs, out, bench(device, threads)))

    arguments = [
        click.Option(
            ["--from", "source"],
            type=InputPath(),
            help="Do again the merge that made this file; its parents are found by their hashes.",
        ),
        click.Option(
            ["--parents", "folders"],
            type=click.Path(path_type=Path),
            multiple=True,
            help="With --from: a folder in which parents may lie.",
        ),
    ]
    return verb_command("merge", run, arguments)


def _recorded(source: Path, folders: tuple[Path, ...], given: dict[str, Any]) -> tuple[Any, Any]:
    from aid.merge.replay import recorded

    paths: dict[str, Path] = {}
    for name, value in collect(VERBS["merge"].inputs_type(), given).items():
        paths |= (
            {f"{name}.{own}": Path(path) for own, path in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return recorded(source, paths, folders)
