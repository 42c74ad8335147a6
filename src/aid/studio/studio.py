"""The studio itself, whatever language it is spoken to in: what is chosen, and pictures on request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from aid.core.workbench import Workbench
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.studio.desk import Answer, Closed, Desk, Job
from aid.studio.settings import StudioSettings
from aid.studio.shelf import Shelf, look_around
from aid.studio.warm import Warm

Result = TypeVar("Result")
PROMPTS = {"template", "prompt_template", "negative_template"}  # clients mean their prompts as they are


class Studio:
    """Holds the models and draws. Raises FileError for a place that isn't there."""

    def __init__(self, settings: StudioSettings, bench: Workbench) -> None:
        self.settings, self.shelf = settings, look_around(settings)
        self.warm = Warm(settings.keep_gb * 1e9, bench)
        self.desk = Desk(self.warm, settings.waiting)
        self.model = next(iter(self.shelf.models))
        """The title of the one that draws where a request names none."""
        self.vae = ""
        """The title; empty is the model's own."""
        self.clip_skip = 0
        """0 is the model's usual one."""

    def fill(self, shelf: Shelf) -> None:
        """Draw from what was found when somebody looked again."""
        self.shelf = shelf
        if self.model not in self.shelf.models:
            self.model = next(iter(self.shelf.models))
        if self.vae not in self.shelf.vaes:
            self.vae = ""

    def usual(self, title: str) -> dict[str, Any]:
        """What `generate` is told where a request says nothing: as the model's card recommends."""
        release = self.shelf.release(title)
        recommended = release.recommended() if release else {}
        known = GenerateSettings.model_fields.keys() - PROMPTS
        told = {name: value for name, value in recommended.items() if name in known}
        if self.clip_skip:
            told["clip_skip"] = self.clip_skip
        return {**told, "batch_size": self.settings.batch_size, "precision": self.settings.precision}

    def usual_negative(self, title: str) -> str:
        """The negative prompt that the model's card recommends: the page begins with it, and it is that of
        clients who can't write one. A1111's mean theirs as it is, an empty one too."""
        release = self.shelf.release(title)
        return release.catalogue.parameters_of().negative() if release else ""

    def shown_clip_skip(self) -> int:
        """What holds; clients that send all options back don't mean to fix the model's usual one by it."""
        return int(self.usual(self.model).get("clip_skip", 1))

    def inputs(self, title: str, vae: str | None = None, **pictures: Any) -> GenerateInputs:
        """What a request is drawn with; `vae` None is the one chosen. Raises SettingsError."""
        return GenerateInputs.model_validate(
            {
                "checkpoint": self.shelf.models[title],
                "vae": self.shelf.vaes.get(self.vae if vae is None else self.shelf.vae(vae)),
                "embeddings": self.shelf.embeddings_of(title),
                "loras": self.shelf.loras,
                "wildcards": self.shelf.filled_wildcards(),
                **pictures,
            }
        )

    def choose(self, options: Mapping[str, Any]) -> None:
        """Set what stands in `options`, in A1111's words; others are ignored. Raises SettingsError, and then
        nothing has changed."""
        model = self.shelf.model(str(options.get("sd_model_checkpoint") or self.model))
        vae = self.shelf.vae(str(options.get("sd_vae", self.vae) or ""))
        skip = options.get("CLIP_stop_at_last_layers")
        if skip != self.shown_clip_skip() and isinstance(skip, int) and 0 <= skip <= 12:
            self.clip_skip = skip
        self.model, self.vae = model, vae

    async def draw(self, job: Job) -> Answer:
        """Raises Busy, Closed, and whatever drawing raises."""
        return await _done(self.desk.ask(job))

    async def unload(self) -> None:
        """Give the models' memory back, as soon as nothing is drawn. Raises Closed."""
        await _done(self.desk.do(self.warm.forget))


async def _done(future: Future[Result]) -> Result:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError as error:  # by the server, whose time to end is over
        raise Closed("the studio has been ended") from error
