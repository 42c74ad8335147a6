"""Training continues to the bit: at any step, for whatever is trained, balanced by measurement or not, and
from kill -9 at any point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.interrupting import Interrupting

from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
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
from aid.train.tables import BalanceSettings

KILLS = int(os.environ.get("AID_KILLS", "10"))  # `make kills` is for 100
COMMON: dict[str, Any] = {"steps": 20, "batch_size": 1, "save_every": 7, "checkpointing": False}
BALANCED: dict[str, Any] = {
    **COMMON,
    "warmup": 3,
    "balance": BalanceSettings(
        rule="measured", by="word", stop_at="slightly overfit", every=4, pictures=1, timesteps=2
    ),
}


@pytest.fixture(scope="module")
def two_styles(pictures: Path, lively_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "dataset"
    settings = PrepareSettings(resolution_px=64, buckets=False, held_fraction=0.25)
    folders = {style: pictures / style for style in ("alpha", "beta")}
    return prepare(settings, PrepareInputs(pictures=folders, vae=lively_checkpoint), out)


@pytest.mark.parametrize("kind", ["full", "lora, balanced", "embedding"])
def test_twenty_steps_are_ten_and_ten(
    kind: str, lively_checkpoint: Path, two_styles: Path, tmp_path: Path
) -> None:
    """The next step is being made in a thread, and the last state written in another, when it stops. A
    balanced full fine-tuning does the same in test_watch.py."""
    data = {"checkpoint": lively_checkpoint, "dataset": two_styles}
    runs: dict[str, tuple[Any, Any, Any]] = {
        "full": (finetune, FinetuneSettings(**COMMON), FinetuneInputs(**data)),
        "lora, balanced": (lora, LoraSettings(**BALANCED, rank=2), LoraInputs(**data)),
        "embedding": (
            embedding,
            EmbeddingSettings(**COMMON, vectors=2),
            EmbeddingInputs(checkpoint=lively_checkpoint, pictures=two_styles),
        ),
    }
    run, settings, inputs = runs[kind]
    straight, out = tmp_path / "straight", tmp_path / "out"
    run(settings, inputs, straight, Workbench(threads=1))
    with pytest.raises(KeyboardInterrupt):
        run(settings, inputs, out, Workbench(threads=1, progress=Interrupting(10)))
    run(settings, inputs, out, Workbench(threads=1))
    assert (straight / "balance.jsonl").exists() == ("balanced" in kind)
    for path in straight.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_killed_at_random_points_it_ends_in_the_same_bytes(
    tiny_checkpoint: Path, two_styles: Path, tmp_path: Path
) -> None:
    script = str(Path(__file__).with_name("killed.py"))
    words = [str(KILLS), "7", str(tiny_checkpoint), str(two_styles), str(tmp_path)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{KILLS} kills" in done.stdout
