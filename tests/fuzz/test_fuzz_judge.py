"""Damaged judges: what they can tell, and the weights and references that they tell it by."""

from __future__ import annotations

from pathlib import Path

import torch
from damage import JSON, SAFETENSORS
from fuzzing import Target, fuzz

from aid.core.report import Score
from aid.core.workbench import Workbench
from aid.judging.artefact import Traces, fit
from aid.judging.examination import Card, Examined
from aid.judging.judge import CARD_FILE, NETWORK, WEIGHTS_FILE, load_judge, look
from aid.judging.network import fresh_network
from aid.judging.panel import Panel
from aid.judging.texture import SIZE
from aid.sd.file.tensorfile import write_tensors
from aid.sd.picture.layout import CELLS

BENCH = Workbench("cpu")
PICTURES = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
PANEL = Panel(styles=("a", "b"), groups={"hair": ("red", "blue")}, tags=("smile",), shown={"a": ("hair",)})


def traces(count: int, features: int) -> Traces:
    chance = torch.Generator().manual_seed(count)

    def numbers(width: int) -> torch.Tensor:
        return torch.randn((count, width), generator=chance)

    return Traces(numbers(features), numbers(SIZE), numbers(3 * CELLS**2), torch.arange(count) % 2)


def judge(folder: Path) -> dict[str, bytes]:
    score = Score(value=0.5, low=0.1, high=0.9, count=3)
    examined = Examined(ceilings={"style": score}, styles={"a": score}, confusion={"a": {"b": 1}}, cells=())
    card = Card(
        panel=PANEL, width=1, references=("a", "b"), train_pictures=4, held_pictures=2, near_copies=score,
        examined=examined,
    )  # fmt: skip
    network = fresh_network(PANEL, 1, seed=0)
    tensors = {NETWORK + name: one for name, one in network.state_dict().items()}
    write_tensors(folder / WEIGHTS_FILE, {**tensors, **fit(traces(4, 8), traces(2, 8), 2).tensors()}, {})
    return {CARD_FILE: card.model_dump_json().encode(), WEIGHTS_FILE: (folder / WEIGHTS_FILE).read_bytes()}


def read(folder: Path) -> None:
    found = load_judge(folder, BENCH)
    _, features = look(found.card.panel, found.network, PICTURES)
    found.reference.measure(traces(2, features.shape[1]))


def test_damaged_judges(tmp_path: Path) -> None:
    mutators = {".json": JSON, ".safetensors": SAFETENSORS}
    fuzz(Target("judge", [judge(tmp_path)], read, mutators), tmp_path / "fuzzed")
