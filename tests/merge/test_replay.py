"""Merges done again from their results: where parents are looked for, what may be said beside `--from`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_chain import family_of_three, merged

from aid.cli import main
from aid.errors import FileError
from aid.merge.replay import recorded
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings


@pytest.fixture(scope="session")
def trio(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return family_of_three(tiny_checkpoint, tmp_path_factory.mktemp("replay"))


def test_a_merge_is_done_again_from_its_result(trio: dict[str, Path], tmp_path: Path) -> None:
    merged(
        trio,
        tmp_path / "out",
        chain=[{"name": "x", "models": ["a", "b"], "alpha": 0.3}, {"models": ["x", "c"]}],
    )
    result = tmp_path / "copy.safetensors"
    result.write_bytes((tmp_path / "out/model.safetensors").read_bytes())
    with pytest.raises(FileError, match=r"needs models.a \(a.safetensors, sha256 [0-9a-f]{64}\)"):
        recorded(result, {}, [])
    with pytest.raises(FileError, match=r"b.safetensors is not what was merged; expected models.a \(a.saf"):
        recorded(result, {"models.a": trio["b"]}, [])
    settings, inputs = recorded(result, {"models.a": trio["a"]}, [trio["a"].parent])
    again = merge(settings, inputs, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == result.read_bytes()
    with pytest.raises(FileError, match="was not made by merging"):
        recorded(trio["a"], {}, [])


def test_parents_are_found_beside_the_artifact_and_here(
    trio: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file beside it, a neighbour's file, a neighbour; and a file in the current folder."""
    runs, here = tmp_path / "runs", tmp_path / "here"
    runs.mkdir(), here.mkdir()
    halves = MergeSettings(primary="a", weights={"b": {"IN": 0.5}})
    for name in ("first", "second"):
        merge(
            halves,
            MergeInputs(models={"a": trio["a"], "b": trio[(name == "second" and "c") or "b"]}),
            runs / name,
        )
    shutil.copy(trio["a"], runs / "beside.safetensors")
    shutil.copy(trio["c"], here / "c.safetensors")
    models = {
        "a": runs / "beside.safetensors",
        "b": runs / "first" / "model.safetensors",
        "c": here / "c.safetensors",
        "d": runs / "second",
    }
    settings = MergeSettings(primary="a", weights={name: {"OUT": 0.25} for name in "bcd"})
    out = merge(settings, MergeInputs(models=models), runs / "merged")
    with pytest.raises(FileError, match=r"needs models.c \(c.safetensors, .*\), which is nowhere"):
        recorded(out / "model.safetensors", {}, [])
    monkeypatch.chdir(here)
    for source in (out / "model.safetensors", out):
        main(["merge", "--from", str(source), "--out", str(tmp_path / "again")])
        again = tmp_path / "again" / "model.safetensors"
        assert again.read_bytes() == (out / "model.safetensors").read_bytes()
        shutil.rmtree(again.parent)


def test_large_files_that_are_only_near_are_not_all_read(
    trio: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody sent it, it reads what has the name or was hashed before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("aid.core.known_hash.LARGE_BYTES", 1)
    monkeypatch.setattr("aid.core.lineage.SETTLED_NS", 0)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    merged(trio, tmp_path / "out", chain=[{"models": ["a", "b"]}, {"models": ["0:", "c"]}])
    result = tmp_path / "out/model.safetensors"
    for name, copy in (("a", "a"), ("b", "b"), ("c", "renamed")):
        shutil.copy(trio[name], here / f"{copy}.safetensors")
    with pytest.raises(FileError, match=r"needs models.c \(c.safetensors, sha256 [0-9a-f]{64}\), which is"):
        recorded(result, {}, [])
    assert "renamed" not in (tmp_path / "cache/aid/hashes.json").read_text()
    assert recorded(result, {}, [here])[1].models["c"].name == "renamed.safetensors"
    assert recorded(result, {}, [])[1].models["c"].name == "renamed.safetensors", "hashed by now"


def test_what_cannot_be_said_beside_from_is_named(
    trio: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged(trio, tmp_path / "out", chain=[{"models": ["a", "b"]}])
    result = ["--from", str(tmp_path / "out/model.safetensors")]
    settings = ["--preset", "aid-v1", "--precision", "fp32", "--no-prune", "--set", "broken=keep"]
    cases = [
        ([*result, *settings], "--from is given beside --preset, --precision, --prune, --set; expected only"),
        ([*result, "--settings", "merge.toml"], "--from is given beside --settings"),
        ([*result, "--parents", str(tmp_path / "nosuch")], f"{tmp_path / 'nosuch'} is no folder"),
        ([*result, "--models", f"d={trio['a']}"], "the merge had no models.d; expected models.a, models.b"),
        (["--models", f"base={trio['a']}", "--parents", str(tmp_path)], "--parents is given without --from"),
    ]
    for words, message in cases:
        with pytest.raises(SystemExit):
            main(["merge", *words, "--out", str(tmp_path / "again")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_what_ships_with_aid_is_a_parent_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["merge", "--models", "base=aid:base", "--out", "out"])
    main(["merge", "--from", "out", "--out", "again"])
    lineages = [json.loads(Path(name, "lineage.json").read_text()) for name in ("out", "again")]
    assert lineages[0]["key"] == lineages[1]["key"]
