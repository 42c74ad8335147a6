"""Merging, as a person meets it: models and weights in, one file out.

The peer is Merge Block Weighted's own procedure (two models at a time, 25 weights and a base alpha),
written here in numpy float64 from its description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aid.cli import main
from aid.core.lineage import embedded_lineage
from aid.errors import AidError, FileError, ModelError, SettingsError
from aid.merge.run import merge
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.model.checkpoint import load_checkpoint

POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"
Array = NDArray[np.float64]


@pytest.fixture(scope="session")
def trio(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three fp16 models of one architecture in which no two tensors are equal."""
    folder = tmp_path_factory.mktemp("trio")
    with safe_open(tiny_checkpoint, "pt") as file:
        metadata = {**file.metadata(), "modelspec.title": "A tiny model"}
    for seed, name in enumerate(("style", "detail", "composition")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: tensor
            if key == POSITION_IDS
            else (tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator)).half()
            for key, tensor in load_file(tiny_checkpoint).items()
        }
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    return {path.stem: path for path in folder.iterdir()}


def changed(path: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, out, metadata)
    return out


def result_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def mbw(
    a: dict[str, Array], b: dict[str, Array], base_alpha: float, weights: list[float]
) -> dict[str, Array]:
    """One run of the extension: 25 weights IN00-IN11, M00, OUT00-OUT11; 1 means B."""
    merged = dict(b) | dict(a)
    for key in a.keys() & b.keys():
        if "model" in key and key != POSITION_IDS:
            weight = base_alpha
            if "model.diffusion_model." in key:
                if found := re.search(r"\.input_blocks\.(\d+)\.", key):
                    weight = weights[int(found[1])]
                elif found := re.search(r"\.output_blocks\.(\d+)\.", key):
                    weight = weights[13 + int(found[1])]
                elif "middle_block" in key:
                    weight = weights[12]
                elif "time_embed" in key:
                    weight = weights[0]
                elif ".out." in key:
                    weight = weights[24]
            merged[key] = (1 - weight) * a[key] + weight * b[key]
    return merged


def two_steps(
    trio: dict[str, Path], first: list[float], second: list[float], alphas: tuple[float, float]
) -> dict[str, Array]:
    style, detail, composition = (
        {key: tensor.double().numpy() for key, tensor in load_file(trio[name]).items()}
        for name in ("style", "detail", "composition")
    )
    return mbw(mbw(style, detail, alphas[0], first), composition, alphas[1], second)


def ulps(tensor: torch.Tensor, exact: Array) -> float:
    """The largest error in units of fp16's last place."""
    spacing = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
    return float(np.max(np.abs(tensor.double().numpy() - exact) / spacing, initial=0.0))


def test_the_card_s_recipe_is_the_two_mbw_steps_bit_for_bit(trio: dict[str, Path], tmp_path: Path) -> None:
    out = merge(MergeSettings(preset="aid-v1"), MergeInputs(models=trio), tmp_path / "out")
    expected = two_steps(trio, [1.0] * 6 + [0.0] * 19, [0.0] * 6 + [1.0] * 7 + [0.0] * 12, (0.0, 0.0))
    result = result_of(out)
    assert result.keys() == expected.keys()
    for key, tensor in result.items():
        assert torch.equal(tensor.double(), torch.from_numpy(expected[key]).double()), key


def test_the_card_s_recipe_gives_each_part_to_whom_the_card_says(
    trio: dict[str, Path], tmp_path: Path
) -> None:
    out = merge(MergeSettings(preset="aid-v1"), MergeInputs(models=trio), tmp_path / "out")
    parents = {name: load_file(path) for name, path in trio.items()}
    givers = {
        "model.diffusion_model.time_embed.0.weight": "detail",
        FIRST_CONV: "detail",
        "model.diffusion_model.input_blocks.5.0.in_layers.2.weight": "detail",
        "model.diffusion_model.input_blocks.6.0.op.weight": "composition",
        "model.diffusion_model.middle_block.1.proj_in.weight": "composition",
        "model.diffusion_model.output_blocks.0.0.in_layers.2.weight": "style",
        "model.diffusion_model.out.2.weight": "style",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "style",
        "first_stage_model.decoder.conv_out.weight": "style",
    }
    result = result_of(out)
    for key, giver in givers.items():
        assert torch.equal(result[key], parents[giver][key]), key


def test_fractional_steps_are_within_an_ulp_of_float64(trio: dict[str, Path], tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    first, second = chance.random(25).round(3).tolist(), chance.random(25).round(3).tolist()
    weights = {
        name: {"BASE": alpha, "IN": row[:12], "M00": row[12], "OUT": row[13:]}
        for name, alpha, row in (("detail", 0.3, first), ("composition", 0.65, second))
    }
    settings = MergeSettings(primary="style", weights=weights, steps=("detail", "composition"))
    out = merge(settings, MergeInputs(models=trio), tmp_path / "out")
    expected = two_steps(trio, first, second, (0.3, 0.65))
    assert max(ulps(t, expected[key]) for key, t in result_of(out).items() if key != POSITION_IDS) <= 1.0


def test_shares_add_up_and_the_primary_takes_the_rest(trio: dict[str, Path], tmp_path: Path) -> None:
    settings = MergeSettings(
        primary="style", weights={"detail": {"IN": 0.25, "BASE": 0.5}, "composition": {"IN": 0.3, "M00": 1.0}}
    )
    out = merge(settings, MergeInputs(models=trio), tmp_path / "out")
    style, detail, composition = (
        load_file(trio[n])[FIRST_CONV].double() for n in ("style", "detail", "composition")
    )
    exact = 0.45 * style + 0.25 * detail + 0.3 * composition
    assert ulps(result_of(out)[FIRST_CONV], exact.numpy()) <= 0.51  # one rounding
    blocks = json.loads((out / "blocks.json").read_bytes())
    assert blocks["IN03"]["shares"] == pytest.approx({"style": 0.45, "detail": 0.25, "composition": 0.3})
    assert blocks["M00"]["shares"] == {"composition": 1.0}


def test_26_numbers_are_read_as_the_community_writes_them(trio: dict[str, Path], tmp_path: Path) -> None:
    """Beside a table of another model, in a file and on the command line."""
    numbers = [round(0.01 * at, 2) for at in range(26)]
    table = {"BASE": numbers[0], "IN": numbers[1:13], "M00": numbers[13], "OUT": numbers[14:]}
    commas = ",".join(map(str, numbers))
    written = [f'detail = "{commas}"', f"detail = [{commas}]"]
    words = [word for name, path in trio.items() for word in ("--models", f"{name}={path}")]
    words += ["--primary", "style", "--set", "weights.composition.IN=0.5"]
    ways = [["--set", f"weights.detail={commas}"], ["--set", f"weights.detail=[{commas}]"]]
    for number, line in enumerate(written):
        file = tmp_path / f"{number}.toml"
        file.write_text(f"[weights]\n{line}\n")
        ways.append(["--settings", str(file)])
    settings = MergeSettings(primary="style", weights={"detail": table, "composition": {"IN": 0.5}})
    expected = json.loads(
        (merge(settings, MergeInputs(models=trio), tmp_path / "table") / "blocks.json").read_text()
    )
    for number, way in enumerate(ways):
        main(["merge", *words, *way, "--out", str(tmp_path / f"out{number}")])
        assert json.loads((tmp_path / f"out{number}" / "blocks.json").read_text()) == expected
    assert expected["OUT11"]["shares"]["detail"] == 0.25
    assert expected["BASE"]["shares"] == {"style": 1.0}


def test_position_ids_stay_whole_numbers(trio: dict[str, Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[POSITION_IDS] = tensors[POSITION_IDS].half() - 0.01

    spoilt = changed(trio["style"], tmp_path / "spoilt.safetensors", spoil)
    settings = MergeSettings(primary="style", weights={"detail": {"BASE": 0.3}}, precision="fp16")
    for number, style in enumerate((trio["style"], spoilt)):
        out = merge(settings, MergeInputs(models={**trio, "style": style}), tmp_path / f"out{number}")
        ids = result_of(out)[POSITION_IDS]
        assert ids.dtype == torch.int64
        assert ids.tolist() == [list(range(77))]


def test_a_parent_that_gives_a_block_nothing_is_not_read_there(trio: dict[str, Path], tmp_path: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            if ".output_blocks." in key:
                tensors[key].fill_(float("nan"))

    models = {**trio, "detail": changed(trio["detail"], tmp_path / "poison.safetensors", poison)}
    out = merge(MergeSettings(preset="aid-v1"), MergeInputs(models=models), tmp_path / "out")
    assert all(torch.isfinite(tensor).all() for tensor in result_of(out).values())
    both = MergeSettings(primary="style", weights={"detail": {"OUT": 0.5}})
    with pytest.raises(ModelError, match=r"detail .*output_blocks.* holds NaN or infinity"):
        merge(both, MergeInputs(models=models), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_keys_of_one_model_only_are_kept_or_copied_in(trio: dict[str, Path], tmp_path: Path) -> None:
    extra, lone = "model.diffusion_model.output_blocks.3.9.weight", "betas"
    norm = "model.diffusion_model.out.0.weight"

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[extra] = torch.full((3,), 2.0, dtype=torch.float16)
        tensors[lone] = torch.ones(4)
        del tensors[norm]

    def add_other(tensors: dict[str, torch.Tensor]) -> None:
        tensors[extra] = torch.full((3,), 4.0, dtype=torch.float16)
        tensors[lone] = torch.zeros(4)

    models = {
        "style": trio["style"],
        "detail": changed(trio["detail"], tmp_path / "a.safetensors", add),
        "composition": changed(trio["composition"], tmp_path / "b.safetensors", add_other),
    }
    settings = MergeSettings(
        primary="style",
        weights={"detail": {"OUT": 0.5}, "composition": {"OUT": 0.25}},
        steps=("detail", "composition"),
    )
    with pytest.raises(ModelError, match=rf"detail \(.*\) lacks {re.escape(norm)}; expected all tensors of"):
        merge(settings, MergeInputs(models=models), tmp_path / "out")
    settings = settings.model_copy(update={"broken": "keep"})
    result = result_of(merge(settings, MergeInputs(models=models), tmp_path / "out"))
    expected = two_steps(models, [0.0] * 13 + [0.5] * 12, [0.0] * 13 + [0.25] * 12, (0.0, 0.0))
    assert result[extra].tolist() == expected[extra].tolist() == [2.5] * 3
    assert torch.equal(result[lone], torch.ones(4))  # no part of a model: the first's, unmixed
    assert ulps(result[norm], expected[norm]) <= 1.0  # detail has no `out.0`: its share stays with style


def test_nai_files_are_merged_under_their_modern_names(trio: dict[str, Path], tmp_path: Path) -> None:
    old = "cond_stage_model.transformer."

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(f"{old}text_model.")]:
            tensors[key.replace(f"{old}text_model.", old)] = tensors.pop(key)

    settings = MergeSettings(primary="style", weights={"detail": {"BASE": 0.5, "IN": 1}})
    nai = changed(trio["detail"], tmp_path / "nai.safetensors", rename)
    one = merge(settings, MergeInputs(models=trio), tmp_path / "one")
    two = merge(settings, MergeInputs(models={**trio, "detail": nai}), tmp_path / "two")
    first, second = result_of(one), result_of(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_result_is_a_checkpoint_that_tells_its_ancestry(trio: dict[str, Path], tmp_path: Path) -> None:
    out = merge(MergeSettings(preset="aid-v1"), MergeInputs(models=trio), tmp_path / "out")
    model = load_checkpoint(out)
    latents = torch.zeros(1, 4, 8, 8)
    text = torch.zeros(1, 77, model.architecture.text_width)
    assert torch.isfinite(model.unet(latents, 5, text).sample).all()
    assert model.metadata["modelspec.merged_from"] == "A tiny model, A tiny model, A tiny model"
    recipe = json.loads(model.metadata["aid.merge"])
    assert recipe["primary"] == "style"
    assert sorted(recipe["shares"]["composition"]) == ["IN06", "IN07", "IN08", "IN09", "IN10", "IN11", "M00"]
    lineage = embedded_lineage(out / "model.safetensors")
    assert lineage is not None
    assert sorted(lineage.node.inputs) == ["models.composition", "models.detail", "models.style"]


def test_same_inputs_same_bytes_and_a_second_run_does_nothing(trio: dict[str, Path], tmp_path: Path) -> None:
    settings = MergeSettings(primary="style", weights={"detail": {"IN": 0.5}, "composition": {"IN": 0.1}})
    backwards = dict(reversed(trio.items()))
    one = merge(settings, MergeInputs(models=trio), tmp_path / "one")
    two = merge(settings, MergeInputs(models=backwards), tmp_path / "two")
    for name in ("model.safetensors", "blocks.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    before = (one / "model.safetensors").stat().st_ino
    merge(settings, MergeInputs(models=trio), tmp_path / "one")
    assert (one / "model.safetensors").stat().st_ino == before


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_vae_is_baked_in(trio: dict[str, Path], tmp_path: Path, prefixed: bool) -> None:
    prefix = "first_stage_model."
    other = {key: t for key, t in load_file(trio["composition"]).items() if key.startswith(prefix)}
    given = other if prefixed else {key.removeprefix(prefix): t for key, t in other.items()}
    save_file(given | {"loss.logvar": torch.zeros(1)}, tmp_path / "vae.safetensors")
    inputs = MergeInputs(models=trio, vae=tmp_path / "vae.safetensors")
    settings = MergeSettings(primary="style", weights={"detail": {"BASE": 0.5}}, precision="fp32")
    result = result_of(merge(settings, inputs, tmp_path / "out"))
    assert all(torch.equal(result[key], tensor.float()) for key, tensor in other.items())
    assert not [key for key in result if "loss" in key]
    assert {tensor.dtype for key, tensor in result.items() if key != POSITION_IDS} == {torch.float32}


def test_pickled_parents_are_read_without_running_code(trio: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(trio["detail"])}, tmp_path / "detail.ckpt")
    models = {**trio, "detail": tmp_path / "detail.ckpt"}
    settings = MergeSettings(preset="aid-v1")
    one = result_of(merge(settings, MergeInputs(models=trio), tmp_path / "one"))
    two = result_of(merge(settings, MergeInputs(models=models), tmp_path / "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "aid-v9"}, "aid-v9 is not a merge preset; expected aid-v1"),
        ({"primary": "styel"}, "Did you mean style"),
        ({}, "names base, which is not among the models"),
        ({"primary": "style", "weights": {"details": {"IN": 1}}}, "Did you mean detail"),
        ({"primary": "style", "weights": {"detail": {"IN12": 1}}}, "IN12 is not a block"),
        ({"primary": "style", "weights": {"detail": {"IN": 1.5}}}, "detail has weight 1.5 in IN00"),
        ({"primary": "style", "weights": {"detail": {"IN": float("nan")}}}, "detail is nan in IN00"),
        ({"primary": "style", "weights": {"detail": {"IN": [1, 0]}}}, "IN has 2 weights"),
        ({"primary": "style", "weights": {"style": {"IN": 1}}}, "style is the primary"),
        (
            {"primary": "style", "weights": {"detail": [0.5] * 25}},
            "detail: 25 weights are given; expected 26 for sd1: BASE, IN00-IN11, M00, .* The first is BASE",
        ),
        ({"primary": "style", "weights": {"detail": "1,0"}}, "detail: 2 weights are given; expected 26"),
        ({"primary": "style", "weights": {"detail": "1,O" + 24 * ",0"}}, "holds what is no number"),
        ({"primary": "style", "weights": {"detail": [2.0] * 26}}, "detail has weight 2 in BASE"),
        (
            {"primary": "style", "weights": {"detail": {"M00": 0.7}, "composition": {"M00": 0.6}}},
            "weights of M00 add up to 1.3",
        ),
        ({"primary": "style", "weights": {"detail": {"IN": 1}}, "steps": ["composition"]}, "once: detail"),
    ],
)
def test_weights_that_cannot_be_meant_are_named(
    trio: dict[str, Path], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        merge(MergeSettings.model_validate(settings), MergeInputs(models=trio), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parents_that_do_not_fit_are_named(trio: dict[str, Path], tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FIRST_CONV] = torch.zeros(8, 9, 3, 3)

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "middle_block" in key]:
            del tensors[key]

    def huge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FIRST_CONV] = tensors[FIRST_CONV].float() + 1e6

    def beheaded(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[FIRST_CONV]

    primary = changed(trio["style"], tmp_path / "lacking.safetensors", beheaded)
    with pytest.raises(ModelError, match=rf"`aid inspect {primary}` tells what it is"):
        merge(
            MergeSettings(preset="aid-v1"), MergeInputs(models={**trio, "style": primary}), tmp_path / "out"
        )
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(trio["detail"].read_bytes()[:-100])
    save_file({"lora_down": torch.zeros(2)}, tmp_path / "lora.safetensors")
    cases: list[tuple[Path, str, type[AidError], str]] = [
        (
            changed(trio["detail"], tmp_path / "wide.safetensors", widen),
            "keep",
            ModelError,
            rf"{FIRST_CONV} is \[8, 4, 3, 3\] in style and \[8, 9, 3, 3\] in detail",
        ),
        (
            changed(trio["detail"], tmp_path / "strip.safetensors", strip),
            "keep",
            ModelError,
            "holds no tensor of M00",
        ),
        (
            changed(trio["detail"], tmp_path / "huge.safetensors", huge),
            "fp16",
            ModelError,
            f"{FIRST_CONV}, in float16, holds NaN",
        ),
        (tmp_path / "lora.safetensors", "keep", ModelError, "shares no tensor with style"),
        (truncated, "keep", FileError, "truncated.safetensors"),
        (tmp_path / "absent.safetensors", "keep", FileError, "absent.safetensors"),
    ]
    for path, precision, error, message in cases:
        settings = MergeSettings.model_validate(
            {"primary": "style", "precision": precision, "weights": {"detail": {"IN00": 1.0, "M00": 0.5}}}
        )
        models = {"style": trio["style"], "detail": path}
        with pytest.raises(error, match=message):
            merge(settings, MergeInputs(models=models), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("whole", "own", "expected"), [("detail", "int32", "float16"), ("style", "float16", "int32")]
)
def test_whole_numbers_are_not_averaged_with_floats(
    trio: dict[str, Path], tmp_path: Path, whole: str, own: str, expected: str
) -> None:
    def round_off(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FIRST_CONV] = (1000 * tensors[FIRST_CONV]).to(torch.int32)

    models = {**trio, whole: changed(trio[whole], tmp_path / "whole.safetensors", round_off)}
    message = rf"detail \(.*\): {FIRST_CONV} is {own}; expected .* as in style, where it is {expected}\."
    for share in (0.5, 1.0):
        settings = MergeSettings(primary="style", weights={"detail": {"IN00": share}})
        with pytest.raises(ModelError, match=message):
            merge(settings, MergeInputs(models=models), tmp_path / "out")
    spared = MergeSettings(primary="style", weights={"detail": {"IN01": 0.5}})
    result = result_of(merge(spared, MergeInputs(models=models), tmp_path / "spared"))
    assert torch.equal(result[FIRST_CONV], load_file(models["style"])[FIRST_CONV]), "nobody mixes it"


def test_a_vae_that_does_not_fit_is_refused(trio: dict[str, Path], tmp_path: Path) -> None:
    vae = {key: t for key, t in load_file(trio["detail"]).items() if key.startswith("first_stage_model.")}
    save_file({"encoder.conv_in.weight": torch.zeros(2)}, tmp_path / "shape.safetensors")
    save_file({key: tensor.int() for key, tensor in vae.items()}, tmp_path / "kind.safetensors")
    messages = {"shape": "first_stage_model", "kind": r"the VAE .*first_stage_model.* is int32; expected"}
    for name, message in messages.items():
        inputs = MergeInputs(models=trio, vae=tmp_path / f"{name}.safetensors")
        with pytest.raises(ModelError, match=message):
            merge(MergeSettings(preset="aid-v1"), inputs, tmp_path / "out")


def test_eight_bit_parents_are_merged_too(trio: dict[str, Path], tmp_path: Path) -> None:
    def squeeze(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FIRST_CONV] = tensors[FIRST_CONV].to(torch.float8_e4m3fn)

    small = changed(trio["detail"], tmp_path / "small.safetensors", squeeze)
    settings = MergeSettings(primary="style", weights={"detail": {"IN00": 0.5}})
    out = merge(settings, MergeInputs(models={"style": trio["style"], "detail": small}), tmp_path / "out")
    exact = (load_file(trio["style"])[FIRST_CONV].double() + load_file(small)[FIRST_CONV].double()) / 2
    assert ulps(result_of(out)[FIRST_CONV], exact.numpy()) <= 0.51
