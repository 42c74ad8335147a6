"""The names of `aid`: sorted, complete, documented, and free until they are used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import aid
import aid.evaluate.run
import aid.generate.run
import aid.make
import aid.merge.run
import aid.release.run
from aid.core.artifact import Inputs, Settings
from aid.verbs import VERBS

HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "numpy", "PIL", "pydantic")


def test_importing_aid_imports_nothing_heavy() -> None:
    code = f"import sys, aid; dir(aid); print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_every_name_is_there_documented_and_sorted() -> None:
    assert aid.__all__ == sorted(set(aid.__all__))
    assert set(aid.__all__) <= set(dir(aid))
    for name in aid.__all__:
        assert inspect.getdoc(getattr(aid, name)), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aid.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse(Path(aid.__file__).with_suffix(".pyi").read_text())
    typed = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(typed) == aid.__all__
    for name, home in typed.items():
        found = getattr(sys.modules[home], name) if home in sys.modules else None
        assert name in ("evaluate", "generate", "make", "merge", "release", "search") or found is getattr(
            aid, name
        )


def test_all_verbs_and_their_types_are_public() -> None:
    for entry in VERBS.values():
        assert entry.function in aid.__all__
        for kind in (entry.settings_type(), entry.inputs_type()):
            assert issubclass(kind, (Settings, Inputs)) and getattr(aid, kind.__name__) is kind


def test_a_room_is_called_by_the_name_of_its_verb(tmp_path: Path) -> None:
    """Its modules are imported above, so the name is the package's."""
    inputs = aid.MergeInputs(models={"a": tmp_path / "nowhere", "b": tmp_path / "nowhere"})
    with pytest.raises(aid.FileError, match="nowhere does not exist"):
        aid.merge(aid.MergeSettings(), inputs, tmp_path / "out")
    (tmp_path / "empty.toml").write_text('title = "x"')
    with pytest.raises(aid.SettingsError, match=r"lacks step"):
        aid.read_recipe(tmp_path / "empty.toml", tmp_path)
    assert callable(aid.make) and aid.merge.run is sys.modules["aid.merge.run"]  # type: ignore[attr-defined]
