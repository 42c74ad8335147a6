"""A judge: a network that names what it sees, the real pictures it measures by, and its own accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from aid.core.workbench import Workbench
from aid.errors import ArtifactError
from aid.judging.artefact import Reference
from aid.judging.examination import Card
from aid.judging.network import JudgeNetwork, network_of, normalised, verdicts
from aid.judging.panel import Panel, Verdict
from aid.sd.file.tensorfile import read_tensors
from aid.sd.model.device import torch_device

WEIGHTS_FILE, CARD_FILE = "judge.safetensors", "judge.json"
NETWORK = "network."
BATCH_SIZE = 256


def look(panel: Panel, network: JudgeNetwork, thumbnails: Tensor) -> tuple[list[Verdict], Tensor]:
    """Verdicts and features [n, 8 * width] of pictures uint8 [n, 3, 64, 64]."""
    device = next(network.parameters()).device
    seen: list[Verdict] = []
    features: list[Tensor] = []
    with torch.inference_mode():
        for batch in torch.split(thumbnails, BATCH_SIZE):
            found, logits = network(normalised(batch.to(device).float() / 255.0))
            seen += verdicts(panel, network, logits)
            features.append(found.float().cpu())
    return seen, torch.cat(features)


@dataclass(frozen=True)
class Judge:
    """A judge read back, in eval mode."""

    card: Card
    network: JudgeNetwork
    reference: Reference


def load_judge(folder: Path, bench: Workbench) -> Judge:
    """Read a Judge artifact. Raises ArtifactError or FileError if it is incomplete or damaged."""
    try:
        card = Card.model_validate_json((folder / CARD_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{folder} is not a judge ({type(error).__name__})", "a folder made by `aid judge`"
        ) from error
    tensors = read_tensors(folder / WEIGHTS_FILE)
    weights = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
    rest = {key: value for key, value in tensors.items() if not key.startswith(NETWORK)}
    try:
        network = network_of(card.panel, card.width, weights)
        reference = Reference.from_tensors(rest, network.head.in_features, len(card.references))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} does not fit {CARD_FILE}", "the pair that `aid judge` wrote"
        ) from error
    return Judge(card, network.to(torch_device(bench)).eval(), reference)
