"""A release as people meet it: a folder to upload, a model to load, a card to read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aid.core.artifact import SCRATCH
from aid.core.catalogue import Catalogue
from aid.core.lineage import lineage_of
from aid.core.release import Release
from aid.core.report import Report
from aid.errors import ArtifactError, FileError, ModelError, PictureError, SettingsError
from aid.release.run import release
from aid.release.settings import ReleaseInputs, ReleaseSettings
from aid.sd.embedding.file import Embedding, load_embedding, save_embedding
from aid.sd.model.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def folder(
    settings: ReleaseSettings, inputs: ReleaseInputs, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return release(settings, inputs, tmp_path_factory.mktemp("release") / "tiny-v1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_is_uploaded_and_nothing_else(folder: Path) -> None:
    assert sorted(contents(folder)) == [
        "README.md", "card.md", "card.zh.md", "catalogue.toml",
        "embeddings/tinybad.pt", "embeddings/tinybad.safetensors",
        "lineage.json", "model.safetensors", "report.json",
        "samples/all.png", "samples/alpha.png", "samples/beta.png",
    ]  # fmt: skip
    assert not (folder / SCRATCH).exists()


def test_the_model_is_the_checkpoint_and_tells_its_own_hashes(folder: Path, inputs: ReleaseInputs) -> None:
    released, merged = (
        load_file(folder / "model.safetensors"),
        load_file(inputs.checkpoint / "model.safetensors"),
    )
    assert released.keys() == merged.keys() and len(released) == 1131
    assert all(torch.equal(released[key], merged[key]) for key in merged)
    with safe_open(folder / "model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    raw = (folder / "model.safetensors").read_bytes()
    data = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{data}" and metadata["sshs_model_hash"] == data
    card = (folder / "card.md").read_text()
    assert hashlib.sha256(raw).hexdigest() in card and f"`{data[:12]}` (AutoV3)" in card
    assert metadata["modelspec.title"] == "Tiny v1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/narrow"
    assert metadata["modelspec.trigger_phrase"].startswith("by alpha, by beta")
    assert metadata["modelspec.resolution"] == "64x64"
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    shares = json.loads(metadata["aid.merge"])["shares"]
    assert shares["detail"] == {f"IN{block:02d}": 1.0 for block in range(6)}


def test_aid_opens_the_release_as_a_checkpoint(folder: Path, tiny_checkpoint: Path) -> None:
    assert load_checkpoint(folder).architecture == load_checkpoint(tiny_checkpoint).architecture
    opened = Release(folder)
    assert opened.embeddings == {"tinybad": folder / "embeddings" / "tinybad.safetensors"}
    assert opened.report is not None and opened.report.pictures == 200
    assert opened.card("zh").startswith("# Tiny v1\n")
    with pytest.raises(ArtifactError, match=r"has no model\.safetensors"):
        Release(folder / "samples")


def test_every_file_tells_its_ancestry_back_to_the_pictures(folder: Path, inputs: ReleaseInputs) -> None:
    for name in ("model.safetensors", "card.md", "samples/all.png"):
        verbs = [node.verb for _, _, node, _ in lineage_of(folder / name).walk()]
        assert verbs[0] == "release"
        assert {"merge", "train finetune", "train embedding", "prepare", "pictures"} <= set(verbs)
    own = [node.verb for _, _, node, _ in lineage_of(folder / "embeddings/tinybad.safetensors").walk()]
    assert own[0] == "train embedding"


def test_embeddings_are_copied_whole_and_made_in_the_missing_format(
    folder: Path, settings: ReleaseSettings, inputs: ReleaseInputs, tmp_path: Path
) -> None:
    trained = inputs.embeddings[0]
    for name in ("tinybad.pt", "tinybad.safetensors"):
        assert (folder / "embeddings" / name).read_bytes() == (trained / name).read_bytes()
    lone = shutil.copy(trained / "tinybad.pt", tmp_path / "tinybad.pt")
    again = release(settings, inputs.model_copy(update={"embeddings": [Path(lone)]}), tmp_path / "out")
    ours, theirs = (load_embedding(one / "embeddings/tinybad.safetensors") for one in (again, folder))
    assert torch.equal(ours.vectors, theirs.vectors)
    assert (again / "embeddings/tinybad.pt").read_bytes() == (trained / "tinybad.pt").read_bytes()


def test_the_same_run_gives_the_same_bytes_and_is_not_repeated(
    folder: Path, settings: ReleaseSettings, inputs: ReleaseInputs, tmp_path: Path
) -> None:
    before = contents(folder)
    assert contents(release(settings, inputs, tmp_path / "elsewhere")) == before
    stamp = (folder / "card.md").stat().st_mtime_ns
    release(settings, inputs, folder)
    assert (folder / "card.md").stat().st_mtime_ns == stamp
    (folder / "card.md").unlink()
    release(settings, inputs, folder)
    assert contents(folder) == before


def test_sheets_show_each_style_and_one_page_shows_all(folder: Path) -> None:
    sizes = {name: Image.open(folder / "samples" / f"{name}.png").size for name in ("alpha", "beta", "all")}
    assert sizes["alpha"] == sizes["beta"] == (4 * 64 + 3 * 4, 2 * 64 + 4)  # five pictures in rows of four
    assert sizes["all"][0] == 2 * 64 + 4 and sizes["all"][1] > 64  # captions below


def test_the_card_tells_what_the_artifacts_tell(folder: Path) -> None:
    english, chinese = ((folder / name).read_text() for name in ("card.md", "card.zh.md"))
    for card in (english, chinese):
        assert "| `by alpha` | v1 | flat color | 6 | 90.0 % (82.6–94.5) | 99.0 % (94.6–99.8) |" in card
        assert "| alpha | CC0-1.0 | Ada \\| A. |" in card and "| beta | CC-BY-4.0 | Béatrice |" in card
        assert "```\nbest quality, {trigger}, {tags}\n```" in card and "```\ntinybad, {tags}\n```" in card
        assert "](samples/all.png)" in card and "](samples/beta.png)" in card
        told = re.sub(r"<details>.*?</details>\n\n", "", card, flags=re.DOTALL)
        assert not re.search(r"\{(?!trigger|tags)|None|\}\}|\n\n\n", told)
    assert "- `style` is a full fine-tuning of tiny.safetensors [" in english
    assert "; 2 steps; batches of 2; learning rate 0.0001 for the U-Net" in english
    assert "; 50% of every batch regularisation pictures." in english
    assert "- `style` gives BASE, OUT00-OUT11." in english
    assert "- `detail` (tiny.safetensors [" in english
    assert "gives IN06-IN11, M00." in english
    assert "It was trained on bad pictures that the model itself drew" in english
    assert "- `tinybad`: textual inversion, 4 vectors; starting from “bad”; 2 steps" in english
    assert "- Do no harm." in english and "- 请勿作恶。" in chinese
    assert "aid generate 'best quality, by alpha' --checkpoint . --embeddings embeddings" in english
    assert "--negative-prompt tinybad\n" in english
    assert "AID draws with it; tools made for full-size models cannot open it." in english


def test_the_hub_page_is_the_card_behind_valid_front_matter(folder: Path) -> None:
    front, card = re.fullmatch(
        r"---\n(.*?)\n---\n\n(.*)", (folder / "README.md").read_text(), re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert card == (folder / "card.md").read_text()
    fields = yaml.safe_load(front)
    assert fields["license"] == "cc-by-4.0" and fields["pipeline_tag"] == "text-to-image"
    assert fields["language"] == ["en", "zh"] and "multi-style" in fields["tags"]


def test_links_in_the_card_lead_to_files_of_the_release(folder: Path) -> None:
    for name in ("card.md", "card.zh.md", "README.md"):
        links = re.findall(r"\]\(([^)]+)\)", (folder / name).read_text())
        assert links and all((folder / link).is_file() for link in links)


def test_a_second_version_keeps_what_the_first_knew(
    folder: Path, settings: ReleaseSettings, inputs: ReleaseInputs, worse: Report, tmp_path: Path
) -> None:
    (tmp_path / "worse").mkdir()
    (tmp_path / "worse" / "report.json").write_text(worse.model_dump_json())
    first = Catalogue.read(folder / "catalogue.toml")
    lost = first.styles[0].model_copy(update={"name": "gamma", "trigger": "by gamma", "category": ""})
    renamed = first.styles[0].model_copy(update={"name": "alfa", "trigger": "by alfa"})
    styles = (renamed, lost, first.styles[1])
    first.model_copy(update={"styles": styles}).write(tmp_path / "catalogue.toml")
    second = release(
        settings.model_copy(
            update={"version": "v2", "renames": {"alfa": "alpha"}, "characters": ("Ada", "Bo")}
        ),
        inputs.model_copy(
            update={
                "catalogue": tmp_path / "catalogue.toml",
                "previous_reports": {"v0": tmp_path / "worse", "v1": folder},
            }
        ),
        tmp_path / "v2",
    )
    catalogue = Catalogue.read(second / "catalogue.toml")
    assert {style.name: style.versions for style in catalogue.styles} == {
        "alpha": ("v1", "v2"), "beta": ("v1", "v2"), "gamma": ("v1",),
    }  # fmt: skip
    assert catalogue.search("alfa")[0].entry.name == "alpha"
    assert catalogue.triggers("v1")[:2] == ("by alfa", "by beta") and catalogue.dropped("v2") == ("by gamma",)
    card = (second / "card.md").read_text()
    assert "New in v2: `Bo`." in card and "No longer listed in v2: `by gamma`." in card
    assert "`by alfa` is called `by alpha` since v2." in card
    assert "- Recognised more surely than in v0: `by alpha`, `by beta`." in card
    assert "than in v1" not in card
    assert "| Measure | v2 | Ceiling | v0 | v1 |" in card
    assert (
        "| style | 90.0 % (85.1–93.4) | 99.0 % (96.4–99.7) | 40.0 % (33.5–46.9) | 90.0 % (85.1–93.4) |"
        in card
    )


def test_a_bare_checkpoint_and_dataset_are_enough(
    inputs: ReleaseInputs, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bare = ReleaseInputs(checkpoint=tiny_checkpoint, dataset=inputs.dataset)
    out = release(ReleaseSettings(precision="fp32"), bare, tmp_path / "bare")
    assert sorted(contents(out)) == [
        "README.md", "card.md", "card.zh.md", "catalogue.toml", "lineage.json", "model.safetensors",
    ]  # fmt: skip
    assert load_file(out / "model.safetensors")["model.diffusion_model.out.2.bias"].dtype == torch.float32
    card = (out / "card.md").read_text()
    assert "This version has not been measured." in card and "The model is not a merge." in card
    assert "shows no training by AID" in card and "](samples/" not in card and "Negative prompt" not in card
    assert "Recognised" not in card and "| `by alpha` | v1.0 | 6 |" in card


def refused(settings: ReleaseSettings, inputs: ReleaseInputs, out: Path, **changes: object) -> None:
    release(settings, inputs.model_copy(update=changes), out)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": "v1"}, "version v1 is already in the previous catalogue"),
        ({"renames": {"old": "alpa"}}, "renames names alpa.*Did you mean alpha"),
        ({"renames": {"alfa": "alpha"}}, "renames names alfa.*Did you mean alpha"),
        ({"categories": {"impasto": ("betta",)}}, "categories names betta.*Did you mean beta"),
        ({"characters": ("flat color",)}, "trigger flat color is listed twice"),
    ],
)
def test_settings_that_contradict_the_artifacts_are_refused(
    folder: Path,
    settings: ReleaseSettings,
    inputs: ReleaseInputs,
    tmp_path: Path,
    changes: dict[str, object],
    complaint: str,
) -> None:
    changed = settings.model_copy(update={"version": "v2", **changes})
    with pytest.raises(SettingsError, match=complaint):
        refused(changed, inputs, tmp_path / "out", catalogue=folder / "catalogue.toml")
    assert list(tmp_path.iterdir()) == []


def test_an_embedding_of_another_family_or_name_is_refused(
    settings: ReleaseSettings, inputs: ReleaseInputs, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    save_embedding(Embedding("wide", torch.zeros(2, 768)), wide, {})
    with pytest.raises(ModelError, match="768 wide; expected 16"):
        refused(settings, inputs, tmp_path / "out", embeddings=[wide])
    with pytest.raises(SettingsError, match="two embeddings are called tinybad"):
        refused(settings, inputs, tmp_path / "out", embeddings=[inputs.embeddings[0]] * 2)
    with pytest.raises(FileError, match="holds no embedding"):
        refused(settings, inputs, tmp_path / "out", embeddings=[inputs.dataset])
    named = settings.parameters.model_copy(update={"negative_embedding": "tinybat"})
    with pytest.raises(SettingsError, match=r"tinybat, which is not released.*Did you mean tinybad"):
        refused(settings.model_copy(update={"parameters": named}), inputs, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


@pytest.mark.parametrize(
    ("file", "content", "error", "complaint"),
    [
        (
            "gallery/shots.jsonl",
            b'{"file": "../secret.png", "shot": {"prompt": "by alpha"}}',
            ArtifactError,
            "not in the gallery",
        ),
        (
            "gallery/shots.jsonl",
            b'{"file": "/etc/passwd", "shot": {"prompt": "by alpha"}}',
            ArtifactError,
            "not in the gallery",
        ),
        ("gallery/shots.jsonl", b"[]", ArtifactError, "should be an object"),
        (
            "gallery/shots.jsonl",
            b'{"file": "00000.png", "shot": {"seed": -1}}',
            ArtifactError,
            "shot.prompt Field required",
        ),
        ("gallery/00000-0.png", b"\x89PNG\r\n\x1a\n", PictureError, "00000-0.png could not be read"),
        ("report/report.json", b'{"title": 1}', ArtifactError, "is not a report"),
        ("dataset/records.jsonl", b"{}", ArtifactError, "is not a dataset's records"),
    ],
)
def test_a_damaged_input_is_named_and_leaves_nothing_behind(
    settings: ReleaseSettings,
    inputs: ReleaseInputs,
    tmp_path: Path,
    file: str,
    content: bytes,
    error: type[Exception],
    complaint: str,
) -> None:
    name, inner = file.split("/")
    damaged = tmp_path / name
    shutil.copytree(getattr(inputs, name), damaged)
    before = hashlib.sha256((damaged / inner).read_bytes()).hexdigest()
    (damaged / inner).write_bytes(content)
    lineage = damaged / "lineage.json"  # which lists the damaged file, as whoever made it so might have it
    lineage.write_text(lineage.read_text().replace(before, hashlib.sha256(content).hexdigest()))
    with pytest.raises(error, match=complaint):
        refused(settings, inputs, tmp_path / "out", **{name: damaged})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_checkpoint_that_lacks_a_part_is_refused(
    settings: ReleaseSettings, inputs: ReleaseInputs, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    tensors = load_file(tiny_checkpoint)
    del tensors["model.diffusion_model.out.2.bias"]
    with safe_open(tiny_checkpoint, "pt") as opened:
        save_file(tensors, tmp_path / "broken.safetensors", opened.metadata())
    with pytest.raises(ModelError, match=r"lacks model\.diffusion_model\.out\.2\.bias"):
        refused(settings, inputs, tmp_path / "out", checkpoint=tmp_path / "broken.safetensors")


def test_a_day_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="date"):
        ReleaseSettings(date="2026-02-30")
