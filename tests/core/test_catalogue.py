"""AID's own catalogue against the model card's text, and catalogues in general."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid.core.catalogue import Catalogue, Category, Parameters, Rename, Style, Version, load_catalogue
from aid.core.spelling import distance, fold
from aid.errors import FileError, SettingsError

DATA = Path(__file__).parent / "data"
APPENDIX = (DATA / "appendix_a.txt").read_text(encoding="utf-8")
CARD = unicodedata.normalize("NFKC", (DATA / "card.txt").read_text(encoding="utf-8"))


def listed(heading: str) -> list[str]:
    """The words that the appendix lists behind an English heading, in its order."""
    body = re.search(rf"/ {re.escape(heading)}:(.*)", APPENDIX)
    assert body is not None
    return [word.strip() for word in body[1].split(",")]


def after(heading: str) -> str:
    """What stands behind a heading of the card, in its first place."""
    body = re.search(rf"^{re.escape(heading)}\s*:(.*)", CARD, re.MULTILINE)
    assert body is not None
    return body[1].strip()


@pytest.mark.parametrize(
    ("version", "heading", "count"),
    [
        ("v2.5", "Until AIDV2.5", 40),
        ("v2.6", "AIDV2.6 adds", 10),
        ("v2.7", "AIDV2.7 adds", 7),
        ("v2.9", "AIDV2.9 adds", 43),
        ("v2.91", "AIDV2.91 adds", 6),
    ],
)
def test_each_version_adds_exactly_what_the_card_lists(version: str, heading: str, count: int) -> None:
    words = listed(heading)
    assert len(set(words)) == len(words) == count
    assert sorted(load_catalogue().added(version)) == sorted(words)


def test_the_newest_version_knows_exactly_the_whole_list() -> None:
    words = listed("Until AIDV2.10beta1")
    assert len(set(words)) == len(words) == 204
    assert sorted(load_catalogue().triggers("v2.10beta1")) == sorted(words)


def test_versions_build_on_one_another_and_one_style_was_renamed() -> None:
    catalogue = load_catalogue()
    headings = ["Until AIDV2.5", "AIDV2.6 adds", "AIDV2.7 adds", "AIDV2.9 adds", "AIDV2.91 adds"]
    so_far = {word for heading in headings for word in listed(heading)}
    assert set(catalogue.triggers("v2.91")) == so_far - {"by fuzichico"} | {"by fuzichoco"}
    assert set(catalogue.triggers("v2.8")) == {word for heading in headings[:3] for word in listed(heading)}
    assert re.search(r"\(ii\) by (\w+) -> by (\w+)", APPENDIX).groups() == ("fuzichico", "fuzichoco")  # type: ignore[union-attr]
    assert catalogue.renames == (Rename(old="fuzichico", new="fuzichoco", version="v2.9"),)
    assert catalogue.version("v2.9").updated == (re.search(r"\(i\) by ([^;]+)", APPENDIX)[1],)  # type: ignore[index]


def test_nothing_is_in_the_catalogue_that_the_card_does_not_list() -> None:
    every = {
        word for line in APPENDIX.splitlines()[1:] if "pdate" not in line for word in re.split(r"[:,]", line)
    }
    words = {word.strip() for word in every}
    for entry in load_catalogue().entries():
        assert entry.trigger in words
    assert len(load_catalogue().styles) == 211 and len(load_catalogue().categories) == 7


def test_recommended_parameters_are_the_cards() -> None:
    advice = load_catalogue().parameters_of("v2.10beta1")
    assert advice.sampler == after("Sampler") == after("采样器")
    assert advice.steps == (int(after("Steps")), int(after("采样步数"))) == (32, 40)
    assert ", ".join(f"{w}x{h}" for w, h in advice.sizes) == after("分辨率").removesuffix(" 等")
    assert advice.clip_skip == int(after("CLIP skip"))
    prompt = after("Prompts format").replace("by {xxx}", "by wlop").replace("{other prompts}", "1girl")
    assert advice.positive("by wlop", "1girl") == prompt
    assert advice.negative("lowres") == after("Negative prompts format").replace(
        "{other negative prompts}", "lowres"
    )
    assert load_catalogue().parameters_of("2.5").negative() == "badv3"


def test_version_comparison_and_declarations_are_the_cards_in_both_languages() -> None:
    catalogue = load_catalogue()
    assert len(catalogue.comparisons) == 4 and len(catalogue.declarations) == 6
    for comparison in catalogue.comparisons:
        for title in (comparison.title.en, comparison.title.zh):
            assert ", ".join(comparison.versions) == after(f"- {title}")
    for declaration in catalogue.declarations:
        assert f"\n{declaration.en}\n" in CARD
        assert f"\n{unicodedata.normalize('NFKC', declaration.zh)}\n" in CARD
    for reference in catalogue.references:
        assert unicodedata.normalize("NFKC", reference) in CARD


@pytest.mark.parametrize(
    ("query", "name", "match"),
    [
        ("wlop", "wlop", "same"),
        ("by  Mika_Pikazo", "mika pikazo", "same"),
        ("fuzichico", "fuzichoco", "old name"),
        ("yoneyama", "yoneyama mai", "part"),
        ("wlpo", "wlop", "near"),
        ("mika picaso", "mika pikazo", "near"),
        ("pikazzo", "mika pikazo", "near"),
        ("bis takumi", "takumi bis", "near"),
        ("impsto", "impasto", "near"),
    ],
)
def test_search_finds_what_was_meant(query: str, name: str, match: str) -> None:
    best = load_catalogue().search(query)[0]
    assert (best.entry.name, best.match) == (name, match)


def test_two_names_one_letter_apart_are_each_others_neighbours() -> None:
    for one, other in (
        ("takumi bis", "tukumi bis"),
        ("tukumi bis", "takumi bis"),
        ("caaaarrot", "caaaaarrot"),
    ):
        assert [found.entry.name for found in load_catalogue().search(one)][:2] == [one, other]


def test_search_lists_everything_or_one_version_and_finds_nothing_for_noise() -> None:
    catalogue = load_catalogue()
    assert [found.entry for found in catalogue.search()] == list(catalogue.entries())
    assert len(catalogue.search(version="2.5")) == 40
    assert catalogue.search("celluloid", "v2.10beta1") == []
    assert catalogue.search("qqqzzzxxx") == []
    with pytest.raises(SettingsError, match=r"v3 is not a version .* expected v2\.5, "):
        catalogue.search("wlop", "v3")


names = st.text("abcdeé 米-_|\"'", min_size=1, max_size=12).filter(lambda name: fold(name) != "")


@given(st.sets(names, min_size=2, max_size=6), st.data())
def test_every_name_finds_itself_first_and_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, known: set[str], data: st.DataObject
) -> None:
    versions = tuple(Version(name=f"v{n}") for n in range(3))
    first = {name: data.draw(st.integers(0, 2)) for name in sorted(known)}
    styles = tuple(
        Style(
            name=name,
            trigger=f"by {name}",
            since=f"v{start}",
            versions=tuple(one.name for one in versions[start:]),
            pictures=data.draw(st.none() | st.integers(0, 9)),
        )
        for name, start in first.items()
    )
    word = Category(name="impasto", trigger="impasto", since="v0", versions=("v0",))
    catalogue = Catalogue(title="T", versions=versions, styles=styles, categories=(word,))
    for name in known:
        assert fold(catalogue.search(name)[0].via) == fold(name)
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.toml"
    catalogue.write(path)
    assert Catalogue.read(path) == catalogue


@given(st.text("abc", max_size=7), st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_distance_is_symmetric_and_bounded(a: str, b: str, c: str) -> None:
    assert distance(a, b) == distance(b, a) and (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
    assert distance(a + c, b + c) <= distance(a, b)
    if len(a) > 1 and a[0] != a[1]:
        assert distance(a, a[1] + a[0] + a[2:]) == 1


def test_prompt_formats_leave_no_gaps() -> None:
    advice = Parameters(prompt="best, {trigger}, sharp, {tags}", negative_embedding="bad")
    assert advice.positive("by a, by b") == "best, by a, by b, sharp"
    assert advice.positive("by a", "hat") == "best, by a, sharp, hat"
    assert advice.negative() == "bad"
    assert Parameters().negative() == ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "title"),
        (b"title = ", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"x = " + b"[" * 5000, "is not TOML"),
        (b'title = "T"\nversions = []', "versions"),
        (b'title = "T"\nmood = 1\n[[versions]]\nname = "v1"', "mood"),
        (b'title = "T"\n[[versions]]\nname = "v1"\n[[versions]]\nname = "v1"', "v1 is listed twice"),
        (
            b'title = "T"\nversions = [{name = "v1"}]\n'
            b'styles = [{name = "a", trigger = "by a", since = "v2", versions = ["v2"]}]',
            "a names v2",
        ),
        (
            b'title = "T"\nversions = [{name = "v1"}, {name = "v2"}]\n'
            b'styles = [{name = "a", trigger = "by a", since = "v2", versions = ["v1"]}]',
            "not its first version",
        ),
        (
            b'title = "T"\nversions = [{name = "v1"}]\nrenames = [{old = "a", new = "b", version = "v1"}]',
            "b, which is not a style",
        ),
    ],
)
def test_a_malformed_catalogue_is_named_with_its_fault(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_bytes(content)
    with pytest.raises(FileError, match=complaint) as caught:
        Catalogue.read(path)
    assert "catalogue.toml" in str(caught.value)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.toml could not be read"):
        Catalogue.read(tmp_path / "nowhere.toml")
