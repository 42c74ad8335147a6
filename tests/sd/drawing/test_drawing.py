"""What a shot can ask for beyond the defaults: other families, prompt schedules, AND, adapters, pictures
from pictures, masks, a second pass, large sizes."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image, ImageDraw
from pydantic import ValidationError
from torch import Tensor

from aid.core.shot import Shot
from aid.errors import FileError, PictureError, SettingsError
from aid.sd.adapter.file import save_adapter
from aid.sd.adapter.folder import AdapterFolder
from aid.sd.drawing.decoding import decode, encode, tiled, to_pixels
from aid.sd.drawing.pipeline import Texts, draw, draw_batch, plan_batches
from aid.sd.embedding.file import Embedding
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint
from aid.sd.model.tokenizer import load_tokenizer
from aid.sd.sampling.samplers import SAMPLERS, TRAITS

DOWN = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def lively(architecture: Architecture) -> StableDiffusion:
    """Random, but no layer is silent."""
    made = create_checkpoint(architecture, seed=2)
    generator = torch.Generator().manual_seed(4)
    for module in made.modules():
        if module is made.vae:
            continue
        for parameter in module.parameters():
            spread = 0.1 if not parameter.any() or parameter.dim() == 1 else 0.0
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return lively(TINY)


@pytest.fixture(scope="module")
def sdxl() -> StableDiffusion:
    return lively(TINY_SDXL)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolder:
    folder = tmp_path_factory.mktemp("loras")
    chance = torch.Generator().manual_seed(3)
    for name, wide in (("soft", (8, 8)), ("hard", (16, 64))):
        module = DOWN if name == "soft" else TEXT
        tensors = {
            f"{module}.lora_down.weight": torch.randn((2, wide[0]), generator=chance),
            f"{module}.lora_up.weight": torch.randn((wide[1], 2), generator=chance),
            f"{module}.alpha": torch.tensor(4.0),
        }
        save_adapter(folder / f"{name}.safetensors", tensors, {})
    return AdapterFolder(folder)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of 48x32 to draw from, and a mask of its right half."""
    folder = tmp_path_factory.mktemp("scene")
    picture = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((4, 4, 20, 20), fill="red")
    picture.save(folder / "scene.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (24, 0, 48, 32))
    mask.save(folder / "mask.png")
    return {"scene": folder / "scene.png", "mask": folder / "mask.png"}


def shot(prompt: str = "red hair", **changes: object) -> Shot:
    return Shot.model_validate({"prompt": prompt, "width": 32, "height": 32, "steps": 2, **changes})


def pixels(picture: Image.Image) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(picture).astype(int)


def difference(one: Image.Image, two: Image.Image) -> int:
    return int(np.abs(pixels(one) - pixels(two)).max())


def same(*pictures: Image.Image) -> bool:
    return len({picture.tobytes() for picture in pictures}) == 1


def latents(model: StableDiffusion, one: Shot, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    seen: list[Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr("aid.sd.drawing.pipeline.decode", lambda m, x: (seen.append(x), decode(m, x))[1])
        draw(model, [one])
    return seen[0]


def scheduler(prediction: str) -> EulerAncestralDiscreteScheduler:
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        timestep_spacing="linspace", steps_offset=0,
    )  # fmt: skip


def padded_with_zeros() -> object:
    tokenizer = copy.deepcopy(load_tokenizer())
    tokenizer.pad_token = "!"
    return tokenizer


@torch.no_grad()
def test_sd2_that_predicts_v_is_as_in_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TINY_SD2)
    asked = shot("by matcha, red hair", negative_prompt="blurry", steps=10, seed=11)
    ours = latents(model, asked, monkeypatch)
    pipeline = StableDiffusionPipeline(
        model.vae, model.text_encoder, padded_with_zeros(), model.unet, scheduler("v_prediction"), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        asked.prompt, negative_prompt=asked.negative_prompt, num_inference_steps=10, guidance_scale=7.0,
        width=32, height=32, generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    assert theirs.std() > 0.05
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("negative", [None, "blurry"])
@torch.no_grad()
def test_sdxl_is_as_in_diffusers(
    sdxl: StableDiffusion, negative: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = shot("by matcha, red hair", negative_prompt=negative or "", steps=10, seed=11, width=48)
    ours = latents(sdxl, asked, monkeypatch)
    pipeline = StableDiffusionXLPipeline(
        sdxl.vae, sdxl.text_encoder, sdxl.text_encoder_2, load_tokenizer(), padded_with_zeros(), sdxl.unet,
        scheduler("epsilon"), add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        asked.prompt, negative_prompt=negative, num_inference_steps=10, guidance_scale=7.0,
        width=48, height=32, generator=torch.Generator().manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    assert theirs.std() > 0.05
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "Karras"}, {"eta": 0.3}, {"noise_source": "NV"}, {"seed_delta": 31337},
        {"variation_strength": 0.3, "variation_seed": 5}, {"emphasis": "No norm", "prompt": "(red:1.4) hair"},
        {"downcast_alphas": True}, {"cfg_rescale": 0.7}, {"cfg_sigmas": (1.0, 10.0)},
        {"hires": {"scale": 2}}, {"prompt": "red hair AND blue eyes:0.7"}, {"prompt": "[red:blue:0.5] hair"},
    ],
)  # fmt: skip
def test_everything_asked_for_matters_alone_and_in_any_batch(
    model: StableDiffusion, change: dict[str, object]
) -> None:
    plain = {"prompt": change["prompt"]} if "emphasis" in change else {}
    told = [shot(steps=5, **plain), *(shot(steps=5, **{**change, "seed": seed}) for seed in range(3))]  # type: ignore[arg-type]
    pictures = draw(model, told)
    assert pictures[0].size != pictures[1].size or difference(pictures[0], pictures[1]) > 0
    for one, picture in zip(told, pictures, strict=True):
        assert difference(draw(model, [one])[0], picture) <= 1
    assert len({picture.tobytes() for picture in pictures[1:]}) == 3


def test_prompts_change_at_their_steps(model: StableDiffusion) -> None:
    """`[a:b:0]` is b throughout, `[a:b:1.0]` a; a second-order sampler has twice the calls to count."""
    for sampler in ("Euler a", "Heun"):
        words = ["[red:blue:0] hair", "blue hair", "[red:blue:1.0] hair", "red hair", "[red:blue:.3] hair"]
        zero, blue, never, red, half = draw(model, [shot(one, sampler=sampler, steps=6) for one in words])
        assert same(zero, blue) and same(never, red)
        assert not same(half, red) and not same(half, blue)


def test_prompts_change_at_their_steps_in_the_second_pass_too(model: StableDiffusion) -> None:
    """From 1.0, or the first pass's steps, on, `when` counts in the second; by the old rule in each pass."""

    def made(prompt: str, second: str = "", **more: object) -> Image.Image:
        hires = {"scale": 1.5, "steps": 4, "prompt": second}
        return draw(model, [shot(prompt, steps=6, hires=hires, **more)])[0]

    red_then_blue = made("red hair", "blue hair")
    assert same(red_then_blue, made("[red:blue:1.0] hair"), made("[red:blue:6] hair"))
    halves = made("red hair", "[red:blue:1] hair", old_editing=True)
    assert same(halves, made("[red:blue:1.25] hair"), made("[red:blue:7] hair"))
    assert same(made("red hair"), made("[red:blue:2.0] hair"), made("[red:blue:99] hair"))
    assert not same(red_then_blue, halves) and not same(halves, made("red hair"))
    old = made("[red:blue:0.5] hair", old_editing=True)
    assert same(old, made("[red:blue:0.5] hair", "[red:blue:3] hair", old_editing=True))


def test_and_of_one_prompt_twice_is_that_prompt(model: StableDiffusion) -> None:
    one, twice = draw(model, [shot("red hair"), shot("red hair:0.5 AND red hair:0.5")])
    assert difference(one, twice) <= 1
    longer, plain = draw(model, [shot("red hair AND cat " + "cat " * 90), shot("red hair")])
    assert difference(longer, plain) > 0
    alone, composed = draw(model, [shot("red AND blue", cfg_scale=1), shot("red", cfg_scale=1)])
    assert difference(alone, composed) > 0


def test_mixes_and_wildcards(model: StableDiffusion) -> None:
    red, mix, both = draw(
        model, [shot(w) for w in ("red hair", "{red:1|blue:0} hair", "{red:1|blue:1} hair")]
    )
    assert same(red, mix) and not same(red, both)
    drawn = draw(model, [shot("__colour__ hair")], wildcards={"colour": ["red"]})
    assert same(drawn[0], red)


def test_adapters_are_put_on_and_taken_off(model: StableDiffusion, adapters: AdapterFolder) -> None:
    before = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.unet.parameters())).digest()
    words = ["red hair", "red hair<lora:soft:1>", "red hair<lora:soft:0.5>", "red hair<lora:hard:1>"]
    words += ["red hair<lora:soft:0><lora:hard:0>", "red hair<lora:soft:1>"]
    pictures = draw(model, [shot(one) for one in words], adapters=adapters)
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert same(pictures[0], pictures[4]) and same(pictures[1], pictures[5])
    after = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.unet.parameters())).digest()
    assert before == after
    batches = plan_batches(Texts(model, {}, adapters), [shot(one) for one in words], 8)
    assert batches == [[0], [1, 5], [2], [3], [4]]
    with pytest.raises(FileError, match=r"holds no adapter called sofd.*Did you mean soft"):
        draw(model, [shot("<lora:sofd:1>")], adapters=adapters)
    with pytest.raises(SettingsError, match="the prompt calls soft; expected a folder of LoRAs"):
        draw(model, [shot("<lora:soft:1>")])


def test_the_second_pass_wears_its_own_adapters(model: StableDiffusion, adapters: AdapterFolder) -> None:
    """Though it be of one size with the first."""
    words = ("red hair", "red hair<lora:soft:1>")
    own = [shot("red hair", hires={"scale": 1, "prompt": word, "upscaler": "Latent"}) for word in words]
    plain, worn = draw(model, own, adapters=adapters)
    assert not same(plain, worn)


def test_embeddings_bundled_with_adapters_are_known(
    model: StableDiffusion, adapters: AdapterFolder, tmp_path: Path
) -> None:
    vectors = torch.ones((2, 16))
    tensors = {
        f"{DOWN}.lora_down.weight": torch.zeros((1, 8)),
        f"{DOWN}.lora_up.weight": torch.zeros((8, 1)),
        "bundle_emb.zork.string_to_param.*": vectors,
    }
    save_adapter(tmp_path / "kit.safetensors", tensors, {}, torch.float32)
    asked = [shot("zork<lora:kit:1>")]
    (bundled,) = draw(model, asked, adapters=AdapterFolder(tmp_path))
    (own,) = draw(model, [shot("zork")], {"zork": Embedding("zork", vectors)})
    assert same(bundled, own)


def test_pictures_from_pictures(model: StableDiffusion, scene: dict[str, Path]) -> None:
    def made(strength: float) -> Image.Image:
        source = {"picture": str(scene["scene"]), "denoising_strength": strength}
        return draw(model, [shot(width=48, steps=10, source=source)])[0]

    with Image.open(scene["scene"]) as picture:
        latent = encode(model, to_pixels([picture]))
    through = decode(model, latent).detach().clamp(-1, 1)
    distances = [(to_pixels([made(strength)]) - through).abs().mean().item() for strength in (0.0, 0.3, 1.0)]
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[2]


def test_what_the_mask_leaves_alone_stays_to_the_bit(model: StableDiffusion, scene: dict[str, Path]) -> None:
    source = {"picture": str(scene["scene"]), "mask": str(scene["mask"]), "mask_blur_px": 0}
    (drawn,) = draw(model, [shot(width=48, steps=4, source=source)])
    with Image.open(scene["scene"]) as picture:
        own = pixels(picture)
    assert (pixels(drawn)[:, :24] == own[:, :24]).all()
    assert (pixels(drawn)[:, 24:] != own[:, 24:]).mean() > 0.5
    kinds = ["original", "fill", "latent noise", "latent nothing"]
    asked = [shot(width=48, steps=4, source={**source, "masked_content": kind}) for kind in kinds]
    pictures = draw(model, asked)
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert all((pixels(picture)[:, :24] == own[:, :24]).all() for picture in pictures)
    soft = draw(model, [shot(width=48, steps=4, source={**source, "mask_blur_px": 2})])[0]
    assert (pixels(soft)[:, :8] == own[:, :8]).all()


def test_pictures_of_other_proportions(model: StableDiffusion, scene: dict[str, Path]) -> None:
    source = {"picture": str(scene["scene"]), "denoising_strength": 0.5}
    modes = ["Just resize", "Crop and resize", "Resize and fill"]
    pictures = draw(model, [shot(source={**source, "resize": mode}) for mode in modes])
    assert [picture.size for picture in pictures] == [(32, 32)] * 3
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_sources_that_are_not_the_ones_meant(model: StableDiffusion, scene: dict[str, Path]) -> None:
    def made(**source: object) -> None:
        draw(model, [shot(source=source)])

    with pytest.raises(SettingsError, match="is not named"):
        made()
    with pytest.raises(PictureError, match=r"none\.png does not exist"):
        made(picture="none.png")
    with pytest.raises(PictureError, match=r"scene\.png is not the picture that is meant"):
        made(picture=str(scene["scene"]), sha256="0" * 64)
    with pytest.raises(SettingsError, match=r"the mask .* is black"):
        black = scene["mask"].with_name("black.png")
        Image.new("L", (48, 32)).save(black)
        made(picture=str(scene["scene"]), mask=str(black))
    with pytest.raises(ValidationError, match="source or hires, not both"):
        shot(source={"picture": "x"}, hires={})
    sha = hashlib.sha256(scene["scene"].read_bytes()).hexdigest()
    known = {sha: scene["scene"]}
    asked = shot(source={"picture": "elsewhere.png", "sha256": sha})
    assert draw_batch(model, [asked], Texts(model, {}), pictures=known)[0].size == (32, 32)


@pytest.mark.parametrize(
    ("hires", "size"),
    [
        ({"scale": 1.5}, (48, 72)),
        ({"width": 64}, (64, 96)),
        ({"height": 72}, (48, 72)),
        ({"width": 64, "height": 64}, (64, 64)),
        ({"scale": 1.3}, (40, 56)),
    ],
)
def test_a_second_pass_has_its_own_size(
    model: StableDiffusion, hires: dict[str, object], size: tuple[int, int]
) -> None:
    (picture,) = draw(model, [shot(height=48, hires=hires)])
    assert picture.size == size


def test_a_second_pass_has_its_own_everything(model: StableDiffusion) -> None:
    changes: list[dict[str, object]] = [
        {}, {"upscaler": "Lanczos"}, {"upscaler": "Nearest"}, {"upscaler": "Latent (nearest)"},
        {"upscaler": "Latent (bicubic antialiased)"}, {"steps": 4}, {"sampler": "Euler"},
        {"steps": 4, "schedule": "Karras"}, {"prompt": "blue eyes"}, {"negative_prompt": "blurry"},
        {"denoising_strength": 0.3},
    ]  # fmt: skip
    pictures = draw(model, [shot(hires=change) for change in changes])
    assert len({picture.tobytes() for picture in pictures}) == len(changes)


def test_a_second_pass_of_no_strength_leaves_the_larger_picture(model: StableDiffusion) -> None:
    asked = {"denoising_strength": 0, "upscaler": "Latent (nearest)"}
    names = [name for name in SAMPLERS if not TRAITS[name].own_levels]
    pictures = draw(model, [shot(hires={**asked, "sampler": name}) for name in names])
    assert same(*pictures) and pictures[0].size == (64, 64)


def test_sdxl_has_a_second_pass_and_pictures_from_pictures(
    sdxl: StableDiffusion, scene: dict[str, Path]
) -> None:
    large, made = draw(sdxl, [shot(hires={"scale": 2}), shot(source={"picture": str(scene["scene"])})])
    assert (large.size, made.size) == ((64, 64), (32, 32))


def test_tiles_fade_into_each_other() -> None:
    x = torch.randn((1, 2, 37, 50), generator=torch.Generator().manual_seed(1))
    larger = tiled(lambda part: part.repeat_interleave(8, 2).repeat_interleave(8, 3), x, 16, 4, 8)
    assert torch.allclose(larger, x.repeat_interleave(8, 2).repeat_interleave(8, 3), atol=1e-6)
    sizes: list[tuple[int, ...]] = []

    def shifted(part: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[-2:]))
        return torch.full_like(part, len(sizes))

    made = tiled(shifted, x, 16, 4, 1)
    assert set(sizes) == {(16, 16)}
    steps = (made[0, 0, :, 1:] - made[0, 0, :, :-1]).abs().max()
    assert steps <= 0.5  # from one tile's level to the next's, over the overlap


def test_large_pictures_are_decoded_in_tiles(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.randn((2, 4, 24, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = decode(model, latent)
        back = encode(model, whole)
        monkeypatch.setattr("aid.sd.drawing.decoding.WHOLE_PIXELS", 1 << 12)
        monkeypatch.setattr("aid.sd.drawing.decoding.TILE", 16)
        monkeypatch.setattr("aid.sd.drawing.decoding.OVERLAP", 8)
        parts = decode(model, latent)
        again = encode(model, whole)
    assert parts.shape == whole.shape and again.shape == back.shape == latent.shape
    assert (parts - whole).abs().mean() < 0.1 * whole.std()
    assert (again - back).abs().mean() < 0.1 * back.std()
