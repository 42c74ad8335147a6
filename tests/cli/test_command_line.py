"""The command line as people meet it: help, wrong words, errors, JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.cli import main
from aid.cli.options import assignments, merge_trees
from aid.cli.verb_command import bench
from aid.core.lineage import describe
from aid.errors import SettingsError
from aid.starter import shipped
from aid.verbs import VERBS

AID_V1 = Path(__file__).parents[2] / "recipes" / "aid-v1.toml"
HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "numpy")


class Ran:
    """What one command left: exit code, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str | Path) -> None:
        self.code: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            self.code = end.code or 0
        self.out, self.err = capsys.readouterr()

    def is_one_line(self) -> bool:
        return self.err.startswith("aid: ") and self.err.count("\n") == 1


def imported(words: list[str]) -> set[str]:
    """The heavy packages that a fresh process has imported after a command."""
    code = (
        "import sys\nfrom aid.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))


def test_help_names_every_verb_and_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    text = Ran(capsys, "--help").out
    for name in {name.partition(" ")[0] for name in VERBS} | {"make", "styles", "lineage"}:
        assert f"\n  {name} " in text
    assert imported(["--help"]) == set()


@pytest.mark.parametrize("words", [["generate"], ["generate", "a cat", "--set", "step=3"]], ids=" ".join)
def test_what_cannot_be_meant_is_told_before_torch_is_imported(words: list[str]) -> None:
    assert not imported(words) & {"torch", "diffusers", "transformers"}


@pytest.mark.parametrize("words", [["train", "finetune"], ["generate"], ["make"]], ids=" ".join)
def test_the_help_of_a_command_imports_no_torch(words: list[str]) -> None:
    assert not imported([*words, "--help"]) & {"torch", "diffusers", "transformers", "matplotlib"}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, *name.split(), "--help")
    assert ran.code == 0
    assert "Undefined" not in ran.out
    needed = [field for field, about in VERBS[name].inputs_type().model_fields.items() if about.is_required()]
    for option in (*needed, "out", "set", "device"):
        assert f"--{option} " in ran.out, option


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from aid import __version__

    assert Ran(capsys, "--version").out == f"aid {__version__}\n"
    module = [sys.executable, "-m", "aid", "--version"]
    assert subprocess.run(module, capture_output=True, text=True).stdout == f"aid {__version__}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["train", "lora"], "lora"),
        (["merge", "--nope"], "--nope"),
        (["generate", "x", "--steps", "many"], "many"),
        (["generate", "x", "--precision", "float8"], "float8"),
        (["prepare", "--pictures", "a=b"], "--out"),
        (["lineage"], "PATH"),
        (["generate"], "PROMPT"),
    ],
)
def test_wrong_words_exit_2(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, *words)
    assert ran.code == 2 and named in ran.err and not ran.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["lineage", "nowhere.png"], "nowhere.png"),
        (["make", "nowhere.toml"], "nowhere.toml"),
        (["make", str(AID_V1)], "$pictures does not exist"),
        (["make", str(AID_V1), "--input", "pictures"], "--input pictures"),
        (["make", str(AID_V1), "--input", "vae=aid:nothing", "--dry-run"], "aid:nothing"),
        (["generate", "x", "--checkpoint", "nowhere.safetensors", "--out", "o"], "nowhere.safetensors"),
        (["generate", "x", "--checkpoint", "aid:nothing"], "aid:nothing"),
        (["generate", "x", "--checkpoint", "aid:../../../README.md"], "aid:../../../README.md"),
        (["generate", "x", "--checkpoint", "c", "--steps", "0"], "steps"),
        (["generate", "x", "--checkpoint", "c", "--settings", "nowhere.toml"], "nowhere.toml"),
        (["generate", "x", "--checkpoint", "c", "--set", "step=3"], "did you mean steps?"),
        (["generate", "x", "--checkpoint", "c", "--set", "steps"], "--set steps"),
        (["prepare", "--pictures", "a=x", "--pictures", "a=y", "--out", "o"], "--pictures"),
        (["prepare", "--pictures", "nowhere", "--out", "o"], "nowhere"),
        (["prepare", "--pictures", "a:b=x", "--out", "o"], "'a:b': expected up to 64 letters"),
        (["merge", "--models", "base=nowhere.safetensors", "--out", "o"], "nowhere.safetensors"),
        (["styles", "--version", "v9"], "v9"),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_names_the_thing(
    words: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = Ran(capsys, *words)
    assert ran.code == 1 and ran.is_one_line(), ran.err
    assert named in ran.err and not ran.out
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"


def test_a_foreign_folder_is_not_overwritten(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = Ran(capsys, "prepare", "--pictures", pictures, "--out", tmp_path, "--resolution-px", "64")
    assert ran.code == 1 and "AID did not make it" in ran.err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_misspelled_style_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert "by fuzichoco" in Ran(capsys, "styles", "fuzichico").out
    assert "by wlop" in Ran(capsys, "styles", "wlpo").out


def test_a_release_lists_its_own_styles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(Ran(capsys, "styles", "lorelay", "--checkpoint", "aid:release", "--json").out)
    assert [(row["trigger"], row["match"]) for row in found] == [("by lorelei", "near: lorelei")]
    ran = Ran(capsys, "styles", "--checkpoint", tmp_path)
    assert ran.code == 1 and ran.is_one_line() and "aid release" in ran.err


def test_json_is_json(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(Ran(capsys, "styles", "fuzichico", "--json").out)
    assert found[0]["trigger"] == "by fuzichoco" and found[0]["since"] == "v2.5"
    assert json.loads(Ran(capsys, "styles", "no such thing at all", "--json").out) == []
    listed = json.loads(Ran(capsys, "styles", "--json").out)
    assert len(listed) > 200 and all(row["versions"] for row in listed)
    ancestry = json.loads(Ran(capsys, "lineage", pictures, "--json").out)
    assert ancestry["nodes"][ancestry["key"]]["verb"] == "pictures"


def test_a_lineage_shows_what_is_not_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"steps": 40, "cfg_scale": 7.0, "prompt": "cat " * 99, "hires": {"scale": 2.0}, "gone": 1}
    lineage = describe("generate", told, {})
    (tmp_path / "lineage.json").write_text(lineage.model_dump_json())
    shown = Ran(capsys, "lineage", tmp_path).out
    assert "steps=40" in shown and 'hires={"scale": 2.0}' in shown and "gone=1" in shown
    assert "cfg_scale" not in shown and "cat..." in shown.replace("cat ...", "cat...")
    assert max(map(len, shown.splitlines())) <= 110
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").symlink_to(shipped("release") / "model.safetensors")
    for release in ("aid:release", tmp_path / "bare"):
        told = Ran(capsys, "lineage", release).out
        assert told.startswith("release  [") and "train finetune" in told, "told by its model where it must"


def test_results_go_to_standard_output_and_progress_does_not(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    words = ("prepare", "--pictures", f"new={pictures}", "--out", out, "--resolution-px", "64")
    ran = Ran(capsys, *words)
    assert ran.code == 0 and ran.out.replace("\n", "") == str(out)
    assert "crop" in ran.err
    assert "pictures: 16 (12 to train on, 4 held out), styles: 2" in ran.err and "set aside" not in ran.err
    again = Ran(capsys, *words)
    assert again.out == ran.out and again.err.replace("\n", "").startswith(f"{out} is kept")
    assert "torch" not in imported([str(word) for word in words])


def test_prepare_names_what_it_sets_aside(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the spot, and without what a file's name could do to a terminal."""
    folder = shutil.copytree(pictures, tmp_path / "in")
    (folder / "beta" / "half\x1b[2J.png").write_bytes((folder / "beta" / "beta0.png").read_bytes()[:200])
    words = ("prepare", "--pictures", folder, "--out", tmp_path / "out", "--resolution-px", "64")
    ran = Ran(capsys, *words, "--set", 'known_tags=["smile", "frown", "red hair"]')
    told = " ".join(ran.err.split())
    assert ran.code == 0 and "unknown tags: 1, files set aside: 1 (report.json names all)" in told
    assert "set aside: in/beta/half [2J.png" in told and "\x1b" not in ran.err


def test_a_dataset_without_latents_is_told_before_training_begins(
    pictures: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    Ran(capsys, "prepare", "--pictures", pictures, "--out", out, "--resolution-px", "64")
    for verb, option in (("finetune", "--dataset"), ("embedding", "--pictures")):
        words = ("train", verb, "--checkpoint", tiny_checkpoint, option, out, "--steps", "1")
        ran = Ran(capsys, *words, "--out", tmp_path / "trained")
        assert ran.code == 1 and ran.is_one_line(), ran.err
        assert "has no latents-64x64.npy" in ran.err and "--vae" in ran.err
        assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_prompt_that_can_not_be_drawn_leaves_no_folder(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", "<lora:none:1>", "--checkpoint", tiny_checkpoint, "--steps", "1")
    assert Ran(capsys, *words, "--out", tmp_path / "out").code == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    assert Ran(capsys, *words, "--out", tmp_path / "mine").code == 1
    assert (tmp_path / "mine").is_dir(), "it was there before"


def test_options_win_over_set_and_set_over_a_file(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "settings.toml"
    written.write_text("resolution_px = 128\nheld_fraction = 0.0\nrare_tag_pictures = 1\n")
    out = tmp_path / "dataset"
    words = ("prepare", "--pictures", pictures, "--out", out, "--settings", written)
    ran = Ran(
        capsys, *words, "--set", "resolution_px=256", "--set", "held_fraction=0.5", "--resolution-px", "64"
    )
    assert ran.code == 0, ran.err
    (node,) = [
        n for n in json.loads((out / "lineage.json").read_text())["nodes"].values() if n["verb"] == "prepare"
    ]
    chosen = [node["settings"][name] for name in ("resolution_px", "held_fraction", "rare_tag_pictures")]
    assert chosen == [64, 0.5, 1]


def test_a_bare_path_is_named_after_itself(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    Ran(capsys, "prepare", "--pictures", pictures, "--out", out, "--resolution-px", "64")
    first = json.loads((out / "records.jsonl").read_text().splitlines()[0])
    assert first["source"].startswith(f"{pictures.name}/")


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from aid.cli import looking

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(looking, "lineage_of", interrupt)
    ran = Ran(capsys, "lineage", "x")
    assert ran.code == 130 and "Interrupted" in ran.err and "Traceback" not in ran.err


NAMES = st.lists(st.text("abcdefgh_", min_size=1, max_size=4), min_size=1, max_size=3)
VALUES = st.one_of(
    st.integers(-(2**53), 2**53), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)


@given(NAMES, VALUES)
def test_a_value_typed_as_toml_comes_back(names: list[str], value: Any) -> None:
    found: Any = assignments((f"{'.'.join(names)}={json.dumps(value)}",))
    for name in names:
        found = found[name]
    assert found == value and type(found) is type(value)


TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))


@given(
    st.dictionaries(st.sampled_from("abc"), TREES, max_size=3),
    st.dictionaries(st.sampled_from("abc"), TREES, max_size=3),
)
def test_joining_keeps_the_first_where_the_second_is_silent(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    joined = merge_trees(first, second)
    assert set(joined) == set(first) | set(second)
    assert all(joined[key] == first[key] for key in set(first) - set(second))
    assert all(joined[key] == value for key, value in second.items() if not isinstance(value, dict))


@pytest.mark.parametrize(("rank", "ranks"), [("1", ""), ("0", "0"), ("2", "2")])
def test_half_of_a_launchers_words_are_refused(
    rank: str, ranks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would make this process one of several that aren't there."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(SettingsError, match=f"RANK={rank} and WORLD_SIZE"):
        bench("cpu", 1)
