"""What a merge says of settings that change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_chain import family_of_three

from aid.core.workbench import Silence, Workbench
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.file.tensorfile import read_header


@pytest.fixture(scope="module")
def trio(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each with its own title."""
    models = family_of_three(tiny_checkpoint, tmp_path_factory.mktemp("notes"))
    for name, path in models.items():
        save_file(load_file(path), path, {**read_header(path).metadata, "modelspec.title": name.upper()})
    return models


class Told(Silence):
    def __init__(self) -> None:
        self.said = list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)


def told(models: dict[str, Path], out: Path, **settings: object) -> tuple[list[str], str]:
    """What was said, and whom the result names as its parents."""
    progress = Told()
    inputs = MergeInputs(models=models)
    merge(MergeSettings.model_validate(settings), inputs, out, Workbench(progress=progress))
    return progress.said, read_header(out / "model.safetensors").metadata["modelspec.merged_from"]


def weightless(name: str, models: dict[str, Path]) -> str:
    return f"{name} ({models[name]}) has no weight anywhere: it is no part of the result"


def test_a_model_without_weight_is_told_and_is_no_parent(trio: dict[str, Path], tmp_path: Path) -> None:
    said, parents = told(trio, tmp_path / "one", primary="a", weights={"b": {"IN": 0.5}, "c": {"OUT": 0}})
    assert said == [weightless("c", trio)] and parents == "A, B"
    said, parents = told(trio, tmp_path / "two", primary="a", weights={"b": {"M00": 0.1}, "c": {"OUT": 0.1}})
    assert said == [] and parents == "A, B, C"
    two = {name: trio[name] for name in "ab"}
    said, parents = told(
        two, tmp_path / "all", primary="a", weights={"b": {"BASE": 1, "IN": 1, "M00": 1, "OUT": 1}}
    )
    assert said == [weightless("a", trio)] and parents == "B"


def test_a_step_that_nothing_takes_is_told(trio: dict[str, Path], tmp_path: Path) -> None:
    chain = [
        {"name": "x", "models": ["a", "b"]},
        {"models": ["x", "c"]},
        {"name": "y", "models": ["a", "b"]},
        {"models": ["y", "a"]},
    ]
    said, parents = told(trio, tmp_path / "out", chain=chain)
    assert said == [
        "step x of the chain is taken by no other step: it is no part of the result",
        "step 2 of the chain is taken by no other step: it is no part of the result",
        weightless("c", trio),
    ]
    assert parents == "A, B"


def test_a_rule_for_elements_that_fits_nothing_is_told(trio: dict[str, Path], tmp_path: Path) -> None:
    rules = ["IN00-05:attn2:0.3", "IN00-05:atn2:0.3", "M00:position_ids:0.1", "OUT:NOT conv:0.4"]
    chain = [{"models": ["a", "b"], "elements": rules}, {"models": ["0:", "c"], "elements": ["::0.5"]}]
    said, _ = told(trio, tmp_path / "out", chain=chain)
    assert said == [
        "step 1 of the chain: the rule 'IN00-05:atn2:0.3' fits no tensor",
        "step 1 of the chain: the rule 'M00:position_ids:0.1' fits no tensor",
    ]
