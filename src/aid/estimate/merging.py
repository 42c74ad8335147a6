"""What merging takes, and what is done with the difference of models."""

from __future__ import annotations

from aid.estimate.scene import DISK_RATE, Scene, Work
from aid.merge.settings import (
    DistanceInputs,
    DistanceSettings,
    ExtractInputs,
    ExtractSettings,
    MergeInputs,
    MergeSettings,
)
from aid.sd.model.cost import Cost

DOUBLE_RATE = 20e9  # FLOPs/s of one core, in double precision


def merge_work(settings: MergeSettings, inputs: MergeInputs, scene: Scene) -> Work:
    costs = [scene.cost(path) for path in inputs.models.values()] or [Cost()]
    size = costs[0].parameters * (4 if settings.precision == "fp32" else 2)
    many = f"{len(costs)} models" if len(costs) > 1 else "1 model"
    return Work(
        f"{many} of {costs[0].parameters / 1e6:,.1f} M parameters",
        costs[0],
        seconds=(len(costs) + 1) * size / DISK_RATE,
        memory=64 << 20,
        disk=size,
        notes=tuple(cost.note for cost in costs),
    )


def distance_work(settings: DistanceSettings, inputs: DistanceInputs, scene: Scene) -> Work:
    """Each model is read beside all that come before it."""
    costs = [scene.cost(path) for path in inputs.models.values()] or [Cost()]
    pairs = len(costs) * (len(costs) + 1) / 2
    return Work(
        f"{len(costs)} models of {costs[0].parameters / 1e6:,.1f} M parameters",
        seconds=pairs * 2 * costs[0].parameters / DISK_RATE,
        memory=64 << 20,
        notes=tuple(cost.note for cost in costs),
    )


def extract_work(settings: ExtractSettings, inputs: ExtractInputs, scene: Scene) -> Work:
    """A Gram matrix of each layer, as wide as its narrower side."""
    cost = scene.cost(inputs.origin)
    widest = max(cost.architecture.unet_widths)
    return Work(
        f"rank {settings.rank} of {cost.parameters / 1e6:,.1f} M parameters",
        seconds=4 * widest * (cost.unet + cost.text) / DOUBLE_RATE,
        memory=4 * 8 * 9 * widest**2,
        disk=2 * settings.rank * (cost.unet + cost.text) / widest * 2,
        notes=(cost.note,),
    )
