"""The `parameters` text: A1111's spelling, its parser's corners, and round trips."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import aid
from aid.core.shot import Shot
from aid.errors import SettingsError
from aid.sd.infotext import Weights, parse_infotext, png_bytes, shot_of, write_infotext

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


def test_a_bare_prompt_is_a_prompt() -> None:
    infotext = parse_infotext("cat, note: this, that")
    assert (infotext.prompt, infotext.fields) == ("cat, note: this, that", {})
    assert shot_of(infotext) == Shot(prompt="cat, note: this, that")


@pytest.mark.parametrize("wrong", ["Steps: many", "Seed: -1", "Clip skip: 40"])
def test_values_that_no_picture_can_have(wrong: str) -> None:
    with pytest.raises(SettingsError, match="the picture's text says"):
        shot_of(parse_infotext(f"cat\nSampler: Euler a, CFG scale: 7, Model: x, {wrong}"))


def canonical(text: str) -> str:
    """As A1111 would hand it back: lines stripped, no blank lines before the first."""
    return "\n".join(line.strip() for line in text.strip().split("\n")).strip()


PROMPTS = (
    (st.text(alphabet='ab ,:"\\()\n') | st.text())
    .map(canonical)
    .filter(lambda text: not any(line.startswith("Negative prompt:") for line in text.split("\n")))
)
SHOTS = st.builds(
    Shot,
    prompt=PROMPTS,
    negative_prompt=PROMPTS,
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 1000),
    cfg_scale=st.floats(0, 100),
    width=st.integers(1, 1024).map(lambda n: 8 * n),
    height=st.integers(1, 1024).map(lambda n: 8 * n),
    sampler=st.sampled_from(["Euler a", "Euler"]),
    clip_skip=st.integers(1, 12),
)
NAMES = st.text(min_size=1).filter(lambda text: "\n" not in text)


@given(SHOTS, NAMES, NAMES)
def test_what_is_written_is_read(shot: Shot, model: str, vae: str) -> None:
    infotext = parse_infotext(write_infotext(shot, Weights("0123456789", model, "9876543210", vae)))
    assert shot_of(infotext) == shot
    assert (infotext.fields["Model"], infotext.fields["VAE"]) == (model, vae)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_infotext(text)


@pytest.mark.parametrize("prompt", ["by matcha", "作者 matcha ✨", "café"])
def test_a_png_carries_its_text_and_lineage(prompt: str) -> None:
    content = png_bytes(Image.new("RGB", (4, 4)), write_infotext(Shot(prompt=prompt)), '{"é": "図"}')
    with Image.open(io.BytesIO(content)) as picture:
        assert shot_of(parse_infotext(picture.text["parameters"])).prompt == prompt  # type: ignore[attr-defined]
        assert picture.text["aid.lineage"] == '{"é": "図"}'  # type: ignore[attr-defined]
