"""A merge that isn't saved: blended straight into a loaded model, and anew where weights change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from aid.core.shot import DrawingPrecision
from aid.core.workbench import Workbench
from aid.merge.job import Job, open_job
from aid.merge.note import Notes
from aid.merge.prediction import result
from aid.merge.recipe.combination import Call, Combination
from aid.merge.recipe.recipe import RANGED, Recipe, adapter_weights
from aid.merge.settings import MergeInputs, MergeSettings
from aid.merge.streaming.plan import Plan
from aid.merge.streaming.stream import Output, fill, threads_of
from aid.sd.file.precision import drawing_type
from aid.sd.file.tensorfile import DTYPES, Stored
from aid.sd.model.checkpoint import StableDiffusion, fill_checkpoint
from aid.sd.model.device import torch_device
from aid.sd.model.layouts import PLACES, VAE, Place
from aid.sd.model.weights import Weights

Homes = list[tuple[Place, Tensor]]
"""Where one tensor of a file lies in the model, in parts perhaps."""
Made = tuple[object, ...]
"""All that a tensor hangs on: if this is the same, so is the tensor."""


class Blend:
    """A loaded model that is the merge of `inputs` by the settings that it last became: to the bit what
    saving that merge, and loading it in `precision`, gives. Parents are mapped into memory until the `with`
    ends, and their files must stay as they are.

    with Blend(settings, inputs) as blend:
        draw(blend.model, shots)
        blend.become(other)  # computes only what `other` makes different: the tensors of one block, say
    """

    def __init__(
        self,
        settings: MergeSettings,
        inputs: MergeInputs,
        bench: Workbench | None = None,
        precision: DrawingPrecision = "fp32",
    ) -> None:
        """Raises as `merge` does."""
        bench = bench or Workbench()
        self._files, self._threads = ExitStack(), threads_of(bench)
        try:
            self._job = open_job(settings, inputs, self._files, mapped=True)
            plan, notes = self._job.planned(settings), _notes(settings)
            stored = {key: _stored(key, one, notes) for key, one in plan.outputs(plan.combinations).items()}
            weights = _weights(self._job, plan, stored)
            device = torch_device(bench)
            self.model = fill_checkpoint(weights, device, drawing_type(precision, device))
        except BaseException:
            self._files.close()
            raise
        self._homes = _homes(self.model)
        self._made = _made(self._job, plan, settings, self._homes)

    @property
    def inputs(self) -> MergeInputs:
        """The parents."""
        return self._job.inputs

    def become(self, settings: MergeSettings) -> int:
        """Blend the model anew by other settings; returns how many tensors had to be computed.

        Raises as `merge` does; then the model is neither, until it becomes something whole."""
        plan = self._job.planned(settings)
        wanted = _made(self._job, plan, settings, self._homes)
        different = [key for key, made in wanted.items() if self._made.get(key) != made]
        outputs, notes = plan.outputs(different), _notes(settings)

        def compute(key: str) -> None:
            self._made.pop(key, None)
            with torch.no_grad():
                _put(self._homes[key], key, outputs[key], notes)
            self._made[key] = wanted[key]

        with ThreadPoolExecutor(self._threads, "blend") as pool:
            list(pool.map(compute, different))
        return len(different)

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _notes(settings: MergeSettings) -> Notes:
    return Notes(settings.broken == "keep", lambda count=1, note="": None)


def _put(homes: Homes, key: str, output: Output, notes: Notes) -> None:
    """Into the parameter's own memory, if that is laid out as a file's."""
    place, parameter = homes[0]
    alike = parameter.device.type == "cpu" and parameter.dtype == DTYPES[output.format.name]
    if len(homes) == 1 and not place.transposed and alike and parameter.is_contiguous():
        _fill(parameter, key, output, notes)
        return
    whole = _tensor(key, output, notes)
    for place, parameter in homes:
        parameter.copy_(place.take(whole).reshape(parameter.shape))


def _tensor(key: str, output: Output, notes: Notes) -> Tensor:
    tensor = torch.empty(output.format.shape, dtype=DTYPES[output.format.name])
    _fill(tensor, key, output, notes)
    return tensor


def _fill(tensor: Tensor, key: str, output: Output, notes: Notes) -> None:
    if output.format.size:
        raw = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        for piece, fault in fill(key, output, raw):
            notes(piece, fault)


def _stored(key: str, output: Output, notes: Notes) -> Stored:
    return Stored(DTYPES[output.format.name], output.format.shape, lambda: _tensor(key, output, notes))


def _weights(job: Job, plan: Plan, tensors: Mapping[str, Stored]) -> Weights:
    primary = job.parents[plan.recipe.primary]
    return Weights(primary.path, result(plan, job.architecture), tensors, primary.metadata)


def _homes(model: StableDiffusion) -> dict[str, Homes]:
    """By LDM key."""
    homes: dict[str, Homes] = {}
    for part, module in model.parts().items():
        for name, parameter in module.named_parameters():
            place = PLACES[part](name, model.architecture.family)
            homes.setdefault(place.key, []).append((place, parameter))
    for key, tensor in model.unheld.items():
        homes.setdefault(key, []).append((Place(key), tensor))
    return homes


def _made(job: Job, plan: Plan, settings: MergeSettings, keys: Iterable[str]) -> dict[str, Made]:
    recipe = plan.recipe
    combinations = {key: plan.combinations[key] for key in keys if _is_blended(key, job, plan)}
    ranged = tuple(sorted((key, one) for key, one in combinations.items() if _is_ranged(one)))
    adapters = _adapters(job, recipe, settings)
    written = (recipe.primary, settings.precision, settings.broken)  # the primary gives the format too
    return {
        key: (one, written, adapters[recipe.block(key)], ranged if _is_ranged(one) else ())
        for key, one in combinations.items()
    }


def _is_blended(key: str, job: Job, plan: Plan) -> bool:
    """Whether settings decide it: a VAE that was given stays as it is."""
    return key in plan.combinations and not (job.vae is not None and key.startswith(VAE))


def _is_ranged(combination: Combination) -> bool:
    """Whether it hangs on all tensors of its mode, as the cosine modes do."""
    return any(isinstance(leaf, Call) and leaf.mode in RANGED for leaf, _ in combination)


def _adapters(job: Job, recipe: Recipe, settings: MergeSettings) -> dict[str, tuple[float, ...]]:
    """Block -> every adapter's weight."""
    rows = adapter_weights(settings, job.inputs.loras, recipe).values()
    return {block: tuple(row[block] for row in rows) for block in recipe.blocks}
