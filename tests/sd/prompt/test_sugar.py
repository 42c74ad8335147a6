"""AID's short forms: mixes of styles, choices and wildcards by the seed, palettes, comments."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linear import is_linear

from aid.core.catalogue import Parameters
from aid.errors import FileError
from aid.sd.model.architecture import TINY, TINY_SDXL
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint
from aid.sd.prompt.attention import parse_attention
from aid.sd.prompt.mixing import variants
from aid.sd.prompt.palette import palette
from aid.sd.prompt.prompt import Pass, read_prompt
from aid.sd.prompt.sugar import Expanded, expand, read_wildcards, strip_comments
from aid.sd.prompt.text import Conditioning, encode_prompts, encode_schedule

MIX = "{by lorelei:0.6 | by micah:0.4}"


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    made = create_checkpoint(TINY, seed=3)
    norm = getattr(made.text_encoder, "text_model", made.text_encoder).final_layer_norm
    torch.nn.init.uniform_(norm.bias, 0, 0.4, generator=torch.Generator().manual_seed(1))
    return made


def mixed(model: StableDiffusion, prompt: str, **words: str) -> Conditioning:
    expanded = expand(prompt)
    assert not expanded.notes
    with torch.no_grad():
        return encode_schedule(model, [expanded.text], expanded.mixes, **words)  # type: ignore[arg-type]


def plain(model: StableDiffusion, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return encode_prompts(model, [prompt]).context


def test_a_mix_has_shares_that_add_up_to_one() -> None:
    made = expand(f"a {MIX}, (b:1.2)")
    assert made.mixes == (((0.6, "by lorelei"), (0.4, "by micah")),)
    assert made.shown() == "a {by lorelei:0.6 | by micah:0.4}, (b:1.2)"
    assert expand("{a:3|b:1}").mixes == (((0.75, "a"), (0.25, "b")),)
    assert expand("{a:1|b:0|c:1}").mixes == (((0.5, "a"), (0.5, "c")),)
    assert expand("{{a:1|b:1}:1|c:1}").mixes[1] == ((0.25, "a"), (0.25, "b"), (0.5, "c"))


def test_equal_options_are_the_plain_prompt(model: StableDiffusion) -> None:
    made = mixed(model, "{by micah:0.6|by micah:0.4}, (red:1.3) hair").context
    assert torch.allclose(made, plain(model, "by micah, (red:1.3) hair"), atol=1e-5)


def test_a_whole_weight_is_that_option_alone(model: StableDiffusion) -> None:
    made = mixed(model, "{by micah:1|by somebody with a long name:0}, red hair").context
    assert torch.allclose(made, plain(model, "by micah, red hair"), atol=1e-6)


def test_words_before_a_mix_are_untouched_and_lengths_exact(model: StableDiffusion) -> None:
    """CLIP is causal: what stands before the mix has the same vectors in every variant."""
    made = mixed(model, "red hair, {by micah:0.5|by somebody else:0.5}, cat").context
    assert made.shape == (1, 77, TINY.text_width)
    assert torch.allclose(made[0, :4], plain(model, "red hair, cat")[0, :4], atol=1e-5)
    full = "cat " * 73
    assert mixed(model, full + "{a b:1|c:1}").context.shape[1] == 77
    assert mixed(model, full + "{a b c:1|c:1}").context.shape[1] == 154


def test_words_after_a_mix_are_averaged_with_themselves(model: StableDiffusion) -> None:
    """`cat` stands one place later in the longer variant; the mean is of the two cats."""
    made = mixed(model, "{red:0.25|red hair:0.75} cat").context[0]
    short, long = plain(model, "red cat")[0], plain(model, "red hair cat")[0]
    assert torch.allclose(made[3], 0.25 * short[2] + 0.75 * long[3], atol=1e-5)
    assert torch.allclose(made[2], 0.25 * short[1] + 0.75 * long[2], atol=1e-5)
    assert torch.allclose(made[4:], 0.25 * short[4:] + 0.75 * long[4:], atol=1e-5)


def test_a_mix_is_continuous_and_symmetric(model: StableDiffusion) -> None:
    one, two = (mixed(model, f"{{a red:{w}|b:{1 - w:.3f}}} c").context for w in (0.5, 0.501))
    assert 0 < (one - two).abs().max() < 0.05
    other = mixed(model, "{b:0.5|a red:0.5} c").context
    assert torch.allclose(one, other, atol=1e-6)


def test_mixes_work_under_edits_weights_and_for_sdxl(model: StableDiffusion) -> None:
    expanded = expand(f"[{MIX}:by wlop:0.5] AND ({MIX}, x:1.2)")
    one, two = read_prompt(expanded.text, Pass(10)).parts
    texts = {words for _, words in variants(one.at(0), expanded.mixes, marked=False)}
    assert texts == {"by lorelei", "by micah"} and one.at(9) == "by wlop"
    assert [parse_attention(words)[0][1] for _, words in variants(two.at(0), expanded.mixes)] == [1.0, 1.0]
    made = mixed(create_checkpoint(TINY_SDXL, seed=1), "{a:1|b:1} c")
    assert made.pooled is not None and made.pooled.shape == (1, TINY_SDXL.text_2_width)


def test_an_empty_option_is_less_of_the_other(model: StableDiffusion) -> None:
    made = mixed(model, "{by micah:0.5|:0.5} cat").context
    assert torch.isfinite(made).all() and made.shape[1] == 77


def test_too_many_combinations_are_cut_and_told() -> None:
    made = expand("{a:1|b:1}" * 6)
    assert len(variants(made.text, made.mixes)) <= 16
    assert any("combinations" in note.text for note in made.notes)


def test_choices_are_decided_by_the_seed_alone() -> None:
    text = "{red|blue|green} hair, {1girl|1boy}"
    assert expand(text, 7) == expand(text, 7)
    seen = Counter(expand(text, seed).text for seed in range(300))
    assert len(seen) == 6 and min(seen.values()) > 20
    often = Counter(expand("{3::a|b}", seed).text for seed in range(400))
    assert often["a"] == pytest.approx(300, abs=40)
    assert expand("{red|blue|green}", 12345).text == "blue", "the same words everywhere, for ever"


def test_choices_nest_and_keep_edits_whole() -> None:
    assert {expand("{a{1|2}|b}", seed).text for seed in range(60)} == {"a1", "a2", "b"}
    assert {expand("{[x|y]|b}", seed).text for seed in range(60)} == {"[x|y]", "b"}


@pytest.mark.parametrize(
    "text", ["{x}", "{a|b", "a|b}", r"\{a|b\}", "{}", "[a|b]", "__nobody__", "a_b __ c__"]
)
def test_what_is_no_short_form_stays(text: str) -> None:
    assert expand(text).text == text


def test_wildcards_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "clothes").mkdir()
    (tmp_path / "hair.txt").write_text("# colours\nred hair\n\nblue hair\n")
    (tmp_path / "clothes" / "hat.txt").write_text("{straw|top} hat\n")
    (tmp_path / "loop.txt").write_text("x __loop__\n")
    known = read_wildcards(tmp_path)
    assert known["hair"] == ("red hair", "blue hair")
    drawn = {expand("__hair__, __clothes/hat__", seed, known).text for seed in range(50)}
    assert drawn == {f"{hair} hair, {hat} hat" for hair in ("red", "blue") for hat in ("straw", "top")}
    for wrong in ("hiar", "Hair"):
        (note,) = expand(f"a __{wrong}__", 0, known).notes
        assert note.at == 2 and "did you mean `hair`" in note.text
    odds = {"hair": ("9::red", "blue", " .0 :: x", "0::never")}
    counted = Counter(expand("__hair__", seed, odds).text for seed in range(1100))
    assert 850 < counted["red"] < 950 and counted.keys() == {"red", "blue", ".0 :: x"}
    looped = expand("__loop__", 0, known)
    assert looped.text.startswith("x x") and "leads to itself" in looped.notes[0].text
    with pytest.raises(FileError, match="no folder"):
        read_wildcards(tmp_path / "none")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match=r"bad\.txt"):
        read_wildcards(tmp_path)


def test_a_palette_is_a_prompt_a_style() -> None:
    triggers = ("by wlop", "by someone (artist)")
    assert palette("1girl, {style}, smile", triggers)[0] == "1girl, by wlop, smile"
    card = Parameters(prompt="{trigger}, masterpiece, {tags}")
    assert palette("smile", triggers, card) == [
        "by wlop, masterpiece, smile", r"by someone \(artist\), masterpiece, smile",
    ]  # fmt: skip
    assert parse_attention(palette("smile", triggers)[1]) == [("by someone (artist), smile", 1.0)]


def test_comments_are_dropped_as_a1111_does() -> None:
    assert strip_comments("a, # b\nc") == "a, \nc"
    assert strip_comments("# all\na") == "\na"


@given(st.text(alphabet="{}|:_[]\\ab 0.5\U000f0000\U000f1000") | st.text(), st.integers(0, 9))
@settings(deadline=None, max_examples=300)
def test_any_text_expands(text: str, seed: int) -> None:
    made = expand(text, seed, {"a": ("{b|a}", "__a__")})
    assert isinstance(made, Expanded)
    shares = [share for share, _ in variants(made.text, made.mixes)]
    assert sum(shares) == pytest.approx(1.0) and 1 <= len(shares) <= 16
    assert all(0 <= note.at <= len(text) for note in made.notes)


@pytest.mark.parametrize("piece", ["{", "{a|", "{a:1|b:1}", "__a__", "__", "{a|b}", "}", "_", "{x}", "{|"])
def test_expanding_takes_linear_time(piece: str) -> None:
    assert is_linear(lambda count: expand(piece * count, 1, {"a": ("b",)}), 100_000 // len(piece))
