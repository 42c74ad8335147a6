"""A recipe, from pictures to release: the verbs in the order written.

    title = "..."

    [[step]]
    name = "dataset"                        # the artifact's folder, and `@dataset` for later steps
    verb = "prepare"
    inputs.pictures.new = "aid:pictures/new"    # shipped with AID; other paths are relative to the recipe
    inputs.vae = "aid:base"
    settings.resolution_px = 64

A step whose settings and inputs have not changed is not run again. Called, this module is its `make`.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aid.core.artifact import Inputs, Settings, asked, is_current, is_littered, sweep
from aid.core.room import callable_room
from aid.core.toml import read_toml
from aid.core.workbench import Workbench
from aid.errors import AidError, ArtifactError, FileError, SettingsError
from aid.starter import shipped
from aid.verbs import VERBS, Entry, entry

callable_room(__name__, __name__)


class StepText(BaseModel):
    """One `[[step]]` as written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    verb: str
    inputs: dict[str, Any] = {}
    settings: dict[str, Any] = {}


class RecipeText(BaseModel):
    """A recipe file as written."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str
    description: str = ""
    step: tuple[StepText, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Step:
    """One step ready to run: checked settings, and inputs as paths."""

    name: str
    verb: str
    settings: Settings
    inputs: Inputs
    out: Path

    @property
    def entry(self) -> Entry:
        return VERBS[self.verb]

    def missing(self) -> list[Path]:
        return [path for path in self.inputs.paths().values() if not path.exists()]

    def current(self) -> bool:
        """Whether its artifact is there already and still fits; not if it or an input is damaged."""
        if self.missing():
            return False
        try:
            return is_current(self.out, asked(self.verb, self.settings, self.inputs))
        except ArtifactError:
            return False

    def kept(self) -> bool:
        """The same, and what killed runs left beside it is removed. The verb, which may import torch, is not
        loaded for it."""
        current = self.current()
        if current and is_littered(self.out):
            sweep(self.out, self.entry.load().resumable)
        return current


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked whole before anything runs."""

    title: str
    description: str
    steps: tuple[Step, ...]


def read_recipe(path: Path, runs: Path, assignments: Mapping[str, Path] | None = None) -> Recipe:
    """Read and check a recipe; artifacts will lie in `runs`. `assignments` gives paths to inputs that
    the recipe leaves to its user, written `$NAME` there.

    Raises FileError or SettingsError naming the step and field.
    """
    try:
        text = RecipeText.model_validate(read_toml(path, "a recipe in TOML"))
    except ValidationError as error:
        raise SettingsError(explain(str(path), error, RecipeText)) from error
    _require_names(path, text, assignments or {})
    steps: list[Step] = []
    for step in text.step:
        resolve = _Resolver(path, runs, [made.name for made in steps], dict(assignments or {}), step.name)
        steps.append(_check(step, resolve, runs))
    return Recipe(text.title, text.description, tuple(steps))


def _require_names(path: Path, text: RecipeText, assignments: Mapping[str, Path]) -> None:
    """Every step has a name of its own, and every assignment a step that uses it."""
    names = [step.name for step in text.step]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"{path}: step {twice[0]} is written twice", "a name of its own for each step")
    used = {name for step in text.step for name in _left_open(step.inputs)}
    if unused := sorted(set(assignments) - used):
        expected = ", ".join(sorted(used)) or "none: it leaves no input open"
        raise SettingsError(f"{path} uses no --input {unused[0]}", expected)


def _left_open(value: Any) -> Iterator[str]:
    """The names written `$NAME` anywhere in a step's inputs."""
    if isinstance(value, str) and value.startswith("$"):
        yield value[1:]
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _left_open(item)


def make(recipe: Recipe, bench: Workbench) -> Iterator[tuple[Step, bool]]:
    """Run the steps in order; yields each with whether it had to be run.

    Raises FileError for inputs that neither exist nor are made by an earlier step, before anything runs.
    """
    _require_inputs(recipe)
    for number, step in enumerate(recipe.steps, 1):
        kept = step.kept()
        if not kept:
            bench.progress.say(f"[{number}/{len(recipe.steps)}] {step.name}: {step.entry.summary}")
            step.entry.load()(step.settings, step.inputs, step.out, bench)
        yield step, not kept


def _require_inputs(recipe: Recipe) -> None:
    made: set[Path] = set()
    for step in recipe.steps:
        for path in step.missing():
            if not made & {path, *path.parents}:
                name = str(path).removeprefix("$")
                given = f" Give it with --input {name}=PATH." if str(path).startswith("$") else ""
                raise FileError(
                    f"step {step.name}: {path} does not exist",
                    "every input",
                    f"`aid make --dry-run` lists what is missing.{given}",
                )
        made.add(step.out)


def explain(where: str, error: ValidationError, model: type[BaseModel]) -> str:
    """The most telling thing wrong with a file or settings, in one sentence: an unknown field, as it is
    often a misspelling of one that is then missing, or else the first."""
    errors = error.errors()
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields(model, first["loc"][:-1]), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{where} has no field {field}{hint}"
    if first["type"] == "missing":
        return f"{where} lacks {field}"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"{where}: {message}"
    field = field.removesuffix(".[key]")  # a name in a table
    return f"{where}: {field} is {first['input']!r}: {message}"


def _fields(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The fields of the table at `loc`: `caption`'s, not those of the settings around it."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _table(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _table(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Plan | None` or `tuple[Step, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _table(part))), None)


def checked(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """`model` made from values. Raises SettingsError saying where and what."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(where, error, model)) from error


def _check(step: StepText, resolve: _Resolver, runs: Path) -> Step:
    where = f"{resolve.recipe}: step {step.name}"
    try:
        found = entry(step.verb)
    except AidError as error:
        raise SettingsError(f"{where}: {error}") from error
    settings = checked(found.settings_type(), step.settings, f"{where}, settings")
    inputs = checked(found.inputs_type(), resolve.tree(step.inputs), f"{where}, inputs")
    return Step(step.name, step.verb, settings, inputs, runs / step.name)


@dataclass(frozen=True)
class _Resolver:
    """Turns what a recipe writes for an input into a path."""

    recipe: Path
    runs: Path
    made: Sequence[str]
    assignments: Mapping[str, Path]
    step: str

    def tree(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.tree(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.tree(item) for item in value]
        return self.path(value) if isinstance(value, str) else value

    def shipped(self, name: str) -> Path:
        try:
            return shipped(name)
        except FileError as error:
            raise FileError(f"{self.recipe}: step {self.step}: {error}") from error

    def path(self, text: str) -> Path:
        if text.startswith("@"):
            name, _, inner = text[1:].partition("/")
            if name not in self.made:
                earlier = ", ".join(self.made) or "none"
                raise SettingsError(
                    f"{self.recipe}: step {self.step} uses {text}",
                    f"an earlier step: {earlier}",
                    "Steps run in order.",
                )
            return self.runs / name / inner if inner else self.runs / name
        if text.startswith("aid:"):
            return self.shipped(text.removeprefix("aid:"))
        if text.startswith("$"):
            return self.assignments.get(text[1:], Path(text))
        return self.recipe.parent / Path(os.path.expanduser(text))  # noqa: PTH111 (Path's raises for unknown users)
