"""What a file is, told from its keys, markers, metadata, and the file beside it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from aid.errors import ModelError
from aid.sd.model.architecture import SD1, SD2, SD2_BASE, SDXL, Architecture
from aid.sd.model.checkpoint import _assemble
from aid.sd.model.detection import SD2_BIAS, detect
from aid.sd.model.layouts import PLACES, modern_key
from aid.sd.model.metadata import architecture_name
from aid.sd.model.sibling import sibling_prediction


def real_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Of a released file, without its values."""
    with torch.device("meta"):
        model = _assemble(architecture)
    shapes = {}
    for part, module in model.parts().items():
        for key, tensor in module.state_dict().items():
            place = PLACES[part](key, architecture.family)
            shapes[place.key] = place.shape(tuple(tensor.shape))
    return shapes


@pytest.fixture(scope="module")
def shapes() -> dict[str, Mapping[str, tuple[int, ...]]]:
    return {one.family: real_shapes(one) for one in (SD1, SD2, SDXL)}


def v(architecture: Architecture, zero: bool = False) -> Architecture:
    return architecture.model_copy(update={"prediction": "v", "zero_terminal_snr": zero})


@pytest.mark.parametrize(
    ("family", "markers", "metadata", "expected"),
    [
        ("sd1", {}, {}, SD1),
        ("sdxl", {}, {}, SDXL),
        ("sdxl", {"v_pred": (0,)}, {}, v(SDXL)),
        ("sdxl", {"v_pred": (0,), "ztsnr": (0,)}, {}, v(SDXL, zero=True)),
        ("sdxl", {}, {"modelspec.prediction_type": "v"}, v(SDXL)),
        ("sd1", {}, {"modelspec.prediction_type": "epsilon"}, SD1),
        ("sd2", {}, {}, SD2),
        ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, SD2_BASE),
        ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, SD2_BASE),
        ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, SD2),
        ("sd2", {}, {"ss_base_model_version": "sd_v2_v"}, SD2),
        ("sd2", {}, {"ss_zero_terminal_snr": "True"}, v(SD2, zero=True)),
    ],
)
def test_families_and_predictions(
    family: str,
    markers: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
    expected: Architecture,
    shapes: dict[str, Mapping[str, tuple[int, ...]]],
) -> None:
    assert detect({**shapes[family], **markers}, metadata, "x") == expected


def test_sd2_without_a_marker_is_told_by_the_spread_of_one_bias(
    shapes: dict[str, Mapping[str, tuple[int, ...]]],
) -> None:
    assert SD2_BIAS in shapes["sd2"]
    for spread, expected in ((0.2, SD2), (0.05, SD2_BASE)):
        values = torch.tensor([-spread, spread] * 160)
        assert detect(shapes["sd2"], {}, "x", {SD2_BIAS: values}.__getitem__) == expected
    told = detect(shapes["sd2"], {"modelspec.prediction_type": "v"}, "x", prediction="epsilon")
    assert told == SD2_BASE, "the caller has the last word"
    assert detect(shapes["sdxl"], {}, "x", prediction="v") == v(SDXL)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
        ("model.diffusion_model.x_embedder.proj.weight", "SD3"),
        ("edm_mean", "an EDM model"),
    ],
)
def test_other_families_are_named(
    key: str, named: str, shapes: dict[str, Mapping[str, tuple[int, ...]]]
) -> None:
    with pytest.raises(ModelError, match=f"x is {named}"):
        detect({**shapes["sd1"], key: (1,)}, {}, "x")


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scaled_weights_are_not_taken_for_plain_ones(
    scale: str, shapes: dict[str, Mapping[str, tuple[int, ...]]]
) -> None:
    key = f"model.diffusion_model.out.2.{scale}"
    with pytest.raises(ModelError, match=rf"x holds scaled weights \({key}\); expected .*plain fp8"):
        detect({**shapes["sdxl"], key: ()}, {}, "x")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_inpainting_models(family: str, shapes: dict[str, Mapping[str, tuple[int, ...]]]) -> None:
    conv = "model.diffusion_model.input_blocks.0.0.weight"
    found = detect({**shapes[family], conv: (320, 9, 3, 3)}, {}, "x")
    assert (found.family, found.unet_inputs, found.prediction) == (family, 9, "epsilon")
    assert architecture_name(found).endswith("-inpainting") and not detect(shapes[family], {}, "x").inpaints


def test_what_is_no_whole_checkpoint_is_named(shapes: dict[str, Mapping[str, tuple[int, ...]]]) -> None:
    conv = "model.diffusion_model.input_blocks.0.0.weight"
    with pytest.raises(ModelError, match="takes 8 input channels; expected 4, or an inpainting model's 9"):
        detect({**shapes["sdxl"], conv: (320, 8, 3, 3)}, {}, "x")
    only_unet = {key: shape for key, shape in shapes["sd1"].items() if key.startswith("model.")}
    with pytest.raises(ModelError, match="has no cond_stage_model"):
        detect(only_unet, {}, "x")
    with pytest.raises(ModelError, match="is SDXL, and its metadata calls it SD1"):
        detect(shapes["sdxl"], {"aid.architecture": SD1.model_dump_json()}, "x")
    deeper = {**shapes["sdxl"], "conditioner.embedders.1.model.transformer.resblocks.32.ln_1.weight": (1280,)}
    with pytest.raises(ModelError, match="more text encoder layers than 32"):
        detect(deeper, {}, "x")


def test_naifu_names(shapes: dict[str, Mapping[str, tuple[int, ...]]]) -> None:
    old = {key.replace("transformer.text_model.", "transformer."): one for key, one in shapes["sd1"].items()}
    assert {modern_key(key) for key in old} == set(shapes["sd1"])
    assert {modern_key(key) for key in shapes["sdxl"]} == set(shapes["sdxl"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('model:\n  params:\n    parameterization: "v"\n', "v"),
        ("    parameterization: 'eps'", "epsilon"),
        ("# parameterization: v", None),
        ("\x00\xff", None),
    ],
)
def test_the_yaml_beside_a_file(text: str, expected: str | None, tmp_path) -> None:
    (tmp_path / "model.yaml").write_text(text)
    assert sibling_prediction(tmp_path / "model.ckpt") == expected
    assert sibling_prediction(tmp_path / "other.ckpt") is None
