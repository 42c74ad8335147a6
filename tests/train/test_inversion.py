"""Textual inversion: only the vectors move, it continues bitwise, and both files load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interrupting import Interrupting

from aid.core.dataset import Dataset
from aid.core.lineage import embedded_lineage
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.embedding.file import load_embedding
from aid.sd.model.checkpoint import load_checkpoint
from aid.train.embedding import embedding, initial_vectors, plan_word
from aid.train.settings import EmbeddingInputs, EmbeddingSettings

QUICK = EmbeddingSettings(name="badtest", vectors=3, steps=5, batch_size=2, noise_draws=2, save_every=2)


@pytest.fixture(scope="module")
def inputs(lively_checkpoint: Path, dataset: Path) -> EmbeddingInputs:
    return EmbeddingInputs(checkpoint=lively_checkpoint, pictures=dataset)


@pytest.fixture(scope="module")
def straight(inputs: EmbeddingInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding(QUICK, inputs, tmp_path_factory.mktemp("straight") / "out", Workbench(threads=1))


def test_both_files_hold_the_same_vectors_and_the_lineage(straight: Path) -> None:
    ours, a1111 = (load_embedding(straight / f"badtest{suffix}", 16) for suffix in (".safetensors", ".pt"))
    assert ours.vectors.shape == (3, 16) and torch.equal(ours.vectors, a1111.vectors)
    stored = torch.load(straight / "badtest.pt", weights_only=True)
    assert stored["name"] == "badtest" and stored["step"] == 5 and list(stored["string_to_param"]) == ["*"]
    made = embedded_lineage(straight / "badtest.safetensors")
    assert made is not None and made.node.verb == "train embedding"


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_is_bitwise(inputs: EmbeddingInputs, straight: Path, tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        embedding(QUICK, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(stop)))
    embedding(QUICK, inputs, tmp_path / "out", Workbench(threads=1))
    for path in straight.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_checkpointing_changes_memory_and_not_the_result_and_bf16_is_near(
    inputs: EmbeddingInputs, straight: Path, tmp_path: Path
) -> None:
    def trained(**change: Any) -> torch.Tensor:
        name = "-".join(map(str, change.values()))
        out = embedding(QUICK.model_copy(update=change), inputs, tmp_path / name, Workbench(threads=1))
        return load_embedding(out / "badtest.safetensors").vectors

    recomputed = load_embedding(straight / "badtest.safetensors").vectors
    torch.testing.assert_close(trained(checkpointing=False), recomputed, rtol=1e-4, atol=1e-6)
    halved = trained(precision="bf16")
    assert not torch.equal(halved, recomputed)
    start = initial_vectors(load_checkpoint(inputs.checkpoint), QUICK.initial_text, 3)
    assert (halved - recomputed).norm() < (recomputed - start).norm()


def test_vectors_start_as_words_and_stay_near_them(lively_checkpoint: Path, straight: Path) -> None:
    model = load_checkpoint(lively_checkpoint)
    vectors = initial_vectors(model, "bad hands", 4)
    assert torch.equal(vectors[0], vectors[1]) and not torch.equal(vectors[1], vectors[2])
    with pytest.raises(SettingsError, match="initial_text is empty"):
        initial_vectors(model, "", 4)
    moved = load_embedding(straight / "badtest.safetensors").vectors
    assert not torch.equal(moved, initial_vectors(model, QUICK.initial_text, 3))
    words = model.text_encoder.get_input_embeddings().weight.norm(dim=1).median()
    assert (moved.norm(dim=1) <= QUICK.norm_limit * words * 1.001).all()


def test_rates_in_steps_are_followed_and_tags_vary(
    inputs: EmbeddingInputs, straight: Path, tmp_path: Path
) -> None:
    change = {
        "rates": "0.004:2, 1e-3:4, 0.002",
        "shuffle": True,
        "tag_dropout": 0.5,
        "templates": ("{name}, {tags}",),
    }
    settings = QUICK.model_copy(update=change)
    out = embedding(settings, inputs, tmp_path / "out", Workbench(threads=1))
    told = [json.loads(line)["rate"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert told == [0.004, 0.004, 0.001, 0.001, 0.002]
    plan = plan_word(Dataset(inputs.pictures), settings, 1.0)
    captions = [plan.write(plan.order.batch(index), index) for index in range(40)]
    tags = [tuple(one.split(", ")[1:]) for step in captions for one in step]
    assert {len(one) for one in tags} == {0, 1, 2}
    assert {one for one in tags if len(one) == 2} >= {("red hair", "smile"), ("smile", "red hair")}


def test_regularisation_pictures_teach_no_word(inputs: EmbeddingInputs) -> None:
    dataset = Dataset(inputs.pictures)
    assert any(record.regularisation for record in dataset.split("train"))
    order = plan_word(dataset, QUICK, 1.0).order
    assert not any(record.regularisation for step in range(20) for record in order.batch(step))
