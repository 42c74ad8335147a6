"""Draws one request after the other, and tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from PIL import Image

from aid.core.artifact import asked
from aid.core.shot import Shot
from aid.errors import AidError
from aid.generate.material import Material
from aid.generate.run import choose_shots, narrowed
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.drawing.pipeline import draw_batch, plan_batches, steps_of
from aid.sd.picture.infotext import Weights
from aid.studio.warm import Warm


class Busy(AidError):
    """Too many wait already."""


class Closed(AidError):
    """The studio ends before the pictures are drawn."""


class Interrupted(Exception):
    """Who asked for the pictures wants no more of them."""


@dataclass(frozen=True)
class Drawn:
    """One picture with its shot and its text."""

    picture: Image.Image
    shot: Shot
    infotext: str


@dataclass(frozen=True)
class Answer:
    """The pictures of a request: all, or, where it was interrupted, those that were done; what drew them."""

    drawn: tuple[Drawn, ...]
    weights: Weights
    lineage: str


@dataclass
class Job:
    """One request, waiting or being drawn. Its owner alone can end it."""

    settings: GenerateSettings
    inputs: GenerateInputs
    owner: str
    name: str = ""
    steps: int = 0
    """Of a picture; 0 until it is known."""
    step: int = 0
    done: int = 0
    """Pictures."""
    together: int = 1
    """Pictures that are being drawn."""
    interrupted: bool = False
    began: float = field(default_factory=time.time)
    answer: Future[Answer] = field(default_factory=Future)

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        now = self.together * self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.done + now) / self.settings.count)

    def stepped(self) -> None:
        """Called after each step. Raises Interrupted."""
        self.step += 1
        if self.interrupted:
            raise Interrupted


class Desk:
    """One thread draws for all, in the order asked. No other may compute with torch: each has helpers of its
    own, and as soon as there are more of these than processors, OpenMP lets all sleep between two operations,
    which halved the speed."""

    def __init__(self, warm: Warm, most_waiting: int) -> None:
        self.warm, self.most_waiting = warm, most_waiting
        self.jobs: list[Job] = []  # the first is being drawn
        self._lock, self._hand = Lock(), ThreadPoolExecutor(1, "draw")

    def ask(self, job: Job) -> Future[Answer]:
        """Raises Busy if too many wait."""
        with self._lock:
            if len(self.jobs) > self.most_waiting:
                raise Busy(f"{len(self.jobs) - 1} requests wait already", "fewer", "Try again later.")
            self.jobs.append(job)
        self._hand.submit(self._serve, job)
        return job.answer

    def interrupt(self, owner: str) -> None:
        """End the owner's jobs: what is being drawn after its next step, what waits at its turn."""
        for job in list(self.jobs):
            job.interrupted |= job.owner == owner

    def do(self, work: Callable[[], None]) -> Future[None]:
        """Between two requests, by the thread that draws."""
        return self._hand.submit(work)

    def end(self) -> None:
        """Everybody's jobs, as `interrupt` does."""
        for job in list(self.jobs):
            job.interrupted = True

    def close(self) -> None:
        """Wait until what is being drawn has ended."""
        self.end()
        self._hand.shutdown()

    def _serve(self, job: Job) -> None:
        """Whoever asked is told when the job is gone: no client may see it afterwards."""
        job.began = time.time()
        unwanted = not job.answer.set_running_or_notify_cancel() or job.interrupted
        found: Answer | BaseException
        try:
            found = Answer((), Weights(), "") if unwanted else self._draw(job)
        except BaseException as error:
            found = error
        with self._lock:
            self.jobs.remove(job)
        if job.answer.cancelled():
            return
        if isinstance(found, Answer):
            job.answer.set_result(found)
        else:
            job.answer.set_exception(found)

    def _draw(self, job: Job) -> Answer:
        material = self.warm.material(job.settings, job.inputs)
        shots = choose_shots(job.settings, job.inputs, material)
        used = narrowed(job.inputs, shots, material)
        lineage = asked("generate", job.settings, used).embedded(ancestors=False)
        return Answer(self._pictures(job, material, shots), material.weights, lineage)

    def _pictures(self, job: Job, material: Material, shots: Sequence[Shot]) -> tuple[Drawn, ...]:
        drawn: dict[int, Drawn] = {}
        with material.texts() as texts:
            for batch in plan_batches(texts, shots, job.settings.batch_size):
                together = [shots[index] for index in batch]
                job.steps, job.step, job.together = steps_of(together[0]), 0, len(batch)
                try:
                    pictures = draw_batch(material.model, together, texts, job.stepped, material.pictures)
                except Interrupted:
                    break
                for index, shot, picture in zip(batch, together, pictures, strict=True):
                    drawn[index] = Drawn(picture, shot, material.infotext(shot, texts))
                job.done += len(batch)
        return tuple(drawn[index] for index in sorted(drawn))
