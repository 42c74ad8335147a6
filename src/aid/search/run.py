"""The verb `merge search`: parents, dataset and judge -> the block weights that measure best."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from aid.core.artifact import SCRATCH, asked, verb
from aid.core.dataset import Dataset
from aid.core.files import write_text
from aid.core.shot import Shot
from aid.core.toml import toml
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.evaluate.compare import Comparison, compare
from aid.generate.material import named_embeddings
from aid.generate.plan import shots_of_plan
from aid.judging.judge import load_judge
from aid.merge.blend import Blend
from aid.merge.recipe.recipe import primary_of
from aid.merge.settings import MergeInputs, MergeSettings
from aid.sd.model.checkpoint import StableDiffusion
from aid.search.knob import Space, space_of
from aid.search.measure import Arbiter, measured
from aid.search.settings import SearchInputs, SearchSettings
from aid.search.trial import TRIALS_FILE, Measured, Trial, best_of, read_trials, suggest, write_trials

BEST_FILE, RESULT_FILE = "best.toml", "result.json"
APART = 1 << 31  # between the seeds of trials and of what is held out; torch takes a seed's low 32 bits alone
PROMPTS_TRIED = 8  # for each that is held out


class Result(BaseModel):
    """result.json. Comparisons are of the best merge with each parent alone, on held-out prompts, with 95 %
    intervals."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    best: Trial
    floors: dict[str, float]
    floor_kept: bool
    held: dict[str, Comparison]


@verb("merge search", resumable=True, precious=TRIALS_FILE)
def search(settings: SearchSettings, inputs: SearchInputs, out: Path, bench: Workbench) -> None:
    """Try merges; every one is logged in trials.jsonl with the key of its lineage. `best.toml` are the
    settings that make the best one again with `aid merge --settings`, `result.json` (Result) compares it
    with its parents; `held/` has their pictures.

    Raises SettingsError for knobs that can't be turned and for a plan without shots.
    """
    merging = MergeInputs(models=inputs.models, vae=inputs.vae)
    with Blend(settings.merge, merging, bench, settings.drawing.precision) as blend:
        ground = _ground(settings, inputs, blend, out, bench)
        floors, trials = ground.floors(), read_trials(out)[: settings.trials]
        with bench.progress.task("search", settings.trials, "trial", len(trials)) as tick:
            while len(trials) < settings.trials:
                trials.append(ground.attempt(trials, floors))
                write_trials(out, trials)
                tick(1, f"best {best_of(trials).value:.3f}")
        write_trials(out, trials)  # without those that a longer search had tried
        best = best_of(trials)
        found = ground.space.settings(best.values)
        write_text(out / BEST_FILE, toml(found.model_dump(mode="json", exclude_defaults=True)))
        result = Result(best=best, floors=floors, floor_kept=best.below <= 0, held=ground.compared(found))
    for line in in_words(best, floors):
        bench.progress.say(f"  {line}")
    write_text(out / RESULT_FILE, result.model_dump_json(indent=1) + "\n")


def in_words(best: Trial, floors: Mapping[str, float]) -> Iterator[str]:
    """What was found, and whether it is what was asked for."""
    values = ", ".join(f"{name} {value:g}" for name, value in best.values.items())
    told = f"{BEST_FILE} makes it, {RESULT_FILE} sets it beside its parents"
    yield f"best is trial {best.number}, {values}: {told}"
    kept = best.measured.styles
    missed = [
        f"{style} {kept[style]:.0%} of {floor:.0%}" for style, floor in floors.items() if kept[style] < floor
    ]
    if missed:
        yield f"no trial kept the floor of every style; this one misses those of {', '.join(missed)}"


@dataclass(frozen=True)
class Ground:
    """What all trials share: the model that is blended, who judges, and the shots, some of them held out."""

    settings: SearchSettings
    space: Space
    blend: Blend
    arbiter: Arbiter
    shots: list[Shot]
    held: list[Shot]
    out: Path

    def floors(self) -> dict[str, float]:
        """What every style must keep: a share of what it has in the primary alone, by the trials' shots."""
        own = self._measured(MergeSettings(primary=primary_of(self.space.merge)))
        return {style: self.settings.floor * share for style, share in own.styles.items()}

    def attempt(self, trials: Sequence[Trial], floors: Mapping[str, float]) -> Trial:
        values = dict(suggest(self.space, trials, self.settings.seed))
        merge = self.space.settings(values)
        found = self._measured(merge)
        content, artefact = self.settings.content * found.content, self.settings.artefact * found.artefact
        return Trial(
            number=len(trials),
            key=asked("merge", merge, self.blend.inputs).key,
            values=values,
            measured=found,
            value=found.style + content - artefact,
            below=max(floor - found.styles[style] for style, floor in floors.items()),
        )

    def _measured(self, merge: MergeSettings) -> Measured:
        """Its pictures don't stay."""
        folder = self.out / SCRATCH / "trial"
        self.blend.become(merge)
        found = measured(self.arbiter.look(self.blend.model, self.shots, folder))
        shutil.rmtree(folder)
        return found

    def compared(self, best: MergeSettings) -> dict[str, Comparison]:
        """With each parent, picture by picture."""
        self.blend.become(best)
        judged = self.arbiter.look(self.blend.model, self.held, self.out / "held" / "best")
        comparisons = {}
        for name in self.blend.inputs.models:
            self.blend.become(MergeSettings(primary=name))
            folder = self.out / "held" / "parents" / name
            comparisons[name] = compare(judged, self.arbiter.look(self.blend.model, self.held, folder))
        return comparisons


def _ground(
    settings: SearchSettings, inputs: SearchInputs, blend: Blend, out: Path, bench: Workbench
) -> Ground:
    space = space_of(settings.knobs, settings.merge, blend.model.architecture.family)
    embeddings, _ = named_embeddings(inputs.embeddings, blend.model)
    shots, held = _shots(settings, Dataset(inputs.dataset), list(embeddings), blend.model)
    arbiter = Arbiter(load_judge(inputs.judge, bench), embeddings, settings.drawing.batch_size, bench)
    return Ground(settings, space, blend, arbiter, shots, held, out)


def _shots(
    settings: SearchSettings, dataset: Dataset, names: Sequence[str], model: StableDiffusion
) -> tuple[list[Shot], list[Shot]]:
    """The trials', and those held out: other seeds, and no prompt that a trial draws."""
    drawing, plan, edge_px = settings.drawing, settings.drawing.plan, model.architecture.native_edge_px
    if plan is None:
        raise SettingsError("the search's drawing has no plan", "drawing.plan.shots_per_style = 4, say")
    shots = shots_of_plan(drawing, plan, dataset, names, edge_px)
    seen, wanted = {shot.prompt for shot in shots}, settings.held_per_style
    many = plan.model_copy(update={"shots_per_style": PROMPTS_TRIED * wanted})
    apart = drawing.model_copy(update={"seed": drawing.seed + APART})
    fresh: dict[str, list[Shot]] = {}
    for shot in shots_of_plan(apart, many, dataset, names, edge_px):
        if shot.prompt not in seen:
            fresh.setdefault(shot.style, []).append(shot)
    if missing := sorted({shot.style for shot in shots} - fresh.keys()):
        found = f"trials draw every prompt that the plan can make of {missing[0]}"
        raise SettingsError(found, "prompts left to hold out", "Lower shots_per_style.")
    return shots, [shot for own in fresh.values() for shot in own[:wanted]]
