"""Write the pages that follow from the code: recipe.md and cli.md.

python docs/generate.py            write them
python docs/generate.py --check    say which are out of date, exit code 1 if any
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aid.cli import root
from aid.verbs import VERBS

FOLDER = Path(__file__).parent
WIDTH = 100  # characters of a help text
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
LIMITS = (
    ("ge", "from {}"),
    ("gt", "above {}"),
    ("le", "to {}"),
    ("lt", "below {}"),
    ("multiple_of", "in steps of {}"),
)

RECIPE = """\
# Recipes

<!-- Written by docs/generate.py from the settings' own documentation. Don't edit: run it again. -->

A recipe is a TOML file that says how to get from pictures to a release. It is a list of steps, and
each step is a verb with its inputs and settings. `aid make RECIPE.toml` runs them in the order written
and puts each step's artifact in a folder of its name. A step whose settings and inputs have not changed
is not run again. `aid make RECIPE.toml --dry-run` runs nothing and tells what would be done, what it
would take, and what is missing.

```toml
title = "Two styles"

[[step]]
name = "dataset"                          # its folder, and `@dataset` in later steps
verb = "prepare"
inputs.pictures.new = "aid:pictures/new"  # shipped with AID
inputs.vae = "$base"                      # given by whoever runs it: --input base=PATH
settings.resolution_px = 64

[[step]]
name = "style"
verb = "train finetune"
inputs.checkpoint = "$base"
inputs.dataset = "@dataset"               # what an earlier step made
settings = { epochs = 20.0, batch_size = 8 }
```

| an input | is |
| --- | --- |
| `@NAME` | the artifact of the earlier step NAME; `@NAME/file` is a file in it |
| `aid:base` | the checkpoint that ships with AID; `aid:pictures/...` are its pictures |
| `$NAME` | what the command line gives as `--input NAME=PATH` |
| anything else | a path, relative to the recipe |

A checkpoint is an SD1 single file (`.safetensors`, or a `.ckpt` that holds only weights), or a folder
with a `model.safetensors`. Fields that are not listed here are refused. On the command line every verb
is also a command of its own (see [cli.md](cli.md)); there a dotted field is given with
`--set caption.keep=2`, and a file of settings with `--settings FILE`.
"""

CLI = """\
# The command line

<!-- Written by docs/generate.py from the commands' own help. Don't edit: run it again. -->

One command a verb, and three that look or run a whole recipe. Paths that begin with `aid:` are what
ships with AID: `aid:base`, `aid:pictures/new`. Results go to standard output, progress to standard
error. The exit code is 0, 1 for an error that AID names, 2 for a word that it doesn't know, and 130
after Ctrl-C.
"""


def recipe_page() -> str:
    parts = [RECIPE]
    for name, entry in VERBS.items():
        settings, inputs = entry.settings_type(), entry.inputs_type()
        parts.append(f"## {name}\n\n{entry.summary} {_sentence(settings)}")
        for title, model in (("Inputs", inputs), ("Settings", settings)):
            parts.append(f"**{title}**\n\n| field | value | default | |\n| --- | --- | --- | --- |")
            parts[-1] += "".join(f"\n| {' | '.join(row)} |" for row in rows(model))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Field, value, default, meaning; the documented fields of a table follow it, dotted."""
    for name, field in model.model_fields.items():
        inner = _table(field.annotation)
        meaning = field.description or (inner.__doc__ if inner else "") or ""
        yield f"`{prefix}{name}`", _value(field), _default(field), _cell(" ".join(meaning.split()))
        if inner and not _is_inline(inner):
            yield from rows(inner, f"{prefix}{name}.")


def _sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _value(field: FieldInfo) -> str:
    limits = [
        text.format(_number(getattr(item, key)))
        for key, text in LIMITS
        for item in field.metadata
        if getattr(item, key, None) is not None
    ]
    return _cell(" ".join([_type(field.annotation), *limits]))


def _number(value: float) -> str:
    if value < 0:
        return f"-{_number(-value)}"
    exponent = int(value).bit_length() - 1
    return f"2^{exponent}" if value > 10**12 and value == 2**exponent else f"{value:,}"


def _type(annotation: Any) -> str:
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is typing.Annotated:
        return _type(arguments[0])
    if kind is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in arguments if part is not type(None)))
    if kind is dict:
        return f"table: name = {_type(arguments[1])}"
    if kind is tuple and arguments[1:] not in ((), (...,)):
        return f"[{', '.join(map(_type, arguments))}]"
    if kind in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if issubclass(annotation, BaseModel):
        return _inline(annotation) if _is_inline(annotation) else "table"
    return WORDS[annotation]


def _inline(model: type[BaseModel]) -> str:
    pairs = (f"{name} = {_type(field.annotation)}" for name, field in model.model_fields.items())
    return f"{{ {', '.join(pairs)} }}"


def _is_inline(model: type[BaseModel]) -> bool:
    """Small tables whose names say all."""
    return not any(field.description for field in model.model_fields.values())


def _table(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, if it does."""
    parts = [part for part in typing.get_args(annotation) if part not in (type(None), ...)] or [annotation]
    held = parts[0]
    return held if len(parts) == 1 and isinstance(held, type) and issubclass(held, BaseModel) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), [], {}, ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return _cell(f"`{json.dumps(value) if isinstance(value, tuple) else value}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def cli_page() -> str:
    parts = [CLI]
    for words, command in commands(root, ("aid",)):
        context = click.Context(
            command, info_name=" ".join(words), terminal_width=WIDTH, max_content_width=WIDTH
        )
        parts.append(f"## {' '.join(words)}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, with the words that call each."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from commands(found, (*words, name))


PAGES = {"recipe.md": recipe_page, "cli.md": cli_page}


def main() -> None:
    stale = [name for name, page in PAGES.items() if _read(FOLDER / name) != page()]
    if "--check" in sys.argv[1:]:
        sys.exit(f"out of date: {', '.join(stale)}; run python docs/generate.py" if stale else 0)
    for name in stale:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    main()
