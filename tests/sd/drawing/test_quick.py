"""The U-Net's quick layers compute what its own do, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from aid import starter
from aid.sd.adapter.target import kohya_targets, targets_of
from aid.sd.drawing import layers
from aid.sd.drawing.quick import quick
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL, Architecture
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return load_checkpoint(starter.BASE)


def predict(model: StableDiffusion, rows: int, edge: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((rows, 4, edge, edge), generator=generator)
    context = torch.randn((rows, tokens, model.unet.config.cross_attention_dim), generator=generator)
    pooled = torch.randn((rows, model.architecture.text_2_width), generator=generator)
    added = {"text_embeds": pooled, "time_ids": torch.full((rows, 6), 64.0)}
    more = {"added_cond_kwargs": added} if model.architecture.family == "sdxl" else {}
    made: Tensor = model.unet(x, torch.tensor(300.0), context, return_dict=False, **more)[0]
    return made


@torch.inference_mode()
@pytest.mark.parametrize(("rows", "edge", "tokens"), [(2, 8, 77), (1, 16, 154), (3, 8, 80), (2, 32, 77)])
def test_quick_layers_predict_the_same(model: StableDiffusion, rows: int, edge: int, tokens: int) -> None:
    expected = predict(model, rows, edge, tokens)
    with quick(model):
        ours = predict(model, rows, edge, tokens)
        other = predict(model, rows, edge, tokens + 1)
    assert (ours - expected).abs().max() < 1e-5 * expected.std()
    assert (other - expected).abs().max() > 1e-3 * expected.std()
    assert torch.equal(predict(model, rows, edge, tokens), expected)


def loud(architecture: Architecture) -> StableDiffusion:
    """Random, but no layer is silent."""
    model = create_checkpoint(architecture, seed=2)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.unet.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("architecture", [TINY, TINY_SD2, TINY_SDXL])
def test_so_do_those_of_every_family(architecture: Architecture) -> None:
    model = loud(architecture)
    expected = predict(model, 2, 8, 77)
    with quick(model):
        ours = predict(model, 2, 8, 77)
    assert (ours - expected).abs().max() < 1e-5 * expected.std()


@torch.inference_mode()
def test_a_lora_in_training_is_heard() -> None:
    """It hangs on the calls of its layers; each is heard apart, so none makes up for another."""
    model = loud(TINY)
    for target in kohya_targets(targets_of(model), convolutions=True).values():
        if "_down_blocks_1_" not in target.kohya:  # which has every kind of layer
            continue
        hook = target.module.register_forward_hook(lambda module, given, made: made + 0.5)
        expected = predict(model, 1, 8, 77)
        with quick(model):
            ours = predict(model, 1, 8, 77)
        hook.remove()
        assert (ours - expected).abs().max() < 1e-5 * expected.std(), target.kohya


def test_every_kind_of_layer_is_quick_inside_and_none_after(model: StableDiffusion) -> None:
    def changed() -> dict[type, type]:
        """Of a kind of layer, what does its work."""
        own = ((type(layer), vars(layer).get("forward")) for _, layer in model.unet_layers)
        return {kind: type(forward) for kind, forward in own if forward is not None}

    with quick(model):
        own = {
            Attention: layers.TextAttention,
            BasicTransformerBlock: layers.TokenBlock,
            Transformer2DModel: layers.PixelTransformer,
            ResnetBlock2D: layers.ResidualBlock,
            GEGLU: layers.GatedGelu,
        }
        assert changed().items() >= own.items()
        assert changed().keys() - own == {nn.Conv2d, nn.Linear, nn.GroupNorm, nn.SiLU}
    assert not changed()
