"""Masks: what is drawn anew and what is left, at the size of the whole picture or of the masked part; and
inpainting models, which are shown the mask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInpaintPipeline
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from aid.cli import root
from aid.core.shot import Shot
from aid.errors import ModelError, SettingsError
from aid.sd.drawing.decoding import decode, encode, to_pixels
from aid.sd.drawing.init_picture import crop_box, open_init
from aid.sd.drawing.pipeline import draw
from aid.sd.model.architecture import TINY, TINY_INPAINTING, Architecture
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint, load_checkpoint, save_checkpoint
from aid.train.settings import FinetuneSettings
from aid.train.training import make_ready


def lively(architecture: Architecture) -> StableDiffusion:
    model = create_checkpoint(architecture, seed=2)
    generator = torch.Generator().manual_seed(4)
    for module in (model.unet, model.text_encoder):
        for parameter in module.parameters():
            spread = 0.1 if not parameter.any() or parameter.dim() == 1 else 0.0
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return lively(TINY)


@pytest.fixture(scope="module")
def inpainting() -> StableDiffusion:
    return lively(TINY_INPAINTING)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A picture of 96x64, and a mask of 16x16 at (60, 30)."""
    folder = tmp_path_factory.mktemp("scene")
    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill="red")
    picture.save(folder / "scene.png")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (60, 30, 76, 46))
    mask.save(folder / "mask.png")
    ImageOps.invert(mask).save(folder / "inverted.png")
    return {name: str(folder / f"{name}.png") for name in ("scene", "mask", "inverted")}


def shot(scene: dict[str, str], **source: object) -> Shot:
    given = {"picture": scene["scene"], "mask": scene["mask"], **source}
    return Shot.model_validate({"prompt": "hair", "width": 32, "height": 32, "steps": 4, "source": given})


def levels(picture: Image.Image) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(picture.convert("RGB")).astype(int)


def opened(path: str) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


@pytest.mark.parametrize(
    ("inner", "padding", "size", "limits", "expected"),  # as A1111's masking.py gives them
    [
        ((60, 30, 76, 46), 0, (64, 64), (96, 64), (60, 30, 76, 46)),
        ((60, 30, 76, 46), 8, (64, 64), (96, 64), (52, 22, 84, 54)),
        ((60, 30, 76, 46), 8, (64, 32), (96, 64), (32, 22, 96, 54)),
        ((0, 0, 10, 40), 0, (32, 32), (96, 64), (0, 0, 40, 40)),
        ((90, 0, 96, 50), 32, (64, 32), (96, 64), (0, 0, 96, 64)),
        ((10, 60, 50, 64), 0, (32, 32), (96, 64), (10, 24, 50, 64)),
    ],
)
def test_the_box_around_a_mask(
    inner: tuple[int, int, int, int],
    padding: int,
    size: tuple[int, int],
    limits: tuple[int, int],
    expected: tuple[int, int, int, int],
) -> None:
    assert crop_box(inner, padding, size, limits) == expected


def test_only_masked_keeps_the_pictures_size_and_all_around(
    model: StableDiffusion, scene: dict[str, str]
) -> None:
    asked = shot(scene, mask_area="Only masked", mask_padding_px=8, mask_blur_px=0)
    (drawn,) = draw(model, [asked])
    before, after = levels(opened(scene["scene"])), levels(drawn)
    inside = levels(opened(scene["mask"]))[..., 0] > 0
    assert drawn.size == (96, 64)
    assert (before == after)[~inside].all() and (before != after)[inside].mean() > 0.5


def test_only_masked_is_the_part_drawn_alone_and_put_back(
    model: StableDiffusion, scene: dict[str, str], tmp_path: Path
) -> None:
    """32 pixels of the picture at 32 drawn ones: nothing is scaled, so both ways are the same."""
    box = (52, 22, 84, 54)
    for name in ("scene", "mask"):
        opened(scene[name]).crop(box).save(tmp_path / f"{name}.png")
    part = {name: str(tmp_path / f"{name}.png") for name in ("scene", "mask")}
    asked = shot(scene, mask_area="Only masked", mask_padding_px=8, mask_blur_px=0)
    drawn, alone = draw(model, [asked])[0], draw(model, [shot(part, mask_blur_px=0)])[0]
    assert (levels(drawn.crop(box)) == levels(alone)).all()


def test_small_parts_are_drawn_larger(scene: dict[str, str]) -> None:
    init = open_init(shot(scene, mask_area="Only masked", mask_padding_px=0, mask_blur_px=0).source, (64, 64))  # type: ignore[arg-type]
    assert init.box == (60, 30, 76, 46) and init.picture.size == (64, 64)
    part = opened(scene["scene"]).crop(init.box).resize((64, 64), Image.Resampling.LANCZOS)
    assert (levels(init.picture) == levels(part)).all()
    assert levels(init.over(Image.new("RGB", (64, 64), "blue")))[38, 68].tolist() == [0, 0, 255]


def test_a_mask_is_softened_and_inverted(scene: dict[str, str]) -> None:
    soft = open_init(shot(scene, mask_blur_px=4).source, (96, 64))  # type: ignore[arg-type]
    row = np.asarray(soft.mask)[38].astype(int)
    weights = np.exp(-(np.arange(-10, 11) ** 2) / 32)
    line, column = np.zeros(96), np.zeros(64)
    line[60:76] = column[30:46] = 255
    across, down = (np.convolve(one, weights / weights.sum(), "same") for one in (line, column))
    assert np.abs(row - across * down[38] / 255).max() <= 1
    assert (np.asarray(soft.cover)[38] == np.minimum(255, 2 * row)).all()
    turned = [
        open_init(shot({**scene, "mask": scene[name]}, mask_mode=mode, mask_blur_px=0).source, (96, 64)).mask  # type: ignore[arg-type]
        for name, mode in (("mask", "Inpaint masked"), ("inverted", "Inpaint not masked"))
    ]
    assert turned[0].tobytes() == turned[1].tobytes()  # type: ignore[union-attr]


def test_a_masks_opaque_parts_are_its_white(scene: dict[str, str]) -> None:
    """Brushes leave such masks behind; A1111 reads them so."""
    plain, brushed = Path(scene["mask"]), Path(scene["mask"]).with_name("brushed.png")
    paint = Image.new("RGB", (96, 64), "blue")
    paint.putalpha(opened(str(plain)).point(lambda level: 200 if level else 90))
    paint.save(brushed)
    for mode in ("Inpaint masked", "Inpaint not masked"):
        sources = (shot({**scene, "mask": str(file)}, mask_mode=mode).source for file in (plain, brushed))
        masks = [open_init(source, (96, 64)).mask for source in sources]  # type: ignore[arg-type]
        assert masks[0].tobytes() == masks[1].tobytes()  # type: ignore[union-attr]
    Image.new("L", (96, 64), 255).save(brushed)
    everything = shot({**scene, "mask": str(brushed)}, mask_mode="Inpaint not masked").source
    with pytest.raises(SettingsError, match=r"is white; expected black where the picture is to be drawn"):
        open_init(everything, (96, 64))  # type: ignore[arg-type]


def shown(model: StableDiffusion, asked: Shot) -> Tensor:
    """What the U-Net gets in its last call, of the first picture: [9, h/8, w/8]."""
    seen: list[Tensor] = []
    hook = model.unet.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        draw(model, [asked])
    finally:
        hook.remove()
    return seen[-1][0]


def test_an_inpainting_model_sees_the_mask_and_what_lies_around_it(
    inpainting: StableDiffusion, scene: dict[str, str]
) -> None:
    whole = {"width": 96, "height": 64}
    asked = shot(scene, mask_blur_px=0).model_copy(update=whole)
    pixels = to_pixels([opened(scene["scene"])])
    mask = torch.zeros((1, 1, 64, 96))
    mask[..., 30:46, 60:76] = 1
    with torch.inference_mode():
        around, all_of_it, grey = (
            encode(inpainting, one) for one in (pixels * (1 - mask), pixels, pixels * 0)
        )
    seen = shown(inpainting, asked)
    assert torch.equal(seen[4], mask[0, 0, ::8, ::8]), "the nearest pixel of each latent"
    assert torch.allclose(seen[5:], around[0], atol=1e-5)
    seen = shown(inpainting, shot(scene, mask_blur_px=0, mask_weight=0.0).model_copy(update=whole))
    assert torch.allclose(seen[5:], all_of_it[0], atol=1e-5)
    unmasked = asked.model_copy(update={"source": None})
    for one in (unmasked, shot(scene, mask="").model_copy(update=whole)):
        seen = shown(inpainting, one)
        assert (seen[4] == 1).all() and torch.allclose(seen[5:], grey[0], atol=1e-3)
    assert shown(inpainting, Shot(prompt="x", width=32, height=32, steps=2, hires={})).shape == (9, 8, 8)


@torch.no_grad()
def test_an_inpainting_model_draws_as_in_diffusers(
    inpainting: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All masked and from noise alone, where A1111's way (ours) and diffusers' are one."""
    asked = Shot(prompt="red hair", negative_prompt="blurry", width=32, height=32, steps=10, seed=11)
    found: list[Tensor] = []
    monkeypatch.setattr("aid.sd.drawing.pipeline.decode", lambda m, x: (found.append(x), decode(m, x))[1])
    draw(inpainting, [asked])
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace",
        steps_offset=0,
    )  # fmt: skip
    pipeline = StableDiffusionInpaintPipeline(
        inpainting.vae, inpainting.text_encoder, inpainting.tokenizer, inpainting.unet, scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        asked.prompt, negative_prompt=asked.negative_prompt, image=torch.zeros((1, 3, 32, 32)),
        mask_image=torch.ones((1, 1, 32, 32)), num_inference_steps=10, guidance_scale=7.0, strength=1.0,
        masked_image_latents=encode(inpainting, torch.zeros((1, 3, 32, 32))), width=32, height=32,
        generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    assert theirs.std() > 0.05
    assert torch.allclose(found[0], theirs, rtol=1e-4, atol=2e-4)


def run(*words: object) -> str:
    result = CliRunner().invoke(root, [*map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_inpainting_files_are_inspected_converted_and_drawn_with(
    inpainting: StableDiffusion, scene: dict[str, str], tmp_path: Path
) -> None:
    single, folder = tmp_path / "inpainting.safetensors", tmp_path / "folder"
    save_checkpoint(inpainting, single, {}, torch.float32)
    assert (
        "its U-Net is shown the mask" in json.loads(run("inspect", single, "--json"))["about"]["inpainting"]
    )
    run("convert", single, folder)
    run("convert", folder, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == single.read_bytes()
    theirs = StableDiffusionInpaintPipeline.from_pretrained(folder)
    assert theirs.unet.config.in_channels == 9
    assert load_checkpoint(folder).architecture == TINY_INPAINTING
    words = ["--init", scene["scene"], "--mask", scene["mask"], "--mask-area", "Only masked"]
    words += ["--steps", 2, "--width", 32, "--height", 32, "--out", tmp_path / "out", "--device", "cpu"]
    run("generate", "hair", "--checkpoint", folder, *words)
    first = tmp_path / "out" / "00000-0.png"
    assert "Inpaint area: Only masked" in run("inspect", first) and opened(str(first)).size == (96, 64)
    places = ["--from", folder, "--from", Path(scene["scene"]).parent]
    run("generate", "hair", "--checkpoint", single, *words)
    second = tmp_path / "out" / "00001-0.png"
    assert opened(str(first)).tobytes() == opened(str(second)).tobytes()
    said = run("again", second, *places, "--from", single, "--out", tmp_path / "again", "--device", "cpu")
    assert "The same, to the last bit." in said


def test_inpainting_models_are_not_trained(inpainting: StableDiffusion) -> None:
    with pytest.raises(ModelError, match="is an inpainting model; expected for training"):
        make_ready(inpainting, FinetuneSettings(steps=1))
