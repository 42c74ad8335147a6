"""Judge: a dataset's real pictures -> a network that names what it sees, with its own accuracy beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aid.core.artifact import under_construction, verb
from aid.core.dataset import Dataset, Split
from aid.core.files import write_text
from aid.core.lineage import METADATA_KEY
from aid.core.report import proportion
from aid.core.spelling import did_you_mean
from aid.core.workbench import Workbench
from aid.errors import ArtifactError, SettingsError
from aid.evaluate.settings import JudgeInputs, JudgeSettings
from aid.evaluate.training import Lessons, answer_sheet, train
from aid.judging.artefact import fit, trace
from aid.judging.examination import Card, examine
from aid.judging.judge import CARD_FILE, NETWORK, WEIGHTS_FILE, look
from aid.judging.panel import STYLE, Asked, Panel, assemble, derive
from aid.judging.picture import read_views
from aid.sd.file.tensorfile import write_tensors

LITTLE = 0.5  # of the held-out pictures, below which a person is warned


@verb("judge", resumable=True)
def judge(settings: JudgeSettings, inputs: JudgeInputs, out: Path, bench: Workbench) -> None:
    """Teach a judge on the `train` pictures and examine it on the `held` ones.

    Writes `judge.safetensors` (the network, and what it sees in the training pictures) and
    `judge.json` (an examination.Card). Raises ArtifactError for a dataset without pictures to teach
    or examine with, and SettingsError for groups that can't be meant.
    """
    folders = [inputs.dataset, *(path for _, path in sorted(inputs.extra.items()))]
    lessons, exam = _real_pictures(folders, "train"), _real_pictures(folders, "held")
    panel = _panel(settings, [*lessons.asked, *exam.asked])
    views = read_views(lessons.paths, bench, "read")
    sheet = Lessons(views.thumbnails, *answer_sheet(panel, lessons.asked))
    network = train(panel, sheet, settings, out, bench)

    held = read_views(exam.paths, bench, "examine")
    seen, features = look(panel, network, held.thumbnails)
    _, taught = look(panel, network, views.thumbnails)
    references = tuple(sorted({*lessons.styles(), *exam.styles()}))
    unseen = trace(held, features, references, exam.styles())
    reference = fit(trace(views, taught, references, lessons.styles()), unseen, len(references))
    near = reference.measure(unseen).near_copy
    card = Card(
        panel=panel,
        width=settings.width,
        references=references,
        train_pictures=len(lessons.paths),
        held_pictures=len(exam.paths),
        near_copies=proportion(int(near.sum()), len(near)),
        examined=examine(panel, exam.asked, seen),
    )
    for line in in_words(card):
        bench.progress.say(f"  {line}")
    weights = {NETWORK + name: tensor for name, tensor in network.state_dict().items()}
    metadata = {METADATA_KEY: under_construction(out).embedded()}
    write_tensors(out / WEIGHTS_FILE, {**weights, **reference.tensors()}, metadata)
    write_text(out / CARD_FILE, card.model_dump_json(indent=1) + "\n")


def in_words(card: Card) -> Iterator[str]:
    """How good it is, and what helps if it isn't: its scores say little of styles that it can't tell."""
    found = card.examined.ceilings
    told = [f"{name} {found[name].value:.1%}" for name in (STYLE, *card.panel.groups) if name in found]
    if told:
        yield f"right on {card.held_pictures} held-out real pictures: {', '.join(told)}"
    if STYLE in found and found[STYLE].value < LITTLE:
        yield "its word on styles says little: raise pictures_seen, or prepare more pictures of each style"


@dataclass(frozen=True)
class RealPictures:
    """Prepared pictures and what they show."""

    paths: list[Path]
    asked: list[Asked]

    def styles(self) -> list[str]:
        return [style for style, _ in self.asked]


def _real_pictures(folders: Sequence[Path], split: Split) -> RealPictures:
    found = [(folder, record) for folder in folders for record in Dataset(folder).split(split)]
    if len(found) < 2:
        raise ArtifactError(
            f"{folders[0]} has {len(found)} {split} pictures",
            "at least 2",
            "Prepare it with more pictures, or a larger held-out share.",
        )
    return RealPictures(
        [folder / record.file for folder, record in found],
        [(record.style, record.tags) for _, record in found],
    )


def _require_tags(tags: Sequence[str], asked: Sequence[Asked]) -> None:
    known = {tag for _, own in asked for tag in own}
    if unknown := [tag for tag in tags if tag not in known]:
        raise SettingsError(
            f"no picture has the tag {unknown[0]!r}",
            "tags of the dataset's pictures",
            did_you_mean(unknown[0], known),
        )


def _panel(settings: JudgeSettings, asked: Sequence[Asked]) -> Panel:
    groups, tags = settings.groups, settings.tags
    if not groups and not tags:
        groups, tags = derive(asked, settings.tag_share_min, settings.option_share_min, settings.tag_limit)
    _require_tags([*tags, *(tag for options in groups.values() for tag in options)], asked)
    panel = assemble(asked, groups, tags)
    if not panel.styles and not panel.groups and not panel.tags:
        raise ArtifactError("the pictures have neither styles nor tags", "something to judge by")
    return panel
