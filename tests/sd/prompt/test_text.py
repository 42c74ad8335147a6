"""Prompts to encodings: against diffusers' own encoding, and A1111's rules for chunks and embeddings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linear import is_linear
from torch import Tensor

from aid.core.shot import Shot
from aid.errors import ModelError, SettingsError
from aid.sd.drawing.shot_text import Texts
from aid.sd.embedding.file import Embedding
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint
from aid.sd.model.tokenizer import BOS, EOS, load_tokenizer, tokenize
from aid.sd.prompt.chunk import Chunk, chunk_prompt, embeddings_in, spell
from aid.sd.prompt.text import Conditioning, encode_prompts, encode_schedule, repeat_last, size_ids

TOKENIZER = load_tokenizer()
CAT, COMMA = 2368, 267


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    """As after training, the last layer norm has biases: CLIP's vectors have a mean."""
    made = create_checkpoint(TINY, seed=3)
    norm = getattr(made.text_encoder, "text_model", made.text_encoder).final_layer_norm
    torch.nn.init.uniform_(norm.bias, 0, 0.4, generator=torch.Generator().manual_seed(1))
    return made


def chunks(prompt: str, *known: Embedding) -> list[Chunk[Embedding]]:
    return chunk_prompt(prompt, spell({one.name: one for one in known}))


def embedding(name: str, count: int, width: int = TINY.text_width) -> Embedding:
    return Embedding(name, torch.randn((count, width), generator=torch.Generator().manual_seed(count)))


def encoded(model: StableDiffusion, *words: object, **more: object) -> Tensor:
    return encode_prompts(model, *words, **more).context  # type: ignore[arg-type]


def text_of(chunk: Chunk[Embedding]) -> list[int]:
    """The 75 ids without the padding at the end."""
    ids = chunk.ids[1:-1]
    while ids and ids[-1] == EOS:
        ids.pop()
    return ids


def pipeline_encoding(model: StableDiffusion, prompt: str) -> Tensor:
    """diffusers' StableDiffusionPipeline on the same parts."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        model.vae, model.text_encoder, TOKENIZER, model.unet, PNDMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach()


@pytest.mark.parametrize("prompt", ["by Matcha, 1girl, red hair!", "", "cat " * 75])
def test_plain_prompts_encode_as_in_diffusers(model: StableDiffusion, prompt: str) -> None:
    with torch.no_grad():
        made = encoded(model, [prompt])
    assert torch.allclose(made, pipeline_encoding(model, prompt), atol=1e-5)


@pytest.mark.parametrize("clip_skip", [2, 5, 12])
def test_clip_skip_is_a_shallower_encoder(model: StableDiffusion, clip_skip: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    layers = 12 - (clip_skip - 1)
    shallow = CLIPTextModel(CLIPTextConfig(**TINY.text_config() | {"num_hidden_layers": layers})).eval()
    shallow.load_state_dict(model.text_encoder.state_dict(), strict=False)
    ids = TOKENIZER("red hair", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shallow(ids).last_hidden_state
        assert torch.allclose(encoded(model, ["red hair"], clip_skip), expected, atol=1e-5)


def test_an_empty_prompt_is_one_chunk_of_padding() -> None:
    assert chunks("") == [Chunk([BOS] + [EOS] * 76, [1.0] * 77, [], 0)]


def test_75_tokens_fit_one_chunk_and_76_do_not() -> None:
    assert len(chunks("cat " * 75)) == 1
    assert [len(text_of(chunk)) for chunk in chunks("cat " * 76)] == [75, 1]


def test_words_after_a_near_comma_move_to_the_next_chunk() -> None:
    near, far = chunks("cat " * 60 + "," + "dog " * 30), chunks("cat " * 50 + "," + "dog " * 30)
    assert [len(text_of(chunk)) for chunk in near] == [61, 30]
    assert [len(text_of(chunk)) for chunk in far] == [75, 6]
    at_20 = chunks("cat " * 55 + "," + "dog " * 20)
    assert [len(text_of(chunk)) for chunk in at_20] == [56, 20]


def test_a_comma_at_the_edge_starts_the_next_chunk() -> None:
    first, second = chunks("cat " * 70 + "," + "cat " * 4 + ", dog")
    assert (len(text_of(first)), text_of(second)[0]) == (75, COMMA)


def test_break_fills_the_chunk_even_an_empty_one() -> None:
    assert [len(text_of(chunk)) for chunk in chunks("cat BREAK cat cat")] == [1, 2]
    assert [len(text_of(chunk)) for chunk in chunks("BREAK cat")] == [0, 1]
    assert len(chunks("cat BREAK")) == 1


def test_weights_stand_at_their_tokens() -> None:
    (chunk,) = chunks("cat (cat:1.5) cat")
    assert chunk.weights == [1.0, 1.0, 1.5, 1.0] + [1.0] * 73


def test_emphasis_scales_tokens_and_restores_the_mean(model: StableDiffusion) -> None:
    with torch.no_grad():
        plain, weighed = encoded(model, ["cat cat cat"]), encoded(model, ["cat (cat:1.5) cat"])
    ratio = weighed / plain
    assert torch.allclose(ratio[0, 2], ratio[0, 1] * 1.5, rtol=1e-4)
    assert weighed.mean().item() == pytest.approx(plain.mean().item(), rel=1e-4)


def test_emphasis_survives_an_encoder_without_a_mean() -> None:
    untrained = create_checkpoint(TINY, seed=3)
    with torch.no_grad():
        plain, weighed = (encoded(untrained, [prompt]) for prompt in ("cat dog", "cat (dog:1.5)"))
    assert torch.allclose(weighed[0, 2], plain[0, 2] * 1.5)
    assert torch.allclose(weighed[0, 3:], plain[0, 3:])


def test_shorter_prompts_are_followed_by_empty_chunks(model: StableDiffusion) -> None:
    with torch.no_grad():
        long, short = encoded(model, ["cat " * 80, "(dog)"])
        alone, empty = encoded(model, ["(dog)"])[0], encoded(model, [""])[0]
    assert long.shape == (154, TINY.text_width)
    assert torch.allclose(short, torch.cat([alone, empty]), atol=1e-6)


def test_embeddings_are_found_by_name_longest_first_in_any_case() -> None:
    short, long = embedding("aid", 2), embedding("aid210", 3)
    (chunk,) = chunks("a, (AID210:0.8), aid", short, long)
    assert chunk.fixes == [(3, long), (7, short)]
    assert chunk.weights[3:6] == [0.8] * 3
    assert text_of(chunk)[2:5] == [0, 0, 0]
    assert embeddings_in([chunk, chunk]) == [long, short]


def test_an_embedding_is_never_split() -> None:
    bad = embedding("badv3", 10)
    first, second = chunks("cat " * 70 + "badv3 dog", bad)
    assert (len(text_of(first)), first.fixes, second.fixes) == (70, [], [(1, bad)])


def test_an_embedding_moves_with_the_words_after_a_comma() -> None:
    bad = embedding("badv3", 10)
    first, second = chunks("cat " * 60 + ", badv3" + " dog" * 9, bad)
    assert (len(text_of(first)), first.fixes) == (61, [])
    assert second.fixes == [(1, bad)]
    assert text_of(second) == [0] * 10 + [1929] * 9


def test_an_embedding_larger_than_a_chunk_is_refused() -> None:
    assert len(chunks("big", embedding("big", 75))) == 1
    with pytest.raises(ModelError, match="76 vectors"):
        chunks("big", embedding("big", 76))


def test_vectors_of_known_words_encode_as_the_words(model: StableDiffusion) -> None:
    table = model.text_encoder.get_input_embeddings().weight
    ids = TOKENIZER("red hair smile", add_special_tokens=False).input_ids
    copy = Embedding("badv3", table[ids].detach())
    with torch.no_grad():
        words = encoded(model, ["a cat, red hair smile, (dog)"])
        named = encoded(model, ["a cat, badv3, (dog)"], embeddings={"badv3": copy})
    assert torch.allclose(words, named, atol=1e-6)


def test_gradients_reach_the_vectors_and_only_where_they_stand(model: StableDiffusion) -> None:
    vectors = torch.zeros((3, TINY.text_width), requires_grad=True)
    known = {"badv3": Embedding("badv3", vectors)}
    encoded(model, ["a cat", "(badv3:1.2), cat"], 1, known)[0].sum().backward()
    assert vectors.grad is None or not vectors.grad.any()
    encoded(model, ["a cat", "(badv3:1.2), cat"], 2, known)[1].square().sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(dim=1) > 0).all()


WORDS = st.lists(
    st.sampled_from(["cat", ",", "BREAK", "aid", "aid210", "(dog:1.3)", "漢字", "!!"]), max_size=200
)


@given(WORDS)
@settings(max_examples=40, deadline=None)
def test_chunks_are_whole_and_keep_every_token_in_order(words: list[str]) -> None:
    prompt, short, long = " ".join(words), embedding("aid", 2), embedding("aid210", 7)
    made = chunks(prompt, short, long)
    assert made
    for chunk in made:
        assert (len(chunk.ids), len(chunk.weights), chunk.ids[0], chunk.ids[-1]) == (77, 77, BOS, EOS)
        for position, one in chunk.fixes:
            assert chunk.ids[position : position + len(one.vectors)] == [0] * len(one.vectors)
    wanted = [id for word in words if word != "BREAK" for id in expected_ids(word)]
    assert [id for chunk in made for id in text_of(chunk)] == wanted


def expected_ids(word: str) -> list[int]:
    placeholders = {"aid": [0] * 2, "aid210": [0] * 7}
    if word in placeholders:
        return placeholders[word]
    text = word.removeprefix("(").removesuffix(":1.3)")
    ids: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return ids


MODES = ("Original", "No norm", "Ignore", "None", "ComfyUI")


def by_hand(model: StableDiffusion, prompt: str, weights: dict[str, float], mode: str) -> Tensor:
    """One chunk of plain words, each word weighed by itself: another formulation of every mode."""
    ids = TOKENIZER(prompt, padding="max_length", return_tensors="pt").input_ids
    nothing = TOKENIZER("", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        z, empty = (model.text_encoder(one).last_hidden_state[0].double() for one in (ids, nothing))
    made = z.clone()
    for place, word in enumerate(prompt.split(), start=1):
        weight = weights.get(word, 1.0)
        made[place] = torch.lerp(empty[place], z[place], weight) if mode == "ComfyUI" else z[place] * weight
    return made * (z.sum() / made.sum()) if mode == "Original" else made


@pytest.mark.parametrize("mode", ["Original", "No norm", "ComfyUI"])
def test_emphasis_modes_against_another_formulation(model: StableDiffusion, mode: str) -> None:
    with torch.no_grad():
        made = encoded(model, ["cat (dog:1.5) (red:0.4) hair"], emphasis=mode)
    expected = by_hand(model, "cat dog red hair", {"dog": 1.5, "red": 0.4}, mode)
    assert torch.allclose(made[0].double(), expected, atol=1e-5)


@torch.no_grad()
def test_emphasis_ignored_or_not_read(model: StableDiffusion) -> None:
    assert torch.equal(encoded(model, ["a (cat:1.5)"], emphasis="Ignore"), encoded(model, ["a cat"]))
    literal = encoded(model, ["a (cat:1.5) BREAK"], emphasis="None")
    assert torch.equal(literal, encoded(model, [r"a \(cat:1.5\) break"]))
    with pytest.raises(SettingsError, match="'Loud' is no emphasis mode; expected Original"):
        encoded(model, ["a"], emphasis="Loud")


@torch.no_grad()
def test_variants_of_one_prompt_share_their_mean(model: StableDiffusion) -> None:
    """A1111 restores the mean of all the texts of a schedule together, repetitions included."""
    texts = ["a (cat:1.5)", "a (cat:1.5)", "(dog:0.5) red"]
    made = encode_schedule(model, texts).context
    plain = torch.cat([encoded(model, [text], emphasis="Ignore") for text in texts])
    scaled = torch.cat([encoded(model, [text], emphasis="No norm") for text in texts])
    assert torch.allclose(made, scaled * (plain.sum() / scaled.sum()), atol=1e-5)
    assert encode_schedule(model, ["a", "cat " * 80]).context.shape[1] == 154


def test_tokens_are_those_of_transformers() -> None:
    texts = ["by Matcha, 1girl!", "E\u0301t\u00e9 \u6f22\u5b57", "<|endoftext|> a", "it's\u3000x", "\x00", ""]
    assert tokenize(texts) == TOKENIZER(texts, add_special_tokens=False).input_ids


@given(st.lists(st.text(max_size=20), max_size=4))
@settings(deadline=None)
def test_tokens_of_any_text_are_those_of_transformers(texts: list[str]) -> None:
    assert tokenize(texts) == (TOKENIZER(texts, add_special_tokens=False).input_ids if texts else [])


@pytest.fixture(scope="module")
def xl() -> StableDiffusion:
    return create_checkpoint(TINY_SDXL, seed=3)


def xl_pipeline_encoding(xl: StableDiffusion, prompt: str, **words: object) -> tuple[Tensor, Tensor]:
    """diffusers' StableDiffusionXLPipeline on the same parts; its second tokenizer pads with 0."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    second = load_tokenizer.__wrapped__()
    second.pad_token = "!"
    pipe = StableDiffusionXLPipeline(
        xl.vae, xl.text_encoder, xl.text_encoder_2, TOKENIZER, second, xl.unet, EulerDiscreteScheduler(),
        add_watermarker=False,
    )  # fmt: skip
    context, _, pooled, _ = pipe.encode_prompt(
        prompt, device="cpu", do_classifier_free_guidance=False, **words
    )
    return context.detach(), pooled.detach()


@pytest.mark.parametrize("prompt", ["by Matcha, red hair!", "", "cat " * 75])
@torch.no_grad()
def test_sdxl_encodes_as_in_diffusers(xl: StableDiffusion, prompt: str) -> None:
    made = encode_prompts(xl, [prompt])
    context, pooled = xl_pipeline_encoding(xl, prompt)
    assert made.context.shape == (1, 77, TINY_SDXL.context_width)
    assert made.pooled is not None
    assert torch.allclose(made.context, context, atol=1e-5)
    assert torch.allclose(made.pooled, pooled, atol=1e-5)


@torch.no_grad()
def test_sdxl_minds_clip_skip_only_if_told(xl: StableDiffusion) -> None:
    width = TINY_SDXL.text_width
    plain, three = encode_prompts(xl, ["a cat"]), encode_prompts(xl, ["a cat"], 3)
    assert torch.equal(plain.context, three.context)
    told = encode_prompts(xl, ["a cat"], 3, clip_l_skip=True)
    context, _ = xl_pipeline_encoding(xl, "a cat", clip_skip=1)
    assert torch.allclose(told.context[..., :width], context[..., :width], atol=1e-5)
    assert torch.equal(told.context[..., width:], plain.context[..., width:])
    shots = [Shot(prompt="a cat", clip_skip=3, clip_l_skip=told) for told in (False, True)]
    with Texts(xl) as texts:
        guides = [texts.guide(shot).sides[0][1].context for shot in shots]
    assert torch.equal(guides[0], plain.context) and torch.equal(guides[1], told.context)


@torch.no_grad()
def test_sdxl_pools_the_first_chunk_and_never_weighs_it(xl: StableDiffusion) -> None:
    long = encode_prompts(xl, ["a (cat:1.5) BREAK dog"])
    short = encode_prompts(xl, ["a cat"])
    assert long.pooled is not None and short.pooled is not None
    assert long.context.shape[1] == 154
    assert torch.allclose(long.pooled, short.pooled, atol=1e-6)


@torch.no_grad()
def test_sdxl_weighs_each_encoder_by_itself(xl: StableDiffusion) -> None:
    plain, weighed = (encode_prompts(xl, [text]).context for text in ("cat dog", "cat (dog:1.5)"))
    halves = (slice(None, TINY_SDXL.text_width), slice(TINY_SDXL.text_width, None))
    for half in halves:
        scaled = plain[..., half].clone()
        scaled[:, 2] *= 1.5
        ratio = plain[..., half].mean() / scaled.mean()
        near_zero = plain[..., half].mean().abs() < 0.01 * plain[..., half].abs().mean()
        assert torch.allclose(weighed[..., half], scaled if near_zero else scaled * ratio, atol=1e-4)


@torch.no_grad()
def test_sdxl_zeroes_what_is_empty_if_asked(xl: StableDiffusion) -> None:
    zero = encode_prompts(xl, ["", ""], zero_empty=True)
    assert not zero.context.any() and zero.pooled is not None and not zero.pooled.any()
    assert encode_prompts(xl, [""]).context.any()
    assert encode_prompts(xl, ["", "a"], zero_empty=True).context[0].any()


@torch.no_grad()
def test_sdxl_embeddings_have_vectors_for_both(xl: StableDiffusion) -> None:
    tables = [e.get_input_embeddings().weight for e in (xl.text_encoder, xl.text_encoder_2)]
    ids = tokenize(["red hair"])[0]
    copy = Embedding("badxl", tables[0][ids], tables[1][ids])
    words, named = (
        encode_prompts(xl, [text], embeddings={"badxl": copy}) for text in ("a red hair, b", "a badxl, b")
    )
    assert words.pooled is not None and named.pooled is not None
    assert torch.allclose(words.context, named.context, atol=1e-6)
    assert torch.allclose(words.pooled, named.pooled, atol=1e-6)
    with pytest.raises(ModelError, match=r"embedding one has vectors for one text encoder"):
        encode_prompts(xl, ["one"], embeddings={"one": Embedding("one", tables[0][ids])})


@torch.no_grad()
def test_sd2_pads_with_zeros_and_ignores_clip_skip() -> None:
    sd2 = create_checkpoint(TINY_SD2, seed=3)
    ids = torch.tensor([[BOS, *tokenize(["red hair"])[0], EOS, *[0] * 73]])
    expected = sd2.text_encoder(ids).last_hidden_state
    assert torch.allclose(encoded(sd2, ["red hair"]), expected, atol=1e-6)
    assert torch.equal(encoded(sd2, ["red hair"], 2), encoded(sd2, ["red hair"]))


def test_sizes_and_lengths() -> None:
    assert size_ids((1024, 768), (0, 8), (512, 384)) == (1024, 768, 0, 8, 512, 384)
    context = torch.arange(6.0).reshape(3, 2)
    assert repeat_last(context, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    two = Conditioning(context.unsqueeze(0), torch.ones(1, 4))
    assert two[0].context.shape == (3, 2) and two[0].pooled is not None


@pytest.mark.parametrize("words", ["a, (cat:1.2) ", "aid ", "漢", "a"])
def test_a_100_kb_prompt_is_cut_in_linear_time(words: str) -> None:
    spelt = spell({"aid": embedding("aid", 2)})
    assert is_linear(lambda count: chunk_prompt(words * count, spelt), 100_000 // len(words.encode()))
