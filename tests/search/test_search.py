"""Searching block weights: what is turned, what is tried, and what is told of it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.interrupting import Interrupting

from aid.core.lineage import lineage_of
from aid.core.toml import read_toml, toml
from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import ArtifactError, SettingsError
from aid.evaluate.judge_run import judge
from aid.evaluate.settings import JudgeInputs, JudgeSettings
from aid.merge.recipe.recipe import plan
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.search.knob import space_of
from aid.search.run import Result, in_words, search
from aid.search.settings import Knob, SearchInputs, SearchSettings
from aid.search.trial import Measured, Trial, best_of, read_trials, suggest

BENCH = Workbench(device="cpu", threads=1)
GIVEN: dict[str, Any] = {
    "merge": {"primary": "style", "weights": {"other": {"IN": 0.25, "OUT": 0.5}}},
    "knobs": [
        {"model": "other", "blocks": ["IN00-05"], "together": True, "low": 0.1, "high": 0.4},
        {"model": "other", "blocks": ["M00", "OUT11"], "high": 0.8},
    ],
    "drawing": {"plan": {"shots_per_style": 1}, "steps": 1, "cfg_scale": 1.0},
    "trials": 3,
    "held_per_style": 1,
}
SETTINGS = SearchSettings.model_validate(GIVEN)


@pytest.fixture(scope="module")
def inputs(
    pictures: Path, tiny_checkpoint: Path, lively_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchInputs:
    folder = tmp_path_factory.mktemp("search")
    told = PrepareInputs(pictures={name: pictures / name for name in ("alpha", "beta")})
    dataset = prepare(
        PrepareSettings(resolution_px=64, held_fraction=0.25, buckets=False), told, folder / "data"
    )
    arbiter = judge(JudgeSettings(epochs=2, width=4), JudgeInputs(dataset=dataset), folder / "judge", BENCH)
    return SearchInputs(
        models={"style": lively_checkpoint, "other": tiny_checkpoint}, dataset=dataset, judge=arbiter
    )


@pytest.fixture(scope="module")
def found(inputs: SearchInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(SETTINGS, inputs, tmp_path_factory.mktemp("found") / "search", BENCH)


def test_each_trial_is_logged_and_the_best_can_be_made(
    found: Path, inputs: SearchInputs, tmp_path: Path
) -> None:
    trials = read_trials(found)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert trials[0].values == {"other.IN00-05": 0.25, "other.M00": 0.0, "other.OUT11": 0.5}
    for trial in trials:
        assert 0.1 <= trial.values["other.IN00-05"] <= 0.4 and 0 <= trial.values["other.M00"] <= 0.8
        assert set(trial.measured.styles) == {"alpha", "beta"}
    best = best_of(trials)
    settings = MergeSettings.model_validate(read_toml(found / "best.toml", "settings"))
    assert settings.weights["other"]["IN11"] == 0.25 and settings.weights["other"]["OUT10"] == 0.5, "frozen"
    assert {settings.weights["other"][f"IN0{n}"] for n in range(6)} == {best.values["other.IN00-05"]}
    made = merge(settings, MergeInputs(models=inputs.models), tmp_path / "merged", BENCH)
    assert lineage_of(made).key == best.key


def test_the_result_is_compared_with_each_parent_on_prompts_that_no_trial_drew(found: Path) -> None:
    result = Result.model_validate_json((found / "result.json").read_text())
    assert set(result.held) == {"style", "other"} and set(result.floors) == {"alpha", "beta"}
    for comparison in result.held.values():
        assert (
            comparison.pairs == 2
            and comparison.artefact.difference.low <= comparison.artefact.difference.high
        )
    shots = [json.loads(line)["shot"] for line in (found / "held/best/shots.jsonl").read_text().splitlines()]
    assert all(1 << 31 <= shot["seed"] < 1 << 32 for shot in shots), "other noise: torch takes 32 bits"
    assert (found / "held/parents/style/grid.png").is_file() and not (found / "scratch").exists()


def test_an_interrupted_search_goes_on_as_it_would_have(
    found: Path, inputs: SearchInputs, tmp_path: Path
) -> None:
    out = tmp_path / "search"
    with pytest.raises(KeyboardInterrupt):
        search(SETTINGS, inputs, out, Workbench("cpu", 1, Interrupting(2, "search")))
    assert len(read_trials(tmp_path / ".search.building")) == 2
    search(SETTINGS, inputs, out, BENCH)
    for name in ("trials.jsonl", "best.toml", "result.json"):
        assert (out / name).read_bytes() == (found / name).read_bytes()


def test_an_unfinished_search_is_not_thrown_away(inputs: SearchInputs, tmp_path: Path) -> None:
    """By another course it is refused, and to more trials it goes on."""
    out, straight = tmp_path / "search", tmp_path / "straight"
    with pytest.raises(KeyboardInterrupt):
        search(SETTINGS, inputs, out, Workbench("cpu", 1, Interrupting(2, "search")))
    other, more = (
        SETTINGS.model_copy(update=one) for one in ({"floor": 0.5}, {"trials": SETTINGS.trials + 1})
    )
    with pytest.raises(ArtifactError, match=r"unfinished merge search.*floor was 0.9"):
        search(other, inputs, out, BENCH)
    search(more, inputs, straight, BENCH)
    search(more, inputs, out, BENCH)
    assert (out / "trials.jsonl").read_bytes() == (straight / "trials.jsonl").read_bytes()


def trial(number: int, values: dict[str, float], value: float, below: float = -0.1) -> Trial:
    shown = Measured(styles={"a": 1.0}, content=1.0, artefact=0.0)
    return Trial(number=number, key="", values=values, measured=shown, value=value, below=below)


def test_the_best_keeps_every_floor_if_any_does() -> None:
    pretty, sound, missed = trial(0, {}, 2.0, 0.3), trial(1, {}, 1.0, 0.0), trial(2, {}, 1.5, 0.2)
    assert best_of([pretty, sound, missed]) == sound
    assert best_of([pretty, missed]) == missed


def test_a_person_is_told_what_is_best_and_which_floors_it_misses() -> None:
    best = trial(3, {"other.OUT": 0.25}, 1.0)
    (line,) = in_words(best, {"a": 1.0})
    assert "trial 3, other.OUT 0.25: best.toml" in line
    shown = Measured(styles={"a": 0.5, "b": 0.9}, content=1.0, artefact=0.0)
    *_, missed = in_words(best.model_copy(update={"measured": shown}), {"a": 0.9, "b": 0.9})
    assert missed == "no trial kept the floor of every style; this one misses those of a 50% of 90%"


def test_the_optimiser_finds_the_best_that_is_allowed() -> None:
    """Of a known bowl whose bottom lies beyond the floor: the best that is allowed is at its edge."""
    knobs = [Knob(model="b", blocks=("IN00", "IN01"))]
    space = space_of(knobs, MergeSettings(primary="a", weights={"b": {"IN": 0.1}}), "sd1")
    trials: list[Trial] = []
    for number in range(40):
        values = dict(suggest(space, trials, seed=3))
        x, y = values["b.IN00"], values["b.IN01"]
        trials.append(trial(number, values, -((x - 0.9) ** 2) - (y - 0.3) ** 2, below=x - 0.6))
    best = best_of(trials)
    assert best.values["b.IN00"] == pytest.approx(0.6, abs=0.12) and best.values["b.IN00"] <= 0.6
    assert best.values["b.IN01"] == pytest.approx(0.3, abs=0.2)


@pytest.mark.parametrize(
    ("merging", "knobs", "message"),
    [
        (
            {"chain": [{"models": ["a", "b"]}]},
            [{"model": "b", "blocks": ["M00"]}],
            "b is no step of the chain; expected a step with a name",
        ),
        (
            {"chain": [{"name": "mix", "models": ["a", "b"], "freeze": ["M00"]}]},
            [{"model": "mix", "blocks": ["M00"]}],
            "M00 is frozen in mix",
        ),
        ({"primary": "a"}, [{"model": "b", "blocks": ["IN12"]}], "IN12 is not a block of sd1"),
        (
            {"primary": "a"},
            [{"model": "b", "blocks": ["IN"]}, {"model": "b", "blocks": ["IN03"]}],
            "IN03 of b is in two knobs",
        ),
        (
            {"primary": "a", "weights": {"c": {"M00": 0.4}}},
            [{"model": "b", "blocks": ["M00"]}],
            r"the weights of M00 could add up to 1.4; expected at most 1.*`steps`",
        ),
    ],
)
def test_knobs_that_cannot_be_turned(merging: dict[str, Any], knobs: list[Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        space_of([Knob.model_validate(one) for one in knobs], MergeSettings.model_validate(merging), "sd1")


def test_a_chain_s_steps_are_turned() -> None:
    """The last result is what the same chain with these alphas written out gives."""
    steps = [
        {"name": "kept", "mode": "ties", "models": ["a", "b", "c"], "alpha": 0.5, "beta": 0.2},
        {"name": "mix", "models": ["kept", "b"], "alpha": {"IN": 0.25}},
    ]
    merge = MergeSettings.model_validate({"chain": steps})
    knobs = [
        Knob(model="kept", blocks=("OUT",), together=True),
        Knob(model="mix", blocks=("IN03", "M00"), high=0.5),
    ]
    space = space_of(knobs, merge, "sd1")
    assert space.start() == {"kept.OUT": 0.5, "mix.IN03": 0.25, "mix.M00": 0.0}
    turned = space.settings({"kept.OUT": 0.75, "mix.IN03": 0.5, "mix.M00": 0.125})
    alphas = [
        {"BASE": 0.5, "IN": 0.5, "M00": 0.5, "OUT": 0.75},
        {"IN00-02": 0.25, "IN03": 0.5, "IN04-11": 0.25, "M00": 0.125},
    ]
    written = [{**step, "alpha": alpha} for step, alpha in zip(steps, alphas, strict=True)]
    expected = plan(MergeSettings.model_validate({"chain": written}), ["a", "b", "c"])
    found = plan(turned, ["a", "b", "c"])
    assert all(found.nominal(block) == expected.nominal(block) for block in found.blocks)
    told = tomllib.loads(toml(turned.model_dump(mode="json", exclude_defaults=True)))
    assert MergeSettings.model_validate(told) == turned
