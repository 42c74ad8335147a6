"""Models stay loaded between requests: what changed is read anew, what is too much is let go, and pictures
are the same as of a model just loaded."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from aid.core.workbench import Workbench
from aid.errors import FileError
from aid.generate.run import choose_shots, one_off
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.adapter.file import save_adapter
from aid.sd.drawing.pipeline import draw_batch
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint
from aid.studio.warm import Warm, weight_bytes

SETTINGS = GenerateSettings(prompt="a (smile:1.2), bad", steps=3, width=32, height=32, seed=4)
BENCH = Workbench(threads=1)


def pixels(warm: Warm, inputs: GenerateInputs) -> bytes:
    material = warm.material(SETTINGS, inputs)
    with material.texts() as texts:
        (picture,) = draw_batch(material.model, choose_shots(SETTINGS, inputs, material), texts)
    return picture.tobytes()


def fresh(inputs: GenerateInputs) -> bytes:
    return pixels(Warm(0, BENCH), inputs)


def test_the_same_model_is_loaded_once_and_draws_as_if_just_loaded(
    lively_checkpoint: Path, tmp_path: Path
) -> None:
    from PIL import Image

    warm, inputs = Warm(1e9, BENCH), GenerateInputs(checkpoint=lively_checkpoint)
    first = warm.material(SETTINGS, inputs)
    pixels(warm, inputs)
    assert warm.material(SETTINGS, inputs).model is first.model
    (file,) = one_off(SETTINGS, inputs, tmp_path, BENCH)
    assert Image.open(file).convert("RGB").tobytes() == pixels(warm, inputs)


def test_another_vae_leaves_the_rest_loaded(lively_checkpoint: Path, other_vae: Path) -> None:
    warm = Warm(1e9, BENCH)
    own, other = (GenerateInputs(checkpoint=lively_checkpoint, vae=vae) for vae in (None, other_vae))
    before = warm.material(SETTINGS, own)
    after = warm.material(SETTINGS, other)
    assert after.model.unet is before.model.unet and after.model.vae is not before.model.vae
    assert (after.weights.vae, before.weights.vae) == (other_vae.name, "")
    assert pixels(warm, other) == fresh(other) != fresh(own)
    assert pixels(warm, own) == fresh(own)
    assert len(warm.names()) == 1


def test_a_new_embedding_is_noticed_and_the_model_stays(lively_checkpoint: Path, tmp_path: Path) -> None:
    warm, inputs = Warm(1e9, BENCH), GenerateInputs(checkpoint=lively_checkpoint, embeddings=(tmp_path,))
    save_embedding(Embedding("other", torch.ones((1, TINY.text_width))), tmp_path, {})
    for seed in (1, 2):  # a word that is none yet, a new embedding, another one of that name
        before = warm.material(SETTINGS, inputs)
        old = pixels(warm, inputs)
        vectors = torch.randn((2, TINY.text_width), generator=torch.Generator().manual_seed(seed))
        save_embedding(Embedding("bad", 9 * vectors), tmp_path, {})
        after = warm.material(SETTINGS, inputs)
        assert after.model.unet is before.model.unet
        assert torch.equal(after.embeddings["bad"].vectors, 9 * vectors)
        assert pixels(warm, inputs) == fresh(inputs) != old


def test_a_vae_that_has_vanished_is_told(lively_checkpoint: Path, other_vae: Path, tmp_path: Path) -> None:
    vae = Path(shutil.copy(other_vae, tmp_path / "vae.safetensors"))
    warm = Warm(1e9, BENCH)
    pixels(warm, GenerateInputs(checkpoint=lively_checkpoint))
    vae.unlink()
    with pytest.raises(FileError, match=r"vae\.safetensors does not exist"):
        warm.material(SETTINGS, GenerateInputs(checkpoint=lively_checkpoint, vae=vae))


def test_what_cannot_be_read_leaves_the_model_loaded(lively_checkpoint: Path, tmp_path: Path) -> None:
    warm, broken = Warm(1e9, BENCH), tmp_path / "bad.safetensors"
    before = warm.material(SETTINGS, GenerateInputs(checkpoint=lively_checkpoint)).model
    broken.write_bytes(b"nothing")
    with pytest.raises(FileError):
        warm.material(SETTINGS, GenerateInputs(checkpoint=lively_checkpoint, embeddings=(broken,)))
    assert warm.material(SETTINGS, GenerateInputs(checkpoint=lively_checkpoint)).model is before


def test_another_model_under_the_same_name_is_read_anew(
    lively_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    warm, inputs = Warm(1e9, BENCH), GenerateInputs(checkpoint=file)
    shutil.copy(tiny_checkpoint, file)
    before = warm.material(SETTINGS, inputs)
    shutil.copy(lively_checkpoint, file)
    after = warm.material(SETTINGS, inputs)
    assert after.weights.model_hash != before.weights.model_hash
    assert after.model.unet is not before.model.unet


@pytest.mark.parametrize("room", [1.5, 2.5])
def test_as_many_stay_as_there_is_room_for(tmp_path: Path, room: float) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for seed, file in enumerate(files):
        save_checkpoint(create_checkpoint(TINY, seed), file, {})
    size = weight_bytes(files[0], torch.float32)
    warm = Warm(room * size, BENCH)
    alive = []
    for file in (*files, files[1]):
        pixels(warm, GenerateInputs(checkpoint=file))
        alive.append(weakref.ref(warm.material(SETTINGS, GenerateInputs(checkpoint=file)).model.unet))
    gc.collect()
    stayed = [reference() is not None for reference in alive]
    assert warm.names() == (["b"] if room < 2 else ["c", "b"])
    assert stayed == ([False, False, False, True] if room < 2 else [False, True, True, True])
    warm.forget()
    gc.collect()
    assert not warm.names() and not any(reference() for reference in alive)


def test_adapters_are_let_go_before_models(lively_checkpoint: Path, tmp_path: Path) -> None:
    for name in "ab":
        tensors = {
            "up_down.lora_down.weight": torch.ones((2, 8)),
            "up_down.lora_up.weight": torch.ones((8, 2)),
        }
        save_adapter(tmp_path / f"{name}.safetensors", tensors, {})
    inputs = GenerateInputs(checkpoint=lively_checkpoint, loras=(tmp_path,))
    size = weight_bytes(lively_checkpoint, torch.float32)
    for room, stays in ((1e6, True), (0, False)):
        warm = Warm(size + room, BENCH)
        material = warm.material(SETTINGS, inputs)
        assert material.adapters
        before = material.adapters.load("a")
        again = warm.material(SETTINGS, inputs)
        assert again.model is material.model and again.adapters
        assert (again.adapters.load("a") is before) == stays


def test_the_size_of_a_model_is_told_by_its_header(lively_checkpoint: Path) -> None:
    material = Warm(1e9, BENCH).material(SETTINGS, GenerateInputs(checkpoint=lively_checkpoint))
    held = sum(p.nbytes for module in material.model.modules() for p in module.parameters())
    assert weight_bytes(lively_checkpoint, torch.float32) == pytest.approx(held, rel=0.01)
