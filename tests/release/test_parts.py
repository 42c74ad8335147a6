"""The card's parts: wording, Markdown, blocks in words, and what only a full-size model's card says."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from string import Formatter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aid.core.blocks import SD1_BLOCKS, expand
from aid.core.catalogue import Catalogue, Style, Text, Version
from aid.core.lineage import Lineage, Node, Source
from aid.core.release import CATALOGUE_FILE, MODEL_FILE, Release, sheet_files
from aid.core.shot import Shot
from aid.release.card import hub_page, write_card
from aid.release.facts import Facts
from aid.release.language import wording
from aid.release.listing import list_release
from aid.release.making import making
from aid.release.markdown import table
from aid.release.method import block_text, drew_for_embeddings, embedding_steps, making_of
from aid.release.modelspec import describe_model
from aid.release.samples import Sample, draw_sheets, group_samples
from aid.release.usage import use
from aid.sd.file.tensorfile import hash_tensors
from aid.sd.model.architecture import SD1

PHRASES = tomllib.loads(
    (resources.files("aid.release") / "data" / "wording.toml").read_text(encoding="utf-8")
)


def fields(phrase: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(phrase) if name is not None}


@pytest.mark.parametrize("key", PHRASES)
def test_every_phrase_says_the_same_in_both_languages(key: str) -> None:
    phrase = PHRASES[key]
    assert phrase.keys() == {"en", "zh"}
    assert fields(phrase["en"]) == fields(phrase["zh"]) or key.startswith("count_")
    half_width = re.search(r"[\u4e00-\u9fff][,;:!?()]", re.sub(r"`[^`]*`", "", phrase["zh"]))
    assert half_width is None, "Chinese takes full-width punctuation"


def test_chinese_keeps_a_space_beside_latin() -> None:
    chinese = wording("zh")
    assert chinese.together(["13 种风格", "1 名角色", "`flat color`"]) == "13 种风格、1 名角色和 `flat color`"
    assert wording("en").together(["a", "b", "c"]) == "a, b and c"
    assert chinese.pick(Text(en="only English")) == "only English"


@given(st.dictionaries(st.sampled_from(SD1_BLOCKS), st.sampled_from([0.0, 0.25, 0.3, 1.0]), max_size=26))
def test_blocks_in_words_mean_the_same_blocks(shares: dict[str, float]) -> None:
    weights: dict[str, float | list[float]] = {}
    for part in filter(None, block_text(shares).split(", ")):
        blocks, _, share = part.partition(" × ")
        weights[blocks] = float(share or 1)
    assert expand(weights) == expand(dict(shares))


@given(st.lists(st.lists(st.text(max_size=10), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_cell_never_breaks_its_table(rows: list[list[str]]) -> None:
    lines = table(["a", "b", "c"], [["x", "y", "z"], *rows]).split("\n")
    assert len(lines) == 3 + len(rows)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines)
    assert not any(re.search(r"<\w", line) for line in lines)


def test_a_shot_belongs_to_the_style_that_it_or_its_prompt_alone_names() -> None:
    prompts = ("by a, smile", "best, (by a:1.2), smile", "by a, by b", "by ab", "[BY B]")
    named = Shot(prompt="by a", style="b")
    samples = [Sample(Path(str(n)), Shot(prompt=prompt)) for n, prompt in enumerate(prompts)]
    groups = group_samples([*samples, Sample(Path("named"), named)], {"c": "by c", "a": "by a", "b": "by b"})
    files = {style: [str(one.file) for one in chosen] for style, chosen in groups.items()}
    assert files == {"a": ["0", "1"], "b": ["4", "named"]}


def test_a_style_finds_its_sheet_whatever_it_is_called(tmp_path: Path) -> None:
    names = ("night owl", "夜", "Night-Owl", "all", "drawn by nobody")
    styles = tuple(Style(name=name, trigger=f"by {name}", since="v1", versions=("v1",)) for name in names)
    Catalogue(title="c", versions=(Version(name="v1"),), styles=styles).write(tmp_path / CATALOGUE_FILE)
    (tmp_path / MODEL_FILE).touch()
    groups = {}
    for grey, name in enumerate(names[:-1]):
        file = tmp_path / f"{grey}.png"
        Image.new("L", (16, 16), grey * 50).save(file)
        groups[name] = [Sample(file, Shot(prompt=f"by {name}", seed=0))]
    drawn = draw_sheets(groups, sheet_files(names), tmp_path, 1, 16)
    opened = Release(tmp_path)
    for grey, name in enumerate(names[:-1]):
        sheet = opened.sheet(name)
        assert sheet == tmp_path / drawn.by_style[name] and sheet.name.isascii()
        with Image.open(sheet) as picture:
            assert picture.convert("L").getpixel((8, 8)) == grey * 50
    assert opened.sheet("drawn by nobody") is None and opened.sheet("../all") is None


def lineage_of_run(verb: str, inputs: dict[str, Node]) -> Lineage:
    node = Node(
        verb=verb,
        settings={},
        inputs={name: Source(sha256="ab" * 32, key=parent.key()) for name, parent in inputs.items()},
    )
    return Lineage(key=node.key(), nodes={one.key(): one for one in (node, *inputs.values())})


def test_a_weighted_merge_is_told_from_its_settings_alone() -> None:
    models = {f"models.{name}": Source(sha256=name * 32) for name in ("ab", "cd")}
    settings = {"preset": "", "primary": "ab", "steps": [], "weights": {"cd": {"IN00-05": 0.3, "M00": 1.0}}}
    merged = Node(verb="merge", settings=settings, inputs=models)
    (step,) = making_of(lineage_of_run("release", {"checkpoint": merged}), "sd1")
    assert step.shares is not None
    assert block_text(step.shares["cd"]) == "IN00-IN05 × 0.3, M00"
    assert block_text(step.shares["ab"]) == "BASE, IN00-IN05 × 0.7, IN06-IN11, OUT00-OUT11"
    assert step.sources["models.cd"] == "cdcdcdcdcd"


def test_only_what_made_the_weights_is_told_of_their_making() -> None:
    def ran(verb: str, number: int, **inputs: Node) -> Node:
        sources = {
            name.replace("_", "."): Source(sha256="ab" * 32, key=one.key()) for name, one in inputs.items()
        }
        nodes.append(Node(verb=verb, settings={"number": number}, inputs=sources))
        return nodes[-1]

    nodes: list[Node] = []
    first = ran("train finetune", 1)
    old = ran("release", 2, checkpoint=first, embeddings_0=ran("train embedding", 3, checkpoint=first))
    drew = ran("generate", 4, checkpoint=ran("train finetune", 5))
    style = ran("train finetune", 6, checkpoint=old, dataset=ran("prepare", 7, pictures_fan=drew))
    bad = ran("prepare", 8, pictures_bad=ran("generate", 9, checkpoint=style))
    new = ran("train embedding", 10, checkpoint=style, pictures=bad)
    merged = ran("merge", 11, models_style=style, loras_x=ran("merge extract", 12, tuned=style, origin=first))
    node = ran("release", 13, checkpoint=merged, embeddings_0=new)
    lineage = Lineage(key=node.key(), nodes={one.key(): one for one in nodes})
    assert [step.settings["number"] for step in making_of(lineage, "sd1")] == [1, 6, 11]
    assert [step.settings["number"] for step in embedding_steps(lineage, "sd1")] == [10]
    assert drew_for_embeddings(lineage)


def test_blocks_of_an_sdxl_merge_end_at_08() -> None:
    models = {f"models.{name}": Source(sha256=name * 32) for name in ("ab", "cd")}
    settings = {"primary": "ab", "weights": {"cd": {"IN00-05": 1.0}}}
    merged = Node(verb="merge", settings=settings, inputs=models)
    (step,) = making_of(lineage_of_run("release", {"checkpoint": merged}), "sdxl")
    assert step.shares is not None
    assert block_text(step.shares["ab"]) == "BASE, IN06-IN08, M00, OUT00-OUT08"


def test_a_chain_is_told_by_its_steps(facts: Facts) -> None:
    chain = [
        {"name": "x", "mode": "ties", "models": ["ab", "cd", "ef"], "alpha": 0.5, "beta": 0.2, "seed": 0},
        {"name": "", "mode": "slerp", "models": ["x", "ab"], "alpha": {"IN": 0.25}, "freeze": ["M00"]},
    ]
    models = {f"models.{name}": Source(sha256=name * 32) for name in ("ab", "cd", "ef")}
    merged = Node(verb="merge", settings={"chain": chain, "weights": {}}, inputs=models)
    run = lineage_of_run("release", {"checkpoint": merged})
    steps = making_of(run, "sd1", json.dumps({"shares": {"ab": {"BASE": 1.0}}}))
    assert steps[0].shares is None, "no model has a share of what isn't a weighing"
    for language in ("en", "zh"):
        text = making(replace(facts, steps=steps), wording(language))
        assert "`x = ties(ab, cd, ef), alpha 0.5, beta 0.2`" in text
        assert '`slerp(x, ab), alpha {"IN": 0.25}, freeze ["M00"]`' in text


def test_a_lineage_that_bites_its_own_tail_ends() -> None:
    looped = Node(verb="merge", settings={}, inputs={"models.a": Source(sha256="0", key="loop")})
    release = Node(verb="release", settings={}, inputs={"checkpoint": Source(sha256="0", key="loop")})
    lineage = Lineage(key="top", nodes={"top": release, "loop": looped})
    assert [step.verb for step in making_of(lineage, "sd1")] == ["merge"]


def test_a_full_size_models_card_tells_how_to_use_it(facts: Facts) -> None:
    text = use(facts, wording("en"))
    assert (
        "`models/Stable-diffusion/aid-v1.safetensors` and the files of `embeddings/` to `embeddings/`" in text
    )
    assert "guidance_scale=7, width=512, height=768" in text
    words = shlex.split(re.search(r"```sh\n(.*?)\n```", text)[1])  # type: ignore[index]
    assert words[:5] == ["aid", "generate", 'by it\'s | "me"', "--checkpoint", "."]
    assert words[5:] == ["--embeddings", "embeddings", "--negative-prompt", "aidbad", "--height", "768"]


def test_a_card_holds_no_html_of_the_pictures_makers(facts: Facts) -> None:
    assert "<script" not in write_card(facts, "en") and '`by it\'s \\| "me"`' in write_card(facts, "en")
    assert "| `model.safetensors` | 2.13 GB |" in write_card(facts, "zh")
    assert 'license: "other"\nlicense_name: "Fair-AI-Public-1.0"' in hub_page(facts)


def test_pictures_without_a_licence_are_told_beside_those_with_one(facts: Facts) -> None:
    (bare,) = facts.records
    given = bare.model_copy(update={"source": "t", "licence": "CC0-1.0"})
    records = [bare, bare.model_copy(update={"width": 1024}), given]
    catalogue = list_release(facts.settings, records, None, None)
    card = write_card(replace(facts, records=records, catalogue=catalogue), "en")
    assert "| CC0-1.0; not given for 1 of the pictures | " in card
    assert "| not given | " in write_card(facts, "en")


def test_a_full_size_model_calls_itself_stable_diffusion(facts: Facts) -> None:
    metadata = describe_model(
        facts.settings, facts.catalogue, facts.records, SD1, {}, {"aid.merge": "{}", "other": "x"}
    )
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.resolution"] == "512x768"
    assert metadata["modelspec.usage_hint"] == "Euler a, 32 steps, clip skip 1; negative prompt: aidbad"
    assert metadata["aid.merge"] == "{}" and "other" not in metadata and "modelspec.author" not in metadata
    assert metadata["sshs_model_hash"] == hash_tensors({})
