"""A whole recipe as a user runs it: from pictures to a release, again, after a loss, and after kill -9."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aid.core.files import sha256_file
from aid.core.lineage import lineage_of

RECIPE = Path(__file__).with_name("tiny.toml")
KILLS = 20
RUN = [sys.executable, "-c", "from aid.cli import main; main()"]


def arguments(pictures: Path, base: Path, out: Path, recipe: Path = RECIPE) -> list[str]:
    words = ["make", str(recipe), "--input", f"pictures={pictures}", "--input", f"base={base}"]
    return [*words, "--out", str(out), "--threads", "1", "--device", "cpu"]


def make(pictures: Path, base: Path, out: Path, recipe: Path = RECIPE) -> dict[str, str]:
    """Run the recipe; {step: made or kept}."""
    words = [*RUN, *arguments(pictures, base, out, recipe), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {row["step"]: row["result"] for row in json.loads(done.stdout)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(pictures: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("flow") / "run"
    results = make(pictures, tiny_checkpoint, out)
    assert set(results.values()) == {"made"}
    return out


def test_the_release_has_everything(made: Path) -> None:
    release = made / "release"
    names = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
    assert {
        "model.safetensors", "embeddings/tinyneg.pt", "embeddings/tinyneg.safetensors", "catalogue.toml",
        "report.json", "card.md", "card.zh.md", "lineage.json",
    } <= names  # fmt: skip
    assert any(name.startswith("samples/") for name in names)
    assert not [path for path in made.iterdir() if path.name.startswith(".")], "nothing half-written stays"


def test_any_file_tells_its_ancestry_back_to_the_pictures(made: Path, pictures: Path) -> None:
    for name in ("release/model.safetensors", "merged/model.safetensors", "release/card.md"):
        verbs = {node.verb for _, _, node, _ in lineage_of(made / name).walk()}
        assert {"prepare", "train finetune", "merge", "pictures"} <= verbs
    nodes = lineage_of(made / "release").nodes.values()
    hashes = {s.sha256 for node in nodes if node.verb == "pictures" for s in node.inputs.values()}
    assert sha256_file(pictures / "alpha" / "alpha0.png") in hashes


def test_again_rebuilds_nothing_and_a_lost_output_alone(
    made: Path, pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(made, out)
    assert set(make(pictures, tiny_checkpoint, out).values()) == {"kept"}
    shutil.rmtree(out / "merged")
    (out / "judge" / "judge.json").unlink()
    results = make(pictures, tiny_checkpoint, out)
    assert {step for step, result in results.items() if result == "made"} == {"merged", "judge"}
    assert contents(out) == contents(made)


def disturb(kills: int, seed: int, words: list[str]) -> None:
    script = str(Path(__file__).with_name("disturbed.py"))
    command = [sys.executable, script, str(kills), str(seed), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) >= kills // 2, done.stdout


def test_kill_9_at_any_moment_ends_in_the_same_bytes(
    made: Path, pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """First from nothing, then over the finished run with another setting of its training."""
    out, afresh, changed = tmp_path / "run", tmp_path / "afresh", tmp_path / "changed.toml"
    disturb(KILLS, 9, arguments(pictures, tiny_checkpoint, out))
    assert contents(out) == contents(made)
    text = RECIPE.read_text()
    assert "unet_rate = 1e-3" in text
    changed.write_text(text.replace("unet_rate = 1e-3", "unet_rate = 2e-3"))
    disturb(KILLS // 2, 10, arguments(pictures, tiny_checkpoint, out, changed))
    results = make(pictures, tiny_checkpoint, afresh, changed)
    assert set(results.values()) == {"made"}
    assert contents(out) == contents(afresh)
    assert contents(out)["merged/model.safetensors"] != contents(made)["merged/model.safetensors"]
