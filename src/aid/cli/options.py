"""Settings as command-line options: the fields are the options, their docstrings the help."""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aid.core.toml import read_toml
from aid.errors import SettingsError
from aid.starter import shipped

SHIPPED = "aid:"  # `aid:base` is a file or folder that ships with AID, as in recipes


class InputPath(click.Path):
    """A path, or the name of something shipped."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return input_path(value) if isinstance(value, str) else value


def input_path(text: str) -> Path:
    """Raises FileError for an `aid:` name that isn't shipped."""
    return shipped(text.removeprefix(SHIPPED)) if text.startswith(SHIPPED) else Path(os.path.expanduser(text))  # noqa: PTH111 (Path's raises for unknown users)


SCALARS = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: InputPath()}


def options(model: type[BaseModel]) -> list[click.Parameter]:
    """One option a field that a word can express; the rest is for `--set` and `--settings`."""
    made = (_option(name, field) for name, field in model.model_fields.items())
    return [option for option in made if option is not None]


def collect(model: type[BaseModel], words: Mapping[str, Any]) -> dict[str, Any]:
    """The values given on the command line for a model's fields."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        given = words.get(name)
        if given is None or given == ():
            continue
        values[name] = _named(name, given) if _container(field) is dict else given
    return values


def assignments(words: tuple[str, ...]) -> dict[str, Any]:
    """`--set caption.keep=2` as {"caption": {"keep": 2}}; the value is TOML, or else plain text."""
    merged: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise SettingsError(f"--set {word}", "NAME=VALUE")
        merged = merge_trees(merged, _nested(name.strip().split("."), _toml_value(value)))
    return merged


def settings_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    return read_toml(path, "settings in TOML")


def merge_trees(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries joined; the second wins."""
    joined = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(key), dict)
        joined[key] = merge_trees(joined[key], value) if both else value
    return joined


def _option(name: str, field: FieldInfo) -> click.Parameter | None:
    kind, multiple = _kind(field)
    if kind is None:
        return None
    flag = f"--{name.replace('_', '-')}"
    words = " ".join((field.description or "").split())
    usual = None if field.is_required() else field.get_default(call_default_factory=True)
    default = "" if usual in (None, "", (), {}) else f"  [{usual}]"
    declaration = f"{flag}/--no-{flag[2:]}" if kind is click.BOOL else flag
    metavar = "NAME=PATH" if _container(field) is dict else None
    return click.Option(
        [declaration, name], type=kind, multiple=multiple, default=None, help=words + default, metavar=metavar
    )


def _kind(field: FieldInfo) -> tuple[Any, bool]:
    """click's type for a field, and whether it may be given several times; None where words don't do."""
    annotation = _without_none(field.annotation)
    container, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if container is typing.Literal:
        return click.Choice([str(value) for value in arguments]), False
    if container is dict and arguments[1] is Path:
        return click.STRING, True
    if container in (tuple, list) and arguments[0] in SCALARS and arguments[1:] in ((), (...,)):
        return SCALARS[arguments[0]], True
    if annotation is bool:
        return click.BOOL, False
    return SCALARS.get(typing.cast(type, annotation)), False


def _container(field: FieldInfo) -> Any:
    return typing.get_origin(_without_none(field.annotation))


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kept = [part for part in typing.get_args(annotation) if part is not type(None)]
        return kept[0] if len(kept) == 1 else annotation
    return annotation


def _named(option: str, words: tuple[str, ...]) -> dict[str, Path]:
    """`--pictures new=DIR` twice as a dictionary; a bare path is named after itself."""
    named = {}
    for word in words:
        name, equals, path = word.partition("=")
        named[name if equals else Path(word).name] = input_path(path if equals else word)
    if len(named) < len(words):
        raise SettingsError(f"--{option} names the same twice", "different names", "Write NAME=PATH.")
    return named


def _nested(names: list[str], value: Any) -> dict[str, Any]:
    return {names[0]: value if len(names) == 1 else _nested(names[1:], value)}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
