"""Settings that meet by chance: whatever is valid trains, goes on to the byte after an interruption, and has
finite weights; or it is refused before its first step. AID_MEETINGS=100 tries more."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.interrupting import Interrupting

from aid.core.artifact import Settings
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.file.tensorfile import read_tensors
from aid.sd.model.architecture import TINY, TINY_SD2, TINY_SDXL
from aid.sd.model.checkpoint import create_checkpoint, save_checkpoint
from aid.train.embedding import embedding
from aid.train.lora import lora
from aid.train.run import finetune
from aid.train.settings import (
    EmbeddingInputs,
    EmbeddingSettings,
    FinetuneInputs,
    FinetuneSettings,
    LoraInputs,
    LoraSettings,
)

STEPS = 4
FAMILIES = {
    "sd1": TINY,
    "sd2": TINY_SD2.model_copy(update={"prediction": "v"}),
    "sdxl": TINY_SDXL.model_copy(update={"prediction": "v", "zero_terminal_snr": True}),
}
SAMPLES = {"prompts": ["by alpha"], "every": 2, "steps": 1, "width": 64, "height": 64}
COMMON: dict[str, list[Any]] = {
    "weighting": ["uniform", "debiased"], "distance": ["huber", "smooth_l1"], "noise_offset": [0.05],
    "huber_schedule": ["exponential", "constant"], "pyramid_levels": [4], "input_perturbation": [0.1],
    "timesteps": [{"law": "logit_normal"}, {"lowest": 300, "highest": 700}], "part_size": [1, 2],
    "noise_draws": [2], "mirrored_share": [0.5, 1.0], "gradient_norm": [0.0, 0.01], "batch_size": [2, 4],
    "samples": [SAMPLES, SAMPLES | {"styles": ["*"]}], "keep_states": [1], "keep_every": [2],
    "save_behind": [False], "trouble": ["skip", "roll_back"], "spike": [5.0], "precision": ["bf16"],
    "checkpointing": [False], "seed": [7],
}  # fmt: skip
STYLES: dict[str, list[Any]] = COMMON | {
    "regularisation_weight": [0.5], "unet_stop": [2], "text_stop": [1, 3], "text_rate": [0.0],
    "text_2_rate": [1e-3, 0.0], "block_rates": [{"IN00-05": 0.0, "OUT": 0.5}, {"BASE": 0.5}],
    "ema": [0.0, 0.9],
    "optimiser": ["adamw_bf16", "adafactor", "adafactor_absolute", "lion", "schedule_free"],
    "fused_backward": [True], "schedule": ["cosine", "linear"], "warmup": [1], "betas": [(0.8, 0.9)],
    "balance": [
        {"rule": "measured", "by": "word", "every": 2, "pictures": 1, "timesteps": 1},
        {"rule": "equal"}, {"rule": "author"}, {"measure": True, "every": 1, "pictures": 1},
    ],
    "caption": [
        {"windows": 3, "keep": 0}, {"weighted": True, "dropout": 0.5},
        {"warmup_steps": 3, "tag_dropout": 0.5},
    ],
}  # fmt: skip
KINDS: dict[str, tuple[Any, type[Settings], dict[str, Any], dict[str, list[Any]]]] = {
    "finetune": (
        finetune, FinetuneSettings, {"unet_rate": 1e-3, "text_rate": 1e-3, "regularisation_share": 0.5},
        STYLES | {"prediction": ["v", "epsilon"], "zero_terminal_snr": [True], "memory_profile": ["12gb"]},
    ),
    "lora": (
        lora, LoraSettings, {"rank": 2, "regularisation_share": 0.5},
        STYLES | {"conv_rank": [1], "alpha": [4.0]},
    ),
    "embedding": (
        embedding, EmbeddingSettings, {"vectors": 2},
        COMMON | {
            "rates": ["0.005:2, 1e-3:-1"], "shuffle": [True], "norm_limit": [0.0], "tag_dropout": [0.5],
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name, architecture in FAMILIES.items():
        save_checkpoint(create_checkpoint(architecture, 1), folder / f"{name}.safetensors", {})
    return folder


def met(kind: str, chance: random.Random) -> Settings:
    """A third of all settings, in a value that isn't their own, as far as they may be together."""
    _, made, told, values = KINDS[kind]
    told = {"steps": STEPS, "save_every": 2, **told}
    settings = made.model_validate(told)
    for name in chance.sample(sorted(values), len(values) // 3):
        further = {**told, name: chance.choice(values[name])}
        try:
            settings, told = made.model_validate(further), further
        except ValidationError:
            continue
    return settings


@pytest.mark.parametrize("seed", range(int(os.environ.get("AID_MEETINGS", "3"))))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_valid_trains_and_continues_to_the_byte(
    kind: str, seed: int, bases: Path, dataset: Path, tmp_path: Path
) -> None:
    chance = random.Random(f"{kind} {seed}")
    train, settings, family = KINDS[kind][0], met(kind, chance), chance.choice(sorted(FAMILIES))
    named: Any = {
        "finetune": FinetuneInputs, "lora": LoraInputs, "embedding": EmbeddingInputs
    }[kind]  # fmt: skip
    data = "pictures" if kind == "embedding" else "dataset"
    inputs = named(checkpoint=bases / f"{family}.safetensors", **{data: dataset})
    try:
        straight = train(settings, inputs, tmp_path / "straight", Workbench(threads=1))
    except SettingsError:
        with pytest.raises(SettingsError):  # and not Interrupting's
            train(settings, inputs, tmp_path / "out", Workbench(threads=1, progress=Interrupting(1)))
        return
    stop = Interrupting(chance.randint(1, STEPS), f"train {kind}")
    with pytest.raises(KeyboardInterrupt):
        train(settings, inputs, tmp_path / "out", Workbench(threads=1, progress=stop))
    out = train(settings, inputs, tmp_path / "out", Workbench(threads=1))
    files = sorted(path.relative_to(straight) for path in straight.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    for file in files:
        assert (out / file).read_bytes() == (straight / file).read_bytes(), f"{file}: {settings}"
    for file in straight.glob("*.safetensors"):
        assert all(torch.isfinite(one.float()).all() for one in read_tensors(file).values())
