"""Damaged TOML: recipes, settings, catalogues, credits."""

from __future__ import annotations

from pathlib import Path

from damage import TOML
from fuzzing import Target, each, fuzz

from aid.cli.options import settings_file
from aid.core.catalogue import Catalogue, Style, Version
from aid.dataset.finding.credit import read_credit
from aid.make import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
CREDIT = b'licence = "CC0-1.0"\ncredit = "A"\nstyle = "x"\n[styles]\n"10_smile" = "big"\n'
SETTINGS = b'steps = 3\nseed = 1\n[samples]\nevery = 2\nprompts = ["a"]\n'


def read(folder: Path) -> None:
    path = next(folder.iterdir())
    readers = {
        "recipe.toml": lambda one: read_recipe(one, folder / "runs"),
        "catalogue.toml": Catalogue.read,
        "credit.toml": lambda one: read_credit(one, folder),
        "settings.toml": settings_file,
    }
    each(readers[path.name])(path)


def catalogue(folder: Path) -> bytes:
    styles = (Style(name="a", trigger="by a", since="v1", versions=("v1", "v2")),)
    made = Catalogue(title="A", versions=(Version(name="v1"), Version(name="v2")), styles=styles)
    made.write(folder / "seed.toml")
    return (folder / "seed.toml").read_bytes()


def test_damaged_toml(tmp_path: Path) -> None:
    samples = [{"recipe.toml": path.read_bytes()} for path in sorted(RECIPES.glob("*.toml"))]
    samples += [{"catalogue.toml": catalogue(tmp_path)}, {"credit.toml": CREDIT}, {"settings.toml": SETTINGS}]
    fuzz(Target("toml", samples, read, {"": TOML}), tmp_path / "fuzzed")
