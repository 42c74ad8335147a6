"""`aid merge`: the verb's own options, and `--from` for a merge that was made before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aid import starter
from aid.cli.options import InputPath, collect
from aid.cli.verb_command import bench, verb_command, verb_values
from aid.errors import SettingsError
from aid.verbs import VERBS

OTHERWISE = {"file": "settings", "words": "set"}  # named so inside, as both are fields too


def command() -> click.Command:
    def run(
        out: Path, device: str, threads: int, source: Path | None, folders: tuple[Path, ...], **given: Any
    ) -> None:
        if folders and source is None:
            raise SettingsError(
                "--parents is given without --from", "the file whose merge is to be done again"
            )
        settings, inputs = (
            verb_values("merge", given) if source is None else _recorded(source, folders, given)
        )
        click.echo(VERBS["merge"].load()(settings, inputs, out, bench(device, threads)))

    arguments = [
        click.Option(
            ["--from", "source"],
            type=InputPath(),
            help="Do again the merge that made this file; its parents are found by their hashes, beside it, "
            "in the current folder, or where --models, --loras and --vae say.",
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
    """Raises SettingsError for options that say anything but where parents lie."""
    from aid.merge.replay import recorded

    inputs = VERBS["merge"].inputs_type()
    parents = inputs.model_fields.keys()
    if idle := [name for name, value in given.items() if name not in parents and value not in (None, ())]:
        flags = ", ".join(f"--{OTHERWISE.get(name, name).replace('_', '-')}" for name in idle)
        raise SettingsError(
            f"--from is given beside {flags}",
            "only where the parents lie: --models, --loras, --vae, --parents",
            "For other settings merge anew, without --from.",
        )
    paths: dict[str, Path] = {}
    for name, value in collect(inputs, given).items():
        paths |= (
            {f"{name}.{own}": Path(path) for own, path in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return recorded(source, paths, [*folders, starter.FOLDER])
