"""What `aid make` refuses before anything runs, and what it finds when an artifact was changed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from aid.core.workbench import Workbench
from aid.errors import ArtifactError, SettingsError
from aid.make import make, read_recipe

PREPARE = """
[[step]]
name = "dataset"
verb = "prepare"
inputs.pictures.new = "$pictures"
settings.resolution_px = 64
settings.held_fraction = 0.25
"""
JUDGE = """
[[step]]
name = "judge"
verb = "judge"
inputs.dataset = "{dataset}"
settings = {{ epochs = 1, width = 4 }}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(f'title = "A recipe"\n{text}')
    return path


def test_two_steps_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="step dataset is written twice"):
        read_recipe(written(tmp_path, PREPARE + PREPARE), tmp_path / "runs")


def test_an_input_that_no_step_uses_is_refused(tmp_path: Path) -> None:
    recipe = written(tmp_path, PREPARE)
    with pytest.raises(SettingsError, match="uses no --input picture; expected pictures"):
        read_recipe(recipe, tmp_path / "runs", {"picture": tmp_path})
    closed = written(tmp_path, PREPARE.replace("$pictures", "here"))
    with pytest.raises(SettingsError, match="it leaves no input open"):
        read_recipe(closed, tmp_path / "runs", {"pictures": tmp_path})


def test_leftovers_of_a_kept_step_are_swept(pictures: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, PREPARE), tmp_path / "runs", {"pictures": pictures})
    assert [ran for _, ran in make(recipe, Workbench())] == [True]
    (tmp_path / "runs" / ".dataset.stale").mkdir()
    assert [ran for _, ran in make(recipe, Workbench())] == [False]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["dataset"]


def test_a_changed_artifact_is_made_again_by_its_step_and_refused_from_outside(
    pictures: Path, tmp_path: Path
) -> None:
    first = read_recipe(written(tmp_path, PREPARE), tmp_path / "runs", {"pictures": pictures})
    list(make(first, Workbench()))
    made = tmp_path / "runs" / "dataset"
    victim = next(path for path in sorted(made.rglob("*.*")) if path.suffix == ".jsonl")
    before = victim.read_bytes()
    victim.write_bytes(before + b" ")
    outside = JUDGE.format(dataset=made)
    second = read_recipe(written(tmp_path, outside), tmp_path / "others")
    assert not second.steps[0].current()
    with pytest.raises(ArtifactError, match=f"{victim.name} was changed or removed"):
        list(make(second, Workbench()))
    assert [ran for _, ran in make(first, Workbench())] == [True]
    assert victim.read_bytes() == before
