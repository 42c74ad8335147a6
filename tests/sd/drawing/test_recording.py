"""The U-Net's calls as CUDA graphs: on a GPU they predict the same, whatever weights and inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aid.sd.drawing.quick import quick
from aid.sd.drawing.recording import SHAPES_KEPT, recorder
from aid.sd.model.architecture import TINY, TINY_SDXL
from aid.sd.model.checkpoint import StableDiffusion, create_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(model: StableDiffusion) -> StableDiffusion:
    torch.nn.init.normal_(model.unet.conv_out.weight, 0, 0.1)
    for module in model.modules():
        module.to("cuda")
    return model


def predict(model: StableDiffusion, seed: int, rows: int = 2, edge: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, 4, edge, edge), generator=generator).cuda()
    width = model.architecture.text_width + model.architecture.text_2_width
    context = torch.randn((rows, 77, width), generator=generator).cuda()
    added = None
    if model.architecture.family == "sdxl":
        pooled = torch.randn((rows, model.architecture.text_2_width), generator=generator).cuda()
        added = {"text_embeds": pooled, "time_ids": torch.full((rows, 6), 64.0 + seed).cuda()}
    t = torch.tensor(300.0 + seed)
    made: Tensor = model.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
    return made


@torch.inference_mode()
@pytest.mark.parametrize("architecture", [TINY, TINY_SDXL], ids=["sd1", "sdxl"])
def test_recorded_calls_predict_the_same(architecture: object) -> None:
    model = on_gpu(create_checkpoint(architecture, 1))  # type: ignore[arg-type]
    expected = [predict(model, seed, rows) for seed, rows in ((1, 2), (2, 2), (3, 1), (4, 2))]
    with quick(model):
        ours = [predict(model, seed, rows) for seed, rows in ((1, 2), (2, 2), (3, 1), (4, 2))]
    assert "forward" not in vars(model.unet)
    assert len(recorder(model.unet).recordings) == 2
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).abs().max() < 1e-3 * other.std()


@torch.inference_mode()
def test_a_recording_follows_weights_that_change_and_is_made_anew_for_weights_that_move() -> None:
    model = on_gpu(create_checkpoint(TINY, 1))
    with quick(model):
        before = predict(model, 1)
        model.unet.conv_out.weight.mul_(2)
        assert not torch.equal(predict(model, 1), before)
    with quick(model):
        changed = predict(model, 1)
    assert torch.allclose(changed, predict(model, 1), atol=1e-3)
    model.unet.to(memory_format=torch.channels_last)
    with quick(model):
        assert torch.allclose(predict(model, 1), changed, atol=1e-3)


@torch.inference_mode()
def test_few_shapes_are_kept() -> None:
    model = on_gpu(create_checkpoint(TINY, 1))
    with quick(model):
        for rows in range(1, SHAPES_KEPT + 3):
            predict(model, 1, rows)
    assert len(recorder(model.unet).recordings) == SHAPES_KEPT
