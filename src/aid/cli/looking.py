"""The commands that look: make (at a whole recipe), styles, lineage."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic_core import to_jsonable_python

from aid.cli.console import print_table
from aid.cli.options import InputPath, input_path
from aid.cli.verb_command import DEVICE, THREADS, bench
from aid.core.lineage import LINEAGE_FILE, Lineage, Node, lineage_of
from aid.core.release import MODEL_FILE, Release
from aid.errors import SettingsError
from aid.verbs import VERBS

RELEASE = click.Option(
    ["--checkpoint"], type=InputPath(), help="A release, whose styles are listed in place of AID's."
)
JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")
LINE, MAX_VALUE = 110, 200  # characters of a line, and of one setting's value
MAX_SHOWN = 12  # inputs of one node shown to a person; --json has all


def run_recipe(
    recipe: Path,
    out: Path | None,
    words: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    device: str,
    threads: int,
) -> None:
    """Run RECIPE step by step. Artifacts lie in --out, one folder a step; what has not changed is kept."""
    from aid.make import make, read_recipe

    runs = out or Path("runs") / recipe.stem
    plan = read_recipe(recipe, runs, _assigned(words))
    if dry_run:
        from aid.cli.explanation import print_explanation

        print_explanation(plan, runs, as_json)
        return
    rows, began = [], time.monotonic()
    for step, ran in make(plan, bench(device, threads)):
        seconds = time.monotonic() - began
        rows.append((step.name, "made" if ran else "kept", f"{seconds:.1f}", str(step.out)))
        began = time.monotonic()
    print_table(plan.title, ("Step", "Result", "Seconds", "Folder"), rows, as_json)


def show_lineage(path: Path, as_json: bool) -> None:
    """Print where PATH comes from: every verb, those of its settings that aren't the default, and its inputs
    back to the pictures' hashes."""
    ancestry = lineage_of(_told_by(path))
    if as_json:
        json.dump(ancestry.model_dump(mode="json"), sys.stdout, ensure_ascii=False, indent=1)
        print()
        return
    print_lineage(ancestry)


def _told_by(path: Path) -> Path:
    """A release that was copied without its lineage is told by its model's."""
    bare = path.is_dir() and not (path / LINEAGE_FILE).is_file()
    return path / MODEL_FILE if bare and (path / MODEL_FILE).is_file() else path


def print_lineage(ancestry: Lineage) -> None:
    """Every verb and its inputs, the file itself first."""
    for depth, key, node, name in ancestry.walk():
        _print_node(depth, key, node, name, ancestry.nodes)


def list_styles(query: str, version: str, checkpoint: Path | None, as_json: bool) -> None:
    """List AID's styles, or those like QUERY: old names and misspellings find the right ones. `--checkpoint
    aid:release` lists those that the shipped starter draws."""
    from aid.core.catalogue import load_catalogue

    catalogue = _release(checkpoint).catalogue if checkpoint else load_catalogue()
    found = catalogue.search(query, version)
    rows = [(*_entry(one.entry), _how(one.match, one.via)) for one in found]
    print_table(f"{len(rows)} found", ("Trigger", "Kind", "Since", "Versions", "Match"), rows, as_json)


def _release(path: Path) -> Release:
    return Release.at(path) or Release(path)


def _entry(entry: Any) -> tuple[str, str, str, str]:
    return entry.trigger, entry.kind, entry.since, ", ".join(entry.versions)


def _how(match: str, via: str) -> str:
    return "" if match in ("listed", "same") else f"{match}: {via}"


def _assigned(words: tuple[str, ...]) -> Mapping[str, Path]:
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals:
            raise SettingsError(f"--input {name}", "NAME=PATH")
    return {name: input_path(path) for name, _, path in pairs}


def _print_node(depth: int, key: str, node: Node, name: str, nodes: Mapping[str, Node]) -> None:
    pad = "  " * depth
    label = f"{name} = " if name else ""
    click.echo(f"{pad}{label}{node.verb}  [{key[:12]}]")
    told = "  ".join(f"{field}={_short(value)}" for field, value in changed_settings(node).items())
    if told:
        click.echo(_wrapped(told, f"{pad}  "))
    outside = [(label, source.sha256) for label, source in node.inputs.items() if source.key not in nodes]
    for label, sha in outside[:MAX_SHOWN]:
        click.echo(f"{pad}  {label}  sha256:{sha}")
    if len(outside) > MAX_SHOWN:
        click.echo(f"{pad}  ... and {len(outside) - MAX_SHOWN} more; --json has all")


def changed_settings(node: Node) -> dict[str, Any]:
    """Those of a node's settings that are not what they are when nothing is said."""
    if node.verb not in VERBS:
        return node.settings
    fields = VERBS[node.verb].settings_type().model_fields
    usual = {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in fields.items()
        if not field.is_required()
    }
    return {name: value for name, value in node.settings.items() if name not in usual or value != usual[name]}


def _wrapped(text: str, pad: str) -> str:
    return textwrap.fill(
        text, LINE, initial_indent=pad, subsequent_indent=f"{pad}  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def _command(name: str, callback: Any, *params: click.Parameter) -> click.Command:
    return click.Command(name, params=[*params], callback=callback, help=callback.__doc__)


VERSION = click.Option(["--version"], default="", help="Only what this version knows, as v2.6.")
PATH = click.Path(path_type=Path)
COMMANDS = {
    "make": _command(
        "make",
        run_recipe,
        click.Argument(["recipe"], type=PATH),
        click.Option(["--out"], type=PATH, help="Where artifacts go.  [runs/RECIPE]"),
        click.Option(["--input", "words"], multiple=True, metavar="NAME=PATH", help="What it calls $NAME."),
        click.Option(["--dry-run"], is_flag=True, help="Explain every step, run nothing."),
        JSON,
        DEVICE,
        THREADS,
    ),
    "styles": _command("styles", list_styles, click.Argument(["query"], default=""), VERSION, RELEASE, JSON),
    "lineage": _command("lineage", show_lineage, click.Argument(["path"], type=InputPath()), JSON),
}
