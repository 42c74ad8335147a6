"""What models are said to cost, beside the counts of diffusers' and transformers' own modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aid.sd.file.tensorfile import Stored, header_bytes
from aid.sd.model.architecture import SD1, SD2, SDXL, Architecture
from aid.sd.model.checkpoint import StableDiffusion, _assemble
from aid.sd.model.cost import COSTS, Cost, read_cost
from aid.sd.model.layouts import PLACES

FAMILIES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    """Without values."""
    with torch.device("meta"):
        return _assemble(FAMILIES[request.param])


def counted(module: torch.nn.Module, *given: object, **named: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*given, **named)
    return float(counter.get_total_flops())


def beside_the_text(architecture: Architecture) -> dict[str, object]:
    if not architecture.adm_width:
        return {}
    pooled, sizes = (torch.zeros(1, width, device="meta") for width in (architecture.text_2_width, 6))
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def test_flops_of_real_models(model: StableDiffusion) -> None:
    architecture, cost = model.architecture, Cost(model.architecture)
    context = torch.zeros(1, 77, architecture.context_width, device="meta")
    time = torch.zeros(1, device="meta")
    for edge in (32, 64):
        latent = torch.zeros(1, 4, edge, edge, device="meta")
        found = counted(model.unet, latent, time, context, **beside_the_text(architecture))
        assert cost.unet_flops(edge * edge) == pytest.approx(found, rel=0.005)
    ids = torch.zeros(1, 77, dtype=torch.int64, device="meta")
    encoders = [one for one in (model.text_encoder, model.text_encoder_2) if one is not None]
    assert cost.text_flops() == pytest.approx(sum(counted(one, ids) for one in encoders), rel=0.005)


def test_parameters_of_real_files_are_told_by_their_headers(model: StableDiffusion, tmp_path: Path) -> None:
    """The file is as large as a real one, and holds nothing but its header."""
    tensors: dict[str, Stored] = {}
    for part, module in model.parts().items():
        for key, tensor in module.state_dict().items():
            place = PLACES[part](key, model.architecture.family)
            dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
            tensors[place.key] = Stored(dtype, place.shape(tuple(tensor.shape)), lambda: torch.zeros(0))
    head = header_bytes(tensors, {"modelspec.prediction_type": model.architecture.prediction})
    path = tmp_path / "real.safetensors"
    with open(path, "wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + sum(one.size for one in tensors.values()))
    cost = read_cost(path)
    assert (cost.architecture, cost.note) == (model.architecture, "")
    text = [one for one in (model.text_encoder, model.text_encoder_2) if one is not None]
    counts = [[sum(map(torch.numel, one.parameters())) for one in ones] for ones in ([model.unet], text)]
    assert [cost.unet, cost.text] == list(map(sum, counts))
    assert cost == COSTS[model.architecture.family]
