"""What a merged model predicts: what those of its parents do that give its U-Net.

A sum of models that predict noise and v predicts neither, but the difference of two may turn one into the
other: so where they differ, the primary decides, and it is said.
"""

from __future__ import annotations

from collections.abc import Mapping

from aid.errors import ModelError
from aid.merge.recipe.combination import models_in
from aid.merge.streaming.parent import Parent
from aid.merge.streaming.plan import Plan
from aid.sd.model.architecture import METADATA_KEY, Architecture, Prediction
from aid.sd.model.detection import detect, marked_prediction, with_prediction
from aid.sd.model.layouts import UNET
from aid.sd.model.metadata import ARCHITECTURE_KEY, PREDICTION_KEY, architecture_name

Objective = tuple[Prediction, bool]  # what is predicted, and whether the last timestep is pure noise


def result(plan: Plan, primary: Architecture) -> Architecture:
    """The primary's architecture, predicting what the givers of the U-Net do, if they agree."""
    found = set(_objectives(plan).values())
    if len(found) != 1:
        return primary
    prediction, zero = found.pop()
    return with_prediction(primary, prediction).model_copy(update={"zero_terminal_snr": zero})


def disagreement(plan: Plan, architecture: Architecture) -> list[str]:
    """A note, if the givers of the U-Net differ."""
    found = _objectives(plan)
    if len(set(found.values())) < 2:
        return []
    told = ", ".join(f"{name} {_words(*objective)}" for name, objective in found.items())
    taken = _words(architecture.prediction, architecture.zero_terminal_snr)
    return [f"the models predict different things ({told}): the result is marked as one for {taken}"]


def retold(told: Mapping[str, str], architecture: Architecture) -> dict[str, str]:
    """A primary's metadata, for a result that predicts something else."""
    from aid.sd.model.weights import describe  # loads torch, for these alone

    own = {PREDICTION_KEY: architecture.prediction, ARCHITECTURE_KEY: architecture_name(architecture)}
    kept = {key: own.get(key, value) for key, value in told.items() if key != METADATA_KEY}
    return kept | describe(architecture)


def _objectives(plan: Plan) -> dict[str, Objective]:
    """By name, of the models that give any of the U-Net's blocks; embeddings of time and size don't count,
    which some conventions take with the text encoders."""
    blocks = [key for key, block in plan.merged.items() if key.startswith(UNET) and block != "BASE"]
    givers = {name for key in blocks for name in models_in(plan.combinations[key])}
    found = {name: _objective(plan.parents[name]) for name in plan.recipe.order if name in givers}
    return {name: objective for name, objective in found.items() if objective is not None}


def _objective(parent: Parent) -> Objective | None:
    """None for a file that holds only a part of a model, and for an SD2 that doesn't say."""
    shapes, metadata = parent.shapes(), parent.metadata
    try:
        found = detect(shapes, metadata, str(parent.path), vae_given=True)
    except ModelError:
        return None
    if found.family == "sd2" and METADATA_KEY not in metadata and not marked_prediction(shapes, metadata):
        return None
    return found.prediction, found.zero_terminal_snr


def _words(prediction: Prediction, zero_terminal_snr: bool) -> str:
    return prediction + ", zero terminal SNR" * zero_terminal_snr
