"""The `parameters` text: A1111's spelling, its parser's corners, and round trips."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import aid
from aid.core.lineage import Lineage, describe, embedded_lineage
from aid.core.shot import Hires, Shot, Source
from aid.errors import SettingsError
from aid.sd.picture.file import SUFFIX, Format, picture_bytes
from aid.sd.picture.infotext import Weights, parse_infotext, png_bytes, shot_of, write_infotext
from aid.sd.picture.shot_fields import unread_fields
from aid.sd.picture.text import picture_text
from aid.sd.sampling.samplers import SAMPLERS
from aid.sd.sampling.schedules import SCHEDULES

FULL = Weights("a1b2c3d4e5", "aid, v2.8", "0f0f0f0f0f", "vae-ft-mse-840000", {"aid210": "123456789abc"})


def test_fields_stand_in_a1111s_order_and_spelling() -> None:
    shot = Shot(prompt="by matcha, 1girl", negative_prompt="aid210", seed=7, cfg_scale=7.5, clip_skip=2)
    assert write_infotext(shot, FULL) == (
        "by matcha, 1girl\n"
        "Negative prompt: aid210\n"
        "Steps: 32, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.5, Seed: 7, Size: 512x512, "
        'Model hash: a1b2c3d4e5, Model: "aid, v2.8", VAE hash: 0f0f0f0f0f, VAE: vae-ft-mse-840000, '
        f'Clip skip: 2, RNG: CPU, TI hashes: "aid210: 123456789abc", Version: AID {aid.__version__}'
    )


def test_everything_asked_for_has_its_a1111_name() -> None:
    shot = Shot(
        prompt="a cat <lora:x:1>", seed=7, variation_seed=3, variation_strength=0.25, sampler="DPM++ SDE",
        schedule="Karras", seed_delta=31337, noise_source="NV", emphasis="No norm", eta=0.5,
        downcast_alphas=True, old_editing=True, cfg_rescale=0.7, cfg_sigmas=(0.3, 5.5),
        hires=Hires(
            scale=1.5, steps=12, denoising_strength=0.45, upscaler="Latent (nearest)", sampler="Euler",
            schedule="Beta", prompt="a cat, detailed", negative_prompt="dog",
        ),
    )  # fmt: skip
    assert write_infotext(shot, Weights(adapters={"x": "0123456789ab", "y, z": "ba9876543210"})) == (
        "a cat <lora:x:1>\n"
        "Steps: 32, Sampler: DPM++ SDE, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 512x512, "
        "Variation seed: 3, Variation seed strength: 0.25, Denoising strength: 0.45, ENSD: 31337, RNG: NV, "
        'Hires sampler: Euler, Hires prompt: "a cat, detailed", Hires negative prompt: dog, '
        "Hires schedule type: Beta, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent (nearest), "
        'Lora hashes: "x: 0123456789ab, y z: ba9876543210", '
        "Emphasis: No norm, Old prompt editing timelines: True, Eta: 0.5, Downcast alphas_cumprod: True, "
        f"CFG rescale: 0.7, CFG sigmas: 0.3 5.5, Version: AID {aid.__version__}"
    )


def test_a_picture_from_a_picture_names_it_but_not_where_it_lay() -> None:
    source = Source(
        picture="/home/somebody/drawing.png", sha256="a" * 64, mask="/home/somebody/mask, 2.png",
        mask_sha256="b" * 64, mask_blur_px=4, masked_content="latent noise", resize="Crop and resize",
        mask_area="Only masked", mask_padding_px=48, mask_mode="Inpaint not masked", mask_weight=0.5,
    )  # fmt: skip
    text = write_infotext(Shot(prompt="cat", source=source, clip_skip=2))
    assert (
        "Denoising strength: 0.75, Conditional mask weight: 0.5, Clip skip: 2, RNG: CPU, Init image: " in text
    )
    assert (
        "Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 48, "
        "Masked content: latent noise, Resize mode: Crop and resize"
    ) in text
    assert "somebody" not in text
    told = source.model_copy(update={"picture": "drawing.png", "mask": "mask, 2.png"})
    assert shot_of(parse_infotext(text)).source == told


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("Sampler: DPM++ 2M Karras", {"sampler": "DPM++ 2M", "schedule": "Karras"}),
        ("Sampler: dpm++ sde, Schedule type: karras", {"sampler": "DPM++ SDE", "schedule": "Karras"}),
        ("Sampler: Euler a, RNG: NV", {"noise_source": "NV"}),
        ("Sampler: Euler a", {"noise_source": "GPU"}),
        ("Sampler: Euler a, Version: v1.5.1", {"old_editing": True, "downcast_alphas": True}),
        ("Sampler: Euler a, Version: v1.6.0", {"old_editing": False, "downcast_alphas": True}),
        ("Sampler: Euler a, Version: v1.7.0-225-gabc", {"downcast_alphas": False}),
        ("Sampler: Euler a, Version: f0.0.17", {"downcast_alphas": False}),
        ("Sampler: DDIM, Eta DDIM: 0.3", {"eta": 0.3}),
        ("Sampler: Euler a, ENSD: 31337, Clip skip: 2", {"seed_delta": 31337, "clip_skip": 2}),
        ("Sampler: Euler a, ENSD: -1, Clip skip: 0", {"seed_delta": -1, "clip_skip": 1}),
        (
            "Sampler: dpmpp_2m_sde_gpu_karras, Clip skip: -2",
            {"sampler": "DPM++ 2M SDE", "schedule": "Karras", "clip_skip": 2},
        ),
        (
            "Sampler: DPM++ 2M, Version: ComfyUI",
            {"schedule": "Normal", "noise_source": "CPU", "emphasis": "ComfyUI"},
        ),
        (
            "Sampler: DPM++ 2M Karras, Emphasis: Original, Version: ComfyUI",
            {"schedule": "Karras", "emphasis": "Original"},
        ),
        (
            "Sampler: DPM++ 2M SDE, Scheduler: karras, Raw prompt: a, Version: Fooocus v2.3.1",
            {"schedule": "Karras", "noise_source": "CPU", "emphasis": "Original"},
        ),
    ],
)
def test_what_a1111_means_by_its_fields(fields: str, expected: dict[str, object]) -> None:
    shot = shot_of(parse_infotext(f"a [b:c:0.5]\nSteps: 20, CFG scale: 7, Seed: 1, {fields}"))
    assert {name: getattr(shot, name) for name in expected} == expected


def test_a1111s_second_pass_is_read() -> None:
    fields = "Denoising strength: 0.7, Hires resize: 1024x0, Hires steps: 10, Hires upscaler: Latent"
    shot = shot_of(parse_infotext(f"cat\nSteps: 20, Sampler: Euler a, Seed: 1, {fields}, Version: v1.10.1"))
    assert shot.hires == Hires(width=1024, steps=10)
    assert shot.source is None
    none = fields.replace("Hires upscaler: Latent", "Hires upscaler: None")
    shot = shot_of(parse_infotext(f"cat\nSteps: 20, Sampler: Euler a, Seed: 1, {none}, Version: v1.10.1"))
    assert shot.hires and shot.hires.upscaler == "Lanczos"


@pytest.mark.parametrize(("first", "size"), [("512x768", (512, 768)), ("0x0", (448, 640))])
def test_a_second_pass_of_2022_is_read(first: str, size: tuple[int, int]) -> None:
    fields = f"Seed: 1, Size: 1024x1536, Denoising strength: 0.45, ENSD: 31337, First pass size: {first}"
    infotext = parse_infotext(f"cat\nSteps: 24, Sampler: DPM++ SDE Karras, CFG scale: 10, {fields}")
    shot = shot_of(infotext)
    assert (shot.width, shot.height) == size and shot.drawn_size == (1024, 1536)
    assert shot.hires == Hires(width=1024, height=1536, denoising_strength=0.45, upscaler="Lanczos")
    assert unread_fields(infotext.fields) == {}
    assert "Hires resize: 1024x1536, Hires upscaler: Lanczos" in write_infotext(shot)


def test_what_is_default_or_unknown_is_left_out() -> None:
    text = write_infotext(Shot(prompt="cat", cfg_scale=7))
    assert "Clip skip" not in text
    assert "Model" not in text
    assert "Negative prompt" not in text
    assert "CFG scale: 7," in text


A1111_TEXT = """girl with an artist's beret, determined
by Alphonse Mucha, ((eyeshadow))
Negative prompt: ugly, (((deformed))), [blurry]
second line
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, \
Lora hashes: "add_detail: 7c6bad76eb54, x: 12", Version: v1.10.1"""


def test_a_picture_of_a1111_is_read() -> None:
    infotext = parse_infotext(A1111_TEXT)
    assert infotext.prompt == "girl with an artist's beret, determined\nby Alphonse Mucha, ((eyeshadow))"
    assert infotext.negative_prompt == "ugly, (((deformed))), [blurry]\nsecond line"
    assert infotext.fields["Lora hashes"] == "add_detail: 7c6bad76eb54, x: 12"
    shot = shot_of(infotext)
    assert (shot.steps, shot.seed, shot.width, shot.height, shot.clip_skip) == (20, 965400086, 512, 768, 1)


def test_lines_below_the_fields_are_no_prompt() -> None:
    below = "\nTemplate: {girl|boy}, beret\nNegative Template: ugly"
    told = parse_infotext(A1111_TEXT)
    assert parse_infotext(A1111_TEXT + below) == told
    assert parse_infotext(A1111_TEXT + "\n\nUsed embeddings: bad_prompt_version2 [afea]") == told


HASHES = """cat <lora:soft:1>
Steps: 20, Sampler: Euler a, Seed: 1, Size: 512x768, Model: any, \
Hashes: {"model": "7440042BBD", "vae": "c6a580b13a", "lora:styles/soft.safetensors": "0123456789", \
"embed:bad, v3": "ba98765432", "other": 3}, \
Civitai resources: [{"type": "checkpoint", "modelVersionId": 12}], Version: ComfyUI"""


def test_hashes_that_other_tools_write() -> None:
    infotext = parse_infotext(HASHES)
    assert shot_of(infotext) == shot_of(parse_infotext(HASHES.replace(', "other": 3}', "}")))
    assert list(unread_fields(infotext.fields)) == []
    assert infotext.weights == Weights(
        "7440042bbd", "any", "c6a580b13a", "", {"bad v3": "ba98765432"}, {"soft": "0123456789"}
    )
    quoted = (
        'cat\nSteps: 20, Sampler: Euler a, Hashes: "{\\"model\\": \\"7440042bbd\\"}", Model hash: 45dee52b0'
    )
    assert parse_infotext(quoted).weights.model_hash == "45dee52b0"
    assert parse_infotext(quoted.rpartition(",")[0]).weights.model_hash == "7440042bbd"


@pytest.mark.parametrize(
    "broken", ['{"model": "7440042bbd"', "{" * 100_000, "[" * 100_000, '["a"]', '{"model": [1]}']
)
def test_broken_hashes_are_none(broken: str) -> None:
    infotext = parse_infotext(f"cat\nSteps: 20, Sampler: Euler a, Seed: 1, Hashes: {broken}")
    assert shot_of(infotext).seed == 1 and infotext.weights == Weights()


def test_a_bare_prompt_is_a_prompt() -> None:
    infotext = parse_infotext("cat, note: this, that")
    assert (infotext.prompt, infotext.fields) == ("cat, note: this, that", {})
    assert shot_of(infotext) == Shot(prompt="cat, note: this, that")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("Steps: many", "steps = 'many'"),
        ("Seed: -1", "seed = '-1'.* a random seed can't be drawn again"),
        ("Clip skip: 40", "clip_skip = '40'"),
        (f"Size: {'9' * 400}x9, First pass size: 0x0", "a size of 999.*8192 pixels a side at most"),
        (f"Size: 512x512, First pass size: {'9' * 7000}x9", "a size of 999"),
        (f"Size: {'9' * 7000}x9", "width = '999"),
        (f"Seed: {'9' * 7000}", "seed = '999"),
    ],
)
def test_values_that_no_picture_can_have(wrong: str, told: str) -> None:
    with pytest.raises(SettingsError, match=f"the picture's text says {told}"):
        shot_of(parse_infotext(f"cat\nSampler: Euler a, CFG scale: 7, Model: x, {wrong}"))


def test_any_version_is_no_error() -> None:
    fields = "Steps: 20, Sampler: Euler a, CFG scale: 7"
    told = [parse_infotext(f"[cat]\n{fields}, Version: v1.{made}") for made in ("5.0", f"{'9' * 7000}.0")]
    assert [shot_of(one).old_editing for one in told] == [True, False]


def test_half_a_letter_is_a_question_mark() -> None:
    told = parse_infotext(
        'cat\nSteps: 1, Seed: 2, Model: "a, \\ud800", Hashes: {"lora:\\udfff": "0123456789"}'
    )
    assert told.fields["Model"] == "a, ?" and told.weights.adapters == {"?": "0123456789"}


def canonical(text: str) -> str:
    """As A1111 would hand it back: lines stripped, no blank lines before the first."""
    return "\n".join(line.strip() for line in text.strip().split("\n")).strip()


PROMPTS = (
    (st.text(alphabet='ab ,:"\\()\n') | st.text())
    .map(canonical)
    .filter(lambda text: not any(line.startswith("Negative prompt:") for line in text.split("\n")))
)
SHARES = st.floats(0, 1)
PLAIN_NAMES = st.text("abc ,:.png", min_size=1).filter(lambda text: text.strip(". "))
DIGESTS = st.sampled_from(["", "0123456789abcdef" * 4])
SOURCES = st.builds(
    Source,
    picture=PLAIN_NAMES,
    sha256=DIGESTS,
    denoising_strength=SHARES,
    mask=st.just("") | PLAIN_NAMES,
    mask_sha256=DIGESTS,
    mask_blur_px=st.integers(0, 64),
    mask_mode=st.sampled_from(["Inpaint masked", "Inpaint not masked"]),
    mask_area=st.sampled_from(["Whole picture", "Only masked"]),
    mask_padding_px=st.integers(0, 256),
    mask_weight=SHARES,
    masked_content=st.sampled_from(["fill", "original", "latent noise", "latent nothing"]),
    resize=st.sampled_from(["Just resize", "Crop and resize", "Resize and fill"]),
)
HIRES = st.builds(
    Hires,
    scale=st.floats(1, 8),
    width=st.integers(0, 128).map(lambda n: 8 * n),
    height=st.integers(0, 128).map(lambda n: 8 * n),
    steps=st.integers(0, 1000),
    denoising_strength=SHARES,
    upscaler=st.sampled_from(["Latent", "Latent (bicubic antialiased)", "Lanczos"]),
    sampler=st.sampled_from(["", *SAMPLERS]),
    schedule=st.sampled_from(["", *SCHEDULES]),
    prompt=st.text(),
    negative_prompt=st.text(),
)
SHOTS = st.builds(
    lambda second, **fields: Shot(**fields, **second),
    second=st.just({}) | st.fixed_dictionaries({"source": SOURCES}) | st.fixed_dictionaries({"hires": HIRES}),
    prompt=PROMPTS,
    negative_prompt=PROMPTS,
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 1000),
    cfg_scale=st.floats(0, 100),
    width=st.integers(1, 1024).map(lambda n: 8 * n),
    height=st.integers(1, 1024).map(lambda n: 8 * n),
    sampler=st.sampled_from(list(SAMPLERS)),
    schedule=st.sampled_from(["Automatic", *SCHEDULES]),
    clip_skip=st.integers(1, 12),
    clip_l_skip=st.booleans(),
    eta=st.none() | st.floats(0, 10),
    emphasis=st.sampled_from(["Original", "No norm", "Ignore", "None", "ComfyUI"]),
    old_editing=st.booleans(),
    noise_source=st.sampled_from(["CPU", "GPU", "NV"]),
    variation_seed=st.integers(0, 2**63 - 1),
    variation_strength=SHARES,
    seed_delta=st.integers(0, 2**62 - 1),
    downcast_alphas=st.booleans(),
    cfg_rescale=SHARES,
    cfg_sigmas=st.none() | st.tuples(st.floats(0, 1), st.floats(1.5, 1e6)),
)
NAMES = st.text(min_size=1).filter(lambda text: "\n" not in text)


@given(SHOTS, NAMES, NAMES)
def test_what_is_written_is_read(shot: Shot, model: str, vae: str) -> None:
    infotext = parse_infotext(write_infotext(shot, Weights("0123456789", model, "9876543210", vae)))
    assert shot_of(infotext) == shot
    assert (infotext.fields["Model"], infotext.fields["VAE"]) == (model, vae)
    assert infotext.weights == Weights("0123456789", model, "9876543210", vae)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_infotext(text)


@pytest.mark.parametrize("once", ["a ", "a", " ", "ab: ", 'ab: "', 'ab: "x, ', "a:", "\\"])
def test_a_long_last_line_is_read_in_linear_time(once: str) -> None:
    """In a time that grew as the square, the first would take hours."""
    began = time.process_time()
    parse_infotext("a prompt\n" + 'x: "' + once * 200_000)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("prompt", ["by matcha", "作者 matcha ✨", "café"])
def test_a_png_carries_its_text_and_lineage(prompt: str) -> None:
    content = png_bytes(Image.new("RGB", (4, 4)), write_infotext(Shot(prompt=prompt)), '{"é": "図"}')
    with Image.open(io.BytesIO(content)) as picture:
        assert shot_of(parse_infotext(picture.text["parameters"])).prompt == prompt  # type: ignore[attr-defined]
        assert picture.text["aid.lineage"] == '{"é": "図"}'  # type: ignore[attr-defined]


@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("prompt", ["by matcha", "作者 matcha ✨", "café"])
def test_every_format_carries_its_text(format: Format, prompt: str, tmp_path: Path) -> None:
    asked = Shot(prompt=prompt, negative_prompt="blurry")
    file = tmp_path / f"picture{SUFFIX[format]}"
    lineage = describe("generate", {"prompt": f'{prompt} <&>"\uffff'}, {})
    content = picture_bytes(
        Image.new("RGB", (16, 8), "red"), write_infotext(asked), lineage.embedded(), format=format
    )
    file.write_bytes(content)
    text = picture_text(file)
    assert text.summary == f"{format.upper()}, 16x8"
    assert shot_of(parse_infotext(text.parameters)) == asked
    assert embedded_lineage(file) == lineage == Lineage.model_validate_json(text.texts["aid.lineage"])


def test_webp_of_full_quality_loses_nothing() -> None:
    chance = Image.effect_noise((32, 32), 90).convert("RGB")
    content = picture_bytes(chance, "cat", format="webp", quality=100)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.convert("RGB").tobytes() == chance.tobytes()


def test_a_jpeg_has_no_room_for_a_book() -> None:
    with pytest.raises(SettingsError, match="too long for a JPEG"):
        picture_bytes(Image.new("RGB", (8, 8)), "cat " * 10_000, format="jpeg")
    with pytest.raises(SettingsError, match="too long for a JPEG"):
        picture_bytes(Image.new("RGB", (8, 8)), "cat", "cat " * 20_000, format="jpeg")
    assert picture_bytes(Image.new("RGB", (8, 8)), "cat " * 10_000, format="webp")


@pytest.mark.parametrize("format", SUFFIX)
def test_sd_parsers_reads_it(format: Format, tmp_path: Path) -> None:
    """Another project's reader, on what we write."""
    from sd_parsers import ParserManager

    asked = Shot(prompt="by 作者, (cat:1.2)", negative_prompt="blurry, dog", seed=7, hires=Hires(steps=3))
    file = tmp_path / f"picture{SUFFIX[format]}"
    text = write_infotext(asked, Weights("a1b2c3d4e5", "aid-v2.8"))  # it knows no quotes around a name
    file.write_bytes(picture_bytes(Image.new("RGB", (16, 8)), text, format=format))
    read = ParserManager().parse(file)
    assert read is not None
    assert [prompt.value for prompt in read.prompts] == [asked.prompt]
    assert [prompt.value for prompt in read.negative_prompts] == [asked.negative_prompt]
    (sampler,) = read.samplers
    assert (sampler.name, sampler.parameters["steps"], sampler.parameters["seed"]) == ("Euler a", "32", "7")
    assert [(model.name, model.hash) for model in read.models] == [("aid-v2.8", "a1b2c3d4e5")]
