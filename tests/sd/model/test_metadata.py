"""ModelSpec's and kohya's metadata as typed values: read leniently, written as they are read."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from aid.sd.model.architecture import SD1, SD2, SD2_BASE, SDXL, TINY, TINY_SD2, TINY_SDXL
from aid.sd.model.metadata import ModelSpec, Training, architecture_name
from aid.sd.model.metadata_words import metadata_words

WORD = st.text("abc é", min_size=1, max_size=6).map(str.strip).filter(bool)
SPECS = st.builds(
    ModelSpec,
    title=WORD,
    resolution=st.none() | st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    tags=st.lists(WORD, max_size=3).map(tuple),
    merged_from=st.lists(WORD, max_size=3).map(tuple),
    hash_sha256=st.sampled_from(["", "ab" * 32]),
    prediction_type=st.sampled_from(["epsilon", "v", None]),
    timestep_range=st.none() | st.tuples(st.integers(0, 999), st.integers(0, 1000)),
    encoder_layer=st.none() | st.integers(1, 12),
    is_negative_embedding=st.none() | st.booleans(),
    rest=st.dictionaries(st.sampled_from(["x", "y"]), WORD, max_size=2),
)


@given(SPECS)
def test_modelspec_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.read({**spec.written(), "ss_seed": "1"}) == spec


@given(st.dictionaries(st.sampled_from([*ModelSpec.model_fields, "new"]), st.text(max_size=12)))
def test_any_modelspec_is_read(words: dict[str, str]) -> None:
    spec = ModelSpec.read({f"modelspec.{name}": text for name, text in words.items()})
    assert (spec is None) == (not words)


@given(st.dictionaries(st.sampled_from([*Training.model_fields, "new"]), st.text(max_size=12)))
def test_any_training_is_read(words: dict[str, str]) -> None:
    training = Training.read({f"ss_{name}": text for name, text in words.items()})
    assert (training is None) == (not words)


def test_modelspec_words_are_those_of_the_standard() -> None:
    spec = ModelSpec(
        architecture="stable-diffusion-v1",
        title="T",
        resolution=(512, 768),
        timestep_range=(0, 1000),
        tags=("anime", "art"),
        hash_sha256="00ff",
        is_negative_embedding=True,
    )
    assert spec.written() == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "T",
        "modelspec.resolution": "512x768",
        "modelspec.timestep_range": "0,1000",
        "modelspec.tags": "anime, art",
        "modelspec.hash_sha256": "0x00ff",
        "modelspec.is_negative_embedding": "true",
    }


def test_kohyas_words() -> None:
    stored = {
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_learning_rate": "0.0001",
        "ss_clip_skip": "None",
        "ss_v2": "False",
        "ss_tag_frequency": '{"1_aid": {"smile": 3}}',
        "ss_epoch": "not a number",
        "ss_unheard_of": "x",
        "modelspec.title": "other",
    }
    training = Training.read(stored)
    assert training is not None
    assert (training.network_dim, training.network_alpha, training.v2) == (8, 4.0, False)
    assert training.learning_rate == 1e-4 and training.clip_skip is None
    assert training.tag_frequency == {"1_aid": {"smile": 3}}
    assert training.rest == {"epoch": "not a number", "unheard_of": "x"} and training.epoch is None
    assert training.written() == {key: text for key, text in stored.items() if key.startswith("ss_")}
    assert Training.read({"modelspec.title": "x"}) is None


def test_architectures_names() -> None:
    real = {
        SD1: "stable-diffusion-v1",
        SD2_BASE: "stable-diffusion-v2-512",
        SD2: "stable-diffusion-v2-768-v",
        SDXL: "stable-diffusion-xl-v1-base",
        TINY: "stable-diffusion-v1/narrow",
        TINY_SDXL: "stable-diffusion-xl-v1-base/narrow",
        SDXL.model_copy(update={"prediction": "v"}): "stable-diffusion-xl-v1-base",
        TINY_SD2: "stable-diffusion-v2-768-v/narrow",
        TINY_SD2.model_copy(update={"prediction": "epsilon"}): "stable-diffusion-v2-512/narrow",
    }
    assert {one: architecture_name(one) for one in real} == real


def test_metadata_in_words() -> None:
    """As kohya's scripts write it."""
    told = metadata_words({
        "modelspec.title": "Ink", "modelspec.author": "A", "modelspec.resolution": "512x768",
        "ss_output_name": "ink", "ss_sd_model_name": "base.safetensors", "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora", "ss_network_dim": "32", "ss_network_alpha": "16.0",
        "ss_network_args": '{"conv_dim": "8"}', "ss_resolution": "(512, 512)", "ss_num_train_images": "40",
        "ss_num_reg_images": "0", "ss_num_epochs": "10", "ss_steps": "400", "ss_unet_lr": "0.0001",
        "ss_text_encoder_lr": "None", "ss_training_started_at": "1700000000.5",
        "ss_training_comment": "the first",
        "ss_tag_frequency": '{"10_a": {"1girl": 30, "smile ": 4}, "5_b": {"1girl": 5, "x": "?"}, "c": 3}',
    })  # fmt: skip
    assert told == {
        "title": "Ink", "author": "A", "resolution": "512x768", "trained as": "ink",
        "base model": "base.safetensors (sd_v1)",
        "network": "module networks.lora, rank 32, alpha 16, conv rank 8", "trained at": "(512, 512)",
        "trained on": "pictures 40", "training": "epochs 10, steps 400, unet rate 0.0001",
        "trained on the day": "2023-11-14", "comment": "the first",
        "most frequent tags": "1girl 35, smile 4",
    }  # fmt: skip
    many = {f"tag{count}": count for count in range(1, 13)}
    tags = metadata_words({"ss_tag_frequency": json.dumps({"a": many})})["most frequent tags"]
    assert tags.startswith("tag12 12, tag11 11") and tags.endswith("tag3 3 (of 12)")
    assert metadata_words({"other": "1"}) == {}


@given(
    st.dictionaries(st.sampled_from([*Training.model_fields]), st.text(max_size=12) | st.integers().map(str))
)
def test_any_metadata_is_put_into_words(words: dict[str, str]) -> None:
    told = metadata_words({f"ss_{name}": text for name, text in words.items()})
    assert all(isinstance(text, str) and text for text in told.values())
