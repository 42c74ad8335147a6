"""The documents: generated pages are up to date, every command is one, the cheap ones and the tour run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from aid.cli import root
from aid.cli.verb_command import verb_values
from aid.starter import BASE
from aid.verbs import VERBS

HOME = Path(__file__).parents[2]
PAGES = sorted([HOME / "README.md", HOME / "CONTRIBUTING.md", *(HOME / "docs").glob("*.md")])
CHEAP = ("styles", "--help", "prompt", "inspect", "--dry-run")
PICTURE = "docs/pictures/starter.png"
needs_starter = pytest.mark.skipif(
    not BASE.is_file(), reason="the starter's weights are not in this checkout"
)


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", HOME / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in the page's shell blocks, here-documents left out."""
    for block in shell_blocks(page):
        plain = re.sub(r"<<'END'\n.*?^END$", "", block, flags=re.DOTALL | re.MULTILINE)
        for line in plain.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


AID_LINES = [
    pytest.param(words[1:], id=f"{page.name}: {shlex.join(words)[:60]}")
    for page in PAGES
    for words in command_lines(page)
    if words[0] == "aid"
]


def environment(tmp_path: Path) -> dict[str, str]:
    """A path on which `aid` is the one under test."""
    shim = tmp_path / "bin" / "aid"
    shim.parent.mkdir(parents=True)
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from aid.cli import main; main()" "$@"\n')
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", ["recipe.md", "cli.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    page = load_generator().PAGES[name]()
    assert (HOME / "docs" / name).read_text("utf-8") == page, "run python docs/generate.py"


def test_the_reference_has_every_setting_and_every_command() -> None:
    reference = (HOME / "docs" / "recipe.md").read_text("utf-8")
    for name, entry in VERBS.items():
        part = reference.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for model in (entry.settings_type(), entry.inputs_type()):
            for field in model.model_fields:
                assert f"| `{field}` |" in part, f"{name}: {field}"
    pages = (HOME / "docs" / "cli.md").read_text("utf-8")
    for command in (*VERBS, "make", "styles", "lineage"):
        assert f"\n## aid {command}\n" in pages


@needs_starter
@pytest.mark.parametrize("words", AID_LINES)
def test_every_command_in_the_documents_is_one(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options exist, and the settings they give are valid; nothing is run."""
    monkeypatch.chdir(HOME)
    command, left, name = root, list(words), []
    context = click.Context(command, info_name="aid")
    while isinstance(command, click.Group) and left and not left[0].startswith("-"):
        name.append(left.pop(0))
        found = command.get_command(context, name[-1])
        assert found is not None, f"aid has no command {' '.join(name)}"
        command = found
    if left == ["--help"]:
        return
    given: dict[str, Any] = command.make_context(" ".join(name), left).params
    if " ".join(name) in VERBS:
        given["checkpoint"] = given.get("checkpoint") or (BASE if name in (["generate"], ["grid"]) else None)
        verb_values(" ".join(name), given)
    if name == ["make"]:
        assert given["recipe"].suffix == ".toml"


def test_make_targets_exist() -> None:
    makefile = (HOME / "Makefile").read_text("utf-8")
    targets = {words[1] for page in PAGES for words in command_lines(page) if words[0] == "make"}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@needs_starter
def test_the_cheap_commands_of_the_readme_run(tmp_path: Path) -> None:
    cheap = [
        shlex.join(words)
        for words in command_lines(HOME / "README.md")
        if words[0] == "aid"
        and (words[1] in ("styles", "--help", "prompt", "inspect") or "--dry-run" in words)
    ]
    assert len(cheap) >= 3
    script = "\n".join(["set -e", *cheap])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=HOME,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "by fuzichoco" in done.stdout and "$composition (missing)" in done.stdout


@needs_starter
def test_the_tour_runs(tmp_path: Path) -> None:
    folder = tmp_path / "tour"
    folder.mkdir()
    script = "set -euo pipefail\n" + "\n".join(shell_blocks(HOME / "docs" / "tour.md"))
    surroundings = {**environment(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=surroundings, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((folder / "first").glob("*.png"))) == 4
    for made in (
        "release/model.safetensors",
        "release/card.md",
        "release/samples/all.png",
        "report/report.md",
    ):
        assert (folder / made).is_file(), made
    assert "pictures.new = pictures" in done.stdout, "the lineage goes back to the pictures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        if link == PICTURE and not (HOME / PICTURE).exists():
            pytest.skip(f"{PICTURE} is drawn by the starter's release")
        assert (page.parent / link).exists(), link


def test_the_readme_shows_the_main_things_first() -> None:
    first = "\n".join((HOME / "README.md").read_text("utf-8").splitlines()[:40])
    assert PICTURE in first and "make demo" in first and "make test" in first
    assert first.count("\naid ") == 8
