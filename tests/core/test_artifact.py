"""The one law: artifacts are whole or absent, known by what made them, and never rebuilt for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from aid.core.artifact import SCRATCH, Inputs, Settings, is_current, under_construction, verb
from aid.core.lineage import describe, lineage_of
from aid.core.workbench import Workbench
from aid.errors import AidError, ArtifactError, FileError

calls: list[str] = []


class CopySettings(Settings):
    shout: bool = False


class CopyInputs(Inputs):
    text: Path
    others: dict[str, Path] = Field(default={})


@verb("copy")
def copy(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
    calls.append("copy")
    text = inputs.text.read_text()
    (out / "inner").mkdir()
    (out / "inner" / "copy.txt").write_text(text.upper() if settings.shout else text)
    if "broken" in text:
        raise AidError("the text is broken")


@verb("slow", resumable=True)
def slow(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
    (out / SCRATCH).mkdir(exist_ok=True)
    state = out / SCRATCH / "state"
    calls.append(state.read_text() if state.exists() else "fresh")
    state.write_text("half")
    if inputs.text.read_text() == "stop" and len(calls) < 2:
        raise KeyboardInterrupt
    (out / "done.txt").write_text("done")


@pytest.fixture(autouse=True)
def forget() -> None:
    calls.clear()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("hello")
    return path


def test_a_run_is_skipped_until_settings_inputs_or_output_change(text: Path, tmp_path: Path) -> None:
    inputs, out = CopyInputs(text=text), tmp_path / "out"
    assert copy(CopySettings(), inputs, out) == out
    copy(CopySettings(), inputs, out)
    assert calls == ["copy"]
    copy(CopySettings(shout=True), inputs, out)
    assert (out / "inner/copy.txt").read_text() == "HELLO"
    text.write_text("other")
    copy(CopySettings(shout=True), inputs, out)
    (out / "inner/copy.txt").write_text("tampered")
    copy(CopySettings(shout=True), inputs, out)
    assert calls == ["copy"] * 4
    assert (out / "inner/copy.txt").read_text() == "OTHER"


def test_a_moved_input_is_the_same_input(text: Path, tmp_path: Path) -> None:
    copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    moved = text.rename(tmp_path / "elsewhere.txt")
    copy(CopySettings(), CopyInputs(text=moved), tmp_path / "out")
    assert calls == ["copy"], "content decides, not the path"


def test_a_failed_run_leaves_nothing(text: Path, tmp_path: Path) -> None:
    text.write_text("broken")
    with pytest.raises(AidError, match="broken"):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_failed_rebuild_keeps_the_good_one(text: Path, tmp_path: Path) -> None:
    copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    text.write_text("broken")
    with pytest.raises(AidError):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert (tmp_path / "out/inner/copy.txt").read_text() == "hello"


def test_an_interrupted_resumable_run_finds_its_scratch(text: Path, tmp_path: Path) -> None:
    text.write_text("stop")
    inputs, out = CopyInputs(text=text), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        slow(CopySettings(), inputs, out)
    assert not out.exists()
    slow(CopySettings(), inputs, out)
    assert calls == ["fresh", "half"]
    assert sorted(path.name for path in out.iterdir()) == ["done.txt", "lineage.json"]


def test_other_settings_never_continue_anothers_work(text: Path, tmp_path: Path) -> None:
    text.write_text("stop")
    with pytest.raises(KeyboardInterrupt):
        slow(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    slow(CopySettings(shout=True), CopyInputs(text=text), tmp_path / "out")
    assert calls == ["fresh", "fresh"]


def test_folders_of_others_are_left_alone(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="did not make it"):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.txt does not exist"):
        copy(CopySettings(), CopyInputs(text=tmp_path / "nowhere.txt"), tmp_path / "out")


def test_lineage_reaches_back_through_artifacts_and_members(text: Path, tmp_path: Path) -> None:
    first = copy(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    member = first / "inner/copy.txt"
    second = copy(CopySettings(shout=True), CopyInputs(text=member, others={"a": first}), tmp_path / "second")
    ancestry = lineage_of(second)
    assert [node.verb for _, _, node, _ in ancestry.walk()] == ["copy", "copy", "file"]
    assert ancestry.node.inputs["text"].sha256 == lineage_of(member).sha256
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/copy.txt").write_bytes(member.read_bytes())
    assert lineage_of(tmp_path / "loose").node.verb == "pictures"
    assert not is_current(second, describe("copy", {}, {}))


def test_under_construction_is_the_lineage_that_is_released(text: Path, tmp_path: Path) -> None:
    seen = []

    @verb("look")
    def look(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
        seen.append(under_construction(out).key)

    look(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert seen == [lineage_of(tmp_path / "out").key]


def test_a_malformed_lineage_is_refused(text: Path, tmp_path: Path) -> None:
    out = copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    (out / "lineage.json").write_text('{"key": 3}')
    with pytest.raises(ArtifactError, match="not a lineage"):
        lineage_of(out)
