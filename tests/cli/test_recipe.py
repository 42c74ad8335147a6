"""Recipes: read whole before anything runs, and every mistake named with its step and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from aid.core.workbench import Workbench
from aid.errors import AidError, FileError, SettingsError
from aid.make import make, read_recipe
from aid.starter import FOLDER, shipped

PREPARE = """
[[step]]
name = "dataset"
verb = "prepare"
inputs.pictures.new = "$pictures"
settings.resolution_px = 64
"""


def written(folder: Path, text: str, title: str = 'title = "A recipe"') -> Path:
    path = folder / "recipe.toml"
    path.write_text(f"{title}\n{text}")
    return path


def refused(folder: Path, text: str, title: str = 'title = "A recipe"') -> str:
    with pytest.raises(SettingsError) as error:
        read_recipe(written(folder, text, title), folder / "runs")
    return str(error.value)


def test_a_recipe_is_read_and_its_paths_resolved(tmp_path: Path) -> None:
    judge = (
        '[[step]]\nname = "judge"\nverb = "judge"\ninputs.dataset = "@dataset"\ninputs.extra.more = "more"\n'
    )
    recipe = read_recipe(written(tmp_path, PREPARE + judge), tmp_path / "runs", {"pictures": Path("/given")})
    first, second = recipe.steps
    assert first.inputs.paths() == {"pictures.new": Path("/given")}
    assert second.inputs.paths() == {"dataset": first.out, "extra.more": tmp_path / "more"}
    assert first.out == tmp_path / "runs" / "dataset"
    assert first.settings.model_dump()["resolution_px"] == 64


@pytest.mark.parametrize("reference", ["@later", "@dataset", "@nothing/inside", "@"])
def test_only_earlier_steps_can_be_used(reference: str, tmp_path: Path) -> None:
    own = PREPARE.replace("$pictures", reference)
    later = PREPARE.replace('"dataset"', '"later"')
    message = refused(tmp_path, own + later)
    assert "step dataset" in message and reference in message and "in order" in message


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "pictures/../../errors.py", "nothing", ""])
def test_only_what_is_shipped_is_shipped(name: str, tmp_path: Path) -> None:
    if name:
        with pytest.raises(FileError, match="not shipped"):
            shipped(name)
        with pytest.raises(FileError, match="not shipped"):
            read_recipe(written(tmp_path, PREPARE.replace("$pictures", f"aid:{name}")), tmp_path / "runs")
    assert shipped("pictures/new") == FOLDER / "pictures" / "new"


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("settings.resolution_px", "settings.resolution_pxx", "did you mean resolution_px?"),
        ("resolution_px = 64", 'resolution_px = "wide"', "resolution_px is 'wide'"),
        ("resolution_px = 64", "resolution_px = 63", "resolution_px"),
        ('verb = "prepare"', 'verb = "preprocess"', "'preprocess' is not a verb"),
        ("inputs.pictures.new", "inputs.picture.new", "did you mean pictures?"),
        ('inputs.pictures.new = "$pictures"', "", "lacks pictures"),
    ],
)
def test_a_mistake_is_named_with_step_and_field(before: str, after: str, named: str, tmp_path: Path) -> None:
    message = refused(tmp_path, PREPARE.replace(before, after))
    assert "step dataset" in message and named in message


def test_a_mistake_in_a_table_is_compared_with_that_tables_fields(tmp_path: Path) -> None:
    step = '[[step]]\nname = "style"\nverb = "train finetune"\nsettings.steps = 1\n'
    assert "did you mean shuffle?" in refused(tmp_path, step + "settings.caption.shufle = true")
    step = '[[step]]\nname = "bad"\nverb = "generate"\n'
    assert "did you mean styles?" in refused(tmp_path, step + "settings.plan.style = []")
    assert "did you mean verb?" in refused(tmp_path, PREPARE.replace("verb =", "verbb ="))


def test_two_steps_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "step dataset is written twice" in refused(tmp_path, PREPARE + PREPARE)


def test_mistakes_outside_the_steps_are_named_too(tmp_path: Path) -> None:
    assert "did you mean title?" in refused(tmp_path, PREPARE, 'titel = "A"\ntitle = "A"')
    assert "recipe.toml" in refused(tmp_path, PREPARE, "")
    assert "not TOML" in refused(tmp_path, "[[step")
    assert "step" in refused(tmp_path, "")
    assert "name" in refused(tmp_path, PREPARE.replace('"dataset"', '"../dataset"'))


def test_what_is_no_text_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AidError, match=r"recipe\.toml"):
        read_recipe(path, tmp_path / "runs")
    with pytest.raises(FileError, match="nowhere"):
        read_recipe(tmp_path / "nowhere.toml", tmp_path / "runs")


def test_a_missing_input_is_named_as_the_recipe_calls_it(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, PREPARE), tmp_path / "runs")
    with pytest.raises(FileError, match=r"step dataset: \$pictures does not exist"):
        list(make(recipe, Workbench()))
    assert not (tmp_path / "runs").exists()


def test_inputs_of_later_steps_are_asked_for_before_anything_runs(tmp_path: Path, pictures: Path) -> None:
    judge = (
        '[[step]]\nname = "judge"\nverb = "judge"\ninputs.dataset = "@dataset"\ninputs.extra.more = "$more"\n'
    )
    recipe = read_recipe(written(tmp_path, PREPARE + judge), tmp_path / "runs", {"pictures": pictures})
    with pytest.raises(FileError, match=r"step judge: \$more does not exist.*--input more=PATH"):
        list(make(recipe, Workbench()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_recipes_that_ship_are_valid(recipe: Path, tmp_path: Path) -> None:
    if "aid:base" in recipe.read_text("utf-8") and not (FOLDER / "release").is_dir():
        pytest.skip("the starter's weights are not in this checkout")
    assert [step.entry for step in read_recipe(recipe, tmp_path).steps][-1].stem == "Release"
