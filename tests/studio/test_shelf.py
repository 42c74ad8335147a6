"""What lies there, under the names by which it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aid import starter
from aid.core.workbench import Workbench
from aid.errors import FileError, SettingsError
from aid.studio.settings import StudioSettings
from aid.studio.shelf import look_around
from aid.studio.studio import Studio


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """a, b and another a; a folder that is a model."""
    (tmp_path / "more").mkdir()
    for name in ("a", "b", "more/a"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model_index.json").touch()
    return tmp_path


def test_every_model_has_a_title_and_the_first_stays_first(models: Path) -> None:
    shelf = look_around(StudioSettings(models=(models, models / "more")))
    assert [*shelf.models] == ["a.safetensors", "b", "b.safetensors", "more/a.safetensors"]
    assert shelf.models["more/a.safetensors"] == models / "more" / "a.safetensors"


def test_releases_of_one_title_are_told_apart(tmp_path: Path) -> None:
    second = shutil.copytree(starter.shipped("release"), tmp_path / "second")
    shelf = look_around(StudioSettings(models=(starter.shipped("release"), second)))
    assert [*shelf.models] == ["AID starter v1.0", "second/AID starter v1.0"]


def test_a_whole_title_comes_before_a_short_one(models: Path) -> None:
    shelf = look_around(StudioSettings(models=(models / "b.safetensors", models)))
    assert shelf.model("b") == "b" and shelf.model("b.safetensors [0123456789]") == "b.safetensors"
    assert shelf.model("a") == "a.safetensors" and shelf.model("more/a") == "more/a.safetensors"
    with pytest.raises(SettingsError, match="is not a model"):
        shelf.model("c")


@pytest.mark.parametrize("what", ["models", "vaes", "embeddings", "loras", "wildcards"])
def test_a_place_that_is_not_there_is_told_at_the_start(tmp_path: Path, what: str) -> None:
    place = tmp_path / "nowhere"
    with pytest.raises(FileError, match="nowhere does not exist"):
        look_around(StudioSettings(**{what: place if what == "wildcards" else (place,)}))


def test_empty_folders_stand_for_nothing(lively_checkpoint: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("embeddings", "loras", "wildcards")}
    for place in places.values():
        place.mkdir()
    (places["wildcards"] / ".keep").touch()
    named = {name: place if name == "wildcards" else (place,) for name, place in places.items()}
    studio = Studio(StudioSettings(models=(lively_checkpoint,), **named), Workbench(threads=1))
    inputs = studio.inputs(studio.model)
    assert inputs.wildcards is None and not inputs.embeddings
    (places["wildcards"] / "hair.txt").write_text("red hair")
    assert studio.inputs(studio.model).wildcards == places["wildcards"]
    studio.desk.close()
