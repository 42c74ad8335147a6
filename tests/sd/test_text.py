"""Prompts to encodings: against diffusers' own encoding, and A1111's rules for chunks and embeddings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aid.errors import ModelError
from aid.sd.architecture import TINY
from aid.sd.checkpoint import StableDiffusion, create_checkpoint
from aid.sd.embedding import Embedding
from aid.sd.text import Chunk, chunk_prompt, embeddings_in, encode_prompts, spell
from aid.sd.tokenizer import BOS, EOS, load_tokenizer

TOKENIZER = load_tokenizer()
CAT, COMMA = 2368, 267


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    """As after training, the last layer norm has biases: CLIP's vectors have a mean."""
    made = create_checkpoint(TINY, seed=3)
    norm = getattr(made.text_encoder, "text_model", made.text_encoder).final_layer_norm
    torch.nn.init.uniform_(norm.bias, 0, 0.4, generator=torch.Generator().manual_seed(1))
    return made


def chunks(prompt: str, *known: Embedding) -> list[Chunk]:
    return chunk_prompt(TOKENIZER, prompt, spell(TOKENIZER, {one.name: one for one in known}))


def embedding(name: str, count: int, width: int = TINY.text_width) -> Embedding:
    return Embedding(name, torch.randn((count, width), generator=torch.Generator().manual_seed(count)))


def text_of(chunk: Chunk) -> list[int]:
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
        encoded = encode_prompts(model, [prompt])
    assert torch.allclose(encoded, pipeline_encoding(model, prompt), atol=1e-5)


@pytest.mark.parametrize("clip_skip", [2, 5, 12])
def test_clip_skip_is_a_shallower_encoder(model: StableDiffusion, clip_skip: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    layers = 12 - (clip_skip - 1)
    shallow = CLIPTextModel(CLIPTextConfig(**TINY.text_config() | {"num_hidden_layers": layers})).eval()
    shallow.load_state_dict(model.text_encoder.state_dict(), strict=False)
    ids = TOKENIZER("red hair", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shallow(ids).last_hidden_state
        assert torch.allclose(encode_prompts(model, ["red hair"], clip_skip), expected, atol=1e-5)


def test_an_empty_prompt_is_one_chunk_of_padding() -> None:
    assert chunks("") == [Chunk([BOS] + [EOS] * 76, [1.0] * 77)]


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
        plain, weighed = encode_prompts(model, ["cat cat cat"]), encode_prompts(model, ["cat (cat:1.5) cat"])
    ratio = weighed / plain
    assert torch.allclose(ratio[0, 2], ratio[0, 1] * 1.5, rtol=1e-4)
    assert weighed.mean().item() == pytest.approx(plain.mean().item(), rel=1e-4)


def test_emphasis_survives_an_encoder_without_a_mean() -> None:
    untrained = create_checkpoint(TINY, seed=3)
    with torch.no_grad():
        plain, weighed = (encode_prompts(untrained, [prompt]) for prompt in ("cat dog", "cat (dog:1.5)"))
    assert torch.allclose(weighed[0, 2], plain[0, 2] * 1.5)
    assert torch.allclose(weighed[0, 3:], plain[0, 3:])


def test_shorter_prompts_are_followed_by_empty_chunks(model: StableDiffusion) -> None:
    with torch.no_grad():
        long, short = encode_prompts(model, ["cat " * 80, "(dog)"])
        alone, empty = encode_prompts(model, ["(dog)"])[0], encode_prompts(model, [""])[0]
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
        words = encode_prompts(model, ["a cat, red hair smile, (dog)"])
        named = encode_prompts(model, ["a cat, badv3, (dog)"], embeddings={"badv3": copy})
    assert torch.allclose(words, named, atol=1e-6)


def test_gradients_reach_the_vectors_and_only_where_they_stand(model: StableDiffusion) -> None:
    vectors = torch.zeros((3, TINY.text_width), requires_grad=True)
    known = {"badv3": Embedding("badv3", vectors)}
    encode_prompts(model, ["a cat", "(badv3:1.2), cat"], 1, known)[0].sum().backward()
    assert vectors.grad is None or not vectors.grad.any()
    encode_prompts(model, ["a cat", "(badv3:1.2), cat"], 2, known)[1].square().sum().backward()
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
