"""A merge's parents, opened, and what settings make of them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from aid.errors import ModelError
from aid.merge.prediction import disagreement, result
from aid.merge.recipe.recipe import Recipe, adapter_weights, plan, primary_of
from aid.merge.settings import MergeInputs, MergeSettings
from aid.merge.streaming.parent import (
    Parent,
    open_parent,
    open_vae_parent,
    require_blocks,
    require_one_architecture,
    with_vae,
)
from aid.merge.streaming.plan import Plan, Wanted, planned
from aid.sd.model.architecture import SD1, Architecture
from aid.sd.model.detection import detect
from aid.sd.model.layouts import VAE

if TYPE_CHECKING:
    from aid.merge.streaming.evaluation import Bake
    from aid.sd.adapter.file import Adapter

FORMATS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class Job:
    """Parents that can be read, by name, and the architecture that the primary has."""

    inputs: MergeInputs
    parents: Mapping[str, Parent]
    architecture: Architecture
    vae: Parent | None

    def recipe(self, settings: MergeSettings) -> Recipe:
        """Raises SettingsError for weights that can't be meant, ModelError for parents that don't fit."""
        recipe = plan(settings, self.parents, self.architecture.family)
        primary, *others = (self.parents[name] for name in recipe.order)
        require_one_architecture(primary, others)
        require_blocks(recipe, self.parents)
        return recipe

    def bakes(self, settings: MergeSettings, recipe: Recipe) -> Mapping[str, Bake]:
        """What adapters do, by tensor."""
        weights = adapter_weights(settings, self.inputs.loras, recipe)
        if not self.inputs.loras:
            return {}
        from aid.merge.streaming.adapter import plan_adapters  # few merges have any

        formats = ChainMap(*(dict(self.parents[name].formats) for name in recipe.order))
        return plan_adapters(self.adapters, weights, self.architecture, recipe.block, formats)

    @cached_property
    def adapters(self) -> Mapping[str, Adapter]:
        """By name. Raises FileError or ModelError for a file that isn't one."""
        from aid.merge.streaming.adapter import open_adapter

        return {name: open_adapter(path) for name, path in self.inputs.loras.items()}

    def notes(self, plan: Plan) -> list[str]:
        """What a person may not expect: parts of adapters, and of models, that aren't there; and what changes
        nothing."""
        told = [
            f"{self.parents[name].lacks(keys)}: as other models have it"
            for name, keys in plan.lacking.items()
        ]
        told += plan.recipe.rule.idle(plan.merged)
        told += disagreement(plan, result(plan, self.architecture))
        idle = [self.parents[name] for name in plan.recipe.order if name not in plan.givers]
        told += [f"{parent} has no weight anywhere: it is no part of the result" for parent in idle]
        if not self.inputs.loras:
            return told
        from aid.sd.adapter.bake import unmatched

        return [*told, *unmatched(self.architecture, self.adapters.values())]

    def _require_whole(self, plan: Plan) -> None:
        """Raises ModelError for a parent that lacks a tensor that every model of the architecture has."""
        if not plan.lacking:
            return
        from aid.sd.adapter.target import skeleton

        family = self.architecture.family
        every = {
            target.place(parameter, family).key
            for target in skeleton(self.architecture).values()
            for parameter in ("weight", "bias")
        }
        for name, keys in plan.lacking.items():
            if missing := [key for key in keys if key in every]:
                keep = "`broken = 'keep'` takes it as the other models have it."
                raise ModelError(
                    self.parents[name].lacks(missing), "all tensors of a block that it gives", keep
                )

    def planned(self, settings: MergeSettings) -> Plan:
        """Raises as `recipe` does."""
        recipe = self.recipe(settings)
        bakes = self.bakes(settings, recipe)
        wanted = Wanted(FORMATS.get(settings.precision), self.vae, settings.prune, bakes)
        plan = planned(recipe, self.parents, wanted)
        if settings.broken == "error":
            self._require_whole(plan)
        return plan.marked(result(plan, self.architecture))


def open_job(
    settings: MergeSettings, inputs: MergeInputs, open_files: ExitStack, mapped: bool = False
) -> Job:
    """Open the parents, which `open_files` keeps open. Raises FileError for one that can't be read."""
    parents = {name: open_parent(name, path, open_files, mapped) for name, path in inputs.models.items()}
    primary = parents.get(primary_of(settings))  # `plan` says if there is none
    given = inputs.vae is not None
    architecture = (
        detect(primary.shapes(), primary.metadata, str(primary.path), vae_given=given) if primary else SD1
    )
    plan(settings, parents, architecture.family)  # what can't be meant is told before a VAE is opened
    vae = open_vae_parent(inputs.vae, architecture.family, open_files) if inputs.vae else None
    if vae and primary and not any(key.startswith(VAE) for key in primary.formats):
        parents[primary.name], architecture = with_vae(primary, vae, architecture)
    return Job(inputs, parents, architecture, vae)
