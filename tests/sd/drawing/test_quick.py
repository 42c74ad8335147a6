"""The U-Net's quick layers compute what its own do, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from aid import starter
from aid.sd.drawing import quick as layers
from aid.sd.drawing.quick import quick
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return load_checkpoint(starter.BASE)


def predict(model: StableDiffusion, rows: int, edge: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((rows, 4, edge, edge), generator=generator)
    context = torch.randn((rows, tokens, model.architecture.text_width), generator=generator)
    made: Tensor = model.unet(x, torch.tensor(300.0), context, return_dict=False)[0]
    return made


@torch.inference_mode()
@pytest.mark.parametrize(("rows", "edge", "tokens"), [(2, 8, 77), (1, 16, 154), (3, 8, 80)])
def test_quick_layers_predict_the_same(model: StableDiffusion, rows: int, edge: int, tokens: int) -> None:
    expected = predict(model, rows, edge, tokens)
    with quick(model):
        ours = predict(model, rows, edge, tokens)
        other = predict(model, rows, edge, tokens + 1)
    assert (ours - expected).abs().max() < 1e-5 * expected.std()
    assert (other - expected).abs().max() > 1e-3 * expected.std()
    assert torch.equal(predict(model, rows, edge, tokens), expected)


def test_every_kind_of_layer_is_quick_inside_and_none_after(model: StableDiffusion) -> None:
    def changed() -> dict[type, type]:
        """Of a kind of layer, what does its work."""
        own = ((type(layer), vars(layer).get("forward")) for _, layer in model.unet_layers)
        return {kind: type(forward) for kind, forward in own if forward is not None}

    with quick(model):
        own = {Attention: layers.TextAttention, GEGLU: layers.GatedGelu, nn.Conv2d: layers.PackedConvolution}
        assert changed().items() >= own.items()
        assert changed().keys() - own == {nn.Linear, nn.GroupNorm, nn.SiLU}
    assert not changed()


@torch.inference_mode()
def test_padding_has_no_part_in_attention(model: StableDiffusion) -> None:
    """What the text is padded with weighs nothing, to the bit: other values there change nothing."""
    block = next(layer for name, layer in model.unet_layers if name.endswith(".attn2"))
    attention = layers.TextAttention(block, padded=True)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn((1, 64, block.to_q.in_features), generator=generator)
    context = torch.randn((1, 77, block.to_k.in_features), generator=generator)
    first = attention(x, context)
    ((_, (key, value, mask)),) = attention.kept
    assert key.shape[2] == 80 and mask is not None
    key[:, :, 77:], value[:, :, 77:] = 3.0, -5.0
    assert torch.equal(attention(x, context), first)
