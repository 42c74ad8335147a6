"""Which pictures are to be drawn: from a prompt, from a dataset's styles and tags, or from a list."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from aid.core.catalogue import Parameters, load_catalogue
from aid.core.dataset import Dataset, Record
from aid.core.gallery import SHOTS_FILE
from aid.core.shot import Hires, Shot
from aid.core.spelling import did_you_mean
from aid.errors import FileError, SettingsError
from aid.generate.settings import DrawingSettings, GenerateSettings, Plan
from aid.sd.picture.infotext import NEGATIVE
from aid.sd.prompt.prompt import escape, verbatim
from aid.sd.prompt.sugar import strip_comments
from aid.sd.sampling.course import well_named

TOLD = {"prompt", "negative_prompt", "width", "height", "source", "style", "tags"}  # decided one by one
SAME = [name for name in Shot.model_fields if name not in TOLD]


def shots_of_prompt(settings: GenerateSettings, embeddings: Sequence[str], edge_px: int) -> list[Shot]:
    """`count` pictures of the settings' prompt, with seeds counting up; of variations, theirs."""
    shot = shot_of_prompt(settings, embeddings, edge_px)
    counted = "variation_seed" if settings.variation_strength else "seed"
    first = getattr(settings, counted)
    return [shot.model_copy(update={counted: first + index}) for index in range(settings.count)]


def shot_of_prompt(settings: DrawingSettings, embeddings: Sequence[str], edge_px: int) -> Shot:
    """The settings' one shot."""
    settings = without_comments(settings)
    prompt, negative = compose(settings, settings.styles, (), embeddings)
    style = _bare(settings.styles[0]) if len(settings.styles) == 1 else ""
    told = {"prompt": prompt, "negative_prompt": negative, "style": style}
    return _unprompted(settings, edge_px).model_copy(update=told)


def shots_of_plan(
    settings: GenerateSettings, plan: Plan, dataset: Dataset, embeddings: Sequence[str], edge_px: int
) -> list[Shot]:
    """The plan's shots, style by style; the seed and the training pictures' tags alone decide them. Seeds
    count up over the whole plan: were they shared between styles, shots would not be independent.

    Raises SettingsError for a style or tag that the dataset lacks, or a plan that comes out empty.
    """
    records = [
        record
        for record in dataset.split("train")
        if record.style and not set(plan.without).intersection(record.tags)
    ]
    known = sorted({record.style for record in records})
    if missing := [style for style in plan.styles if style not in known]:
        raise SettingsError(
            f"the plan's style {missing[0]} has no training picture in {dataset.folder}", ", ".join(known)
        )
    _require_tags(plan, dataset)
    plain = without_comments(settings)
    unprompted = _unprompted(plain, edge_px)
    shots: list[Shot] = []
    for style in plan.styles or known:
        for tags in draw_contents(plan, records, style, settings.seed):
            prompt, negative = compose(plain, (style,), tags, embeddings)
            told = {"prompt": prompt, "negative_prompt": negative, "seed": settings.seed + len(shots)}
            shots.append(unprompted.model_copy(update={**told, "style": style, "tags": tags}))
    if not shots:
        raise SettingsError(f"the plan asks for no picture of {dataset.folder}", "styles and unseen tags")
    return shots


def _require_tags(plan: Plan, dataset: Dataset) -> None:
    """Every tag of the plan's groups is on some picture: a misspelt one would not be drawn, unnoticed."""
    known = {tag for record in dataset.records for tag in record.tags}
    for name, tags in plan.groups.items():
        if unknown := [tag for tag in tags if tag not in known]:
            raise SettingsError(
                f"the plan's groups.{name}: no picture in {dataset.folder} has the tag {unknown[0]!r}",
                "tags of its pictures",
                did_you_mean(unknown[0], known),
            )


def without_comments(settings: DrawingSettings) -> DrawingSettings:
    """The settings with prompts that say nothing but what is drawn: a picture's text has no comments."""
    if not settings.comments:
        return settings
    hires = settings.hires and settings.hires.model_copy(update=_stripped(settings.hires))
    return settings.model_copy(update={**_stripped(settings), "hires": hires})


def _stripped(part: DrawingSettings | Hires) -> dict[str, str]:
    given = {name: getattr(part, name) for name in ("prompt", "negative_prompt")}
    return {name: strip_comments(text).strip() for name, text in given.items() if "#" in text}


def draw_contents(plan: Plan, records: Sequence[Record], style: str, seed: int) -> Iterator[tuple[str, ...]]:
    """The tags of one style's shots, drawn by a generator of that style's own."""
    chance = random.Random(f"{seed}/{style}")
    own = [record for record in records if record.style == style]
    if not plan.groups:
        if plan.combinations != "seen":
            raise SettingsError(f"combinations = {plan.combinations!r} without groups", "groups of tags")
        for _ in range(plan.shots_per_style):
            yield chance.choice(own).tags
        return
    everywhere = {tag for record in records for tag in record.tags}
    choices = [_choices(tags, own, everywhere, plan.combinations) for tags in plan.groups.values()]
    if plan.combinations == "unseen" and not any(unseen for _, unseen in choices):
        return
    for _ in range(plan.shots_per_style):
        drawn = [chance.choice(options) for options, _ in choices if options]
        yield tuple(filter(None, drawn))


def _choices(
    group: Sequence[str], own: Sequence[Record], everywhere: set[str], combinations: str
) -> tuple[list[str], bool]:
    """A group's options for one style, "" being none of them, and whether they are all unseen ones. No
    options at all if the style never shows the group."""
    shown = [{tag for tag in group if tag in record.tags} for record in own]
    seen = set().union(*shown)
    if not seen:
        return [], False
    unseen = [tag for tag in group if tag in everywhere and tag not in seen]
    if combinations == "unseen" and unseen:
        return unseen, True
    allowed = seen | set(unseen) if combinations == "any" else seen
    without = [] if all(shown) else [""]
    return [*(tag for tag in group if tag in allowed), *without], False


def read_shots(path: Path) -> list[Shot]:
    """The shots of a gallery or list: a shot a line, bare or as `{"file": ..., "shot": ...}`.

    Raises FileError naming the line that is no shot.
    """
    path = path / SHOTS_FILE if path.is_dir() else path
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} could not be read ({error})", "a list of shots") from error
    shots: list[Shot] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            shots.append(_read_shot(line, f"{path}, line {number}"))
    if not shots:
        raise FileError(f"{path} is empty", "one shot a line")
    return shots


def _read_shot(line: str, where: str) -> Shot:
    try:
        entry = json.loads(line)
        told = entry.get("shot", entry) if isinstance(entry, dict) else entry
        return well_named(Shot.model_validate(told))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise FileError(f"{where}: {field} is {first['input']!r}: {first['msg']}", "a shot") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not JSON", "a shot") from error


def _unprompted(settings: DrawingSettings, edge_px: int) -> Shot:
    """What all shots of one run have in common. Raises SettingsError for what can't go together."""
    told = {name: getattr(settings, name) for name in SAME if name in type(settings).model_fields}
    size = {"width": settings.width or edge_px, "height": settings.height or edge_px}
    try:
        return well_named(Shot.model_validate({**told, **size, "prompt": ""}))
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": Value error, ")
        ) from error


def compose(
    settings: DrawingSettings, styles: Sequence[str], tags: Sequence[str], embeddings: Sequence[str]
) -> tuple[str, str]:
    """Prompt and negative prompt, as a picture's text tells them. Styles and tags stand for themselves: their
    brackets weigh nothing. Raises SettingsError for what no text can tell."""
    trigger = ", ".join(f"by {escape(_bare(style))}" for style in styles)
    content = ", ".join(filter(None, (*map(verbatim, tags), settings.prompt)))
    if not settings.template:
        return _told(", ".join(filter(None, (trigger, content)))), _told(settings.negative_prompt)
    card = load_catalogue().parameters
    formats = Parameters(
        prompt=settings.prompt_template or card.prompt,
        negative_prompt=settings.negative_template or card.negative_prompt,
        negative_embedding=", ".join(map(escape, embeddings)),
    )
    return _told(formats.positive(trigger, content)), _told(formats.negative(settings.negative_prompt))


def _told(prompt: str) -> str:
    """Without blanks at the ends of its lines, which no text tells. Raises SettingsError for a line that a
    picture's text would be read otherwise for."""
    lines = [line.strip() for line in prompt.strip().split("\n")]
    if any(line.startswith(NEGATIVE) for line in lines):
        raise SettingsError(
            f"a line of the prompt begins with {NEGATIVE!r}",
            "the prompt alone",
            "Give the negative prompt by itself; `aid again` draws a picture's whole text.",
        )
    return "\n".join(lines)


def _bare(style: str) -> str:
    return style.removeprefix("by ").strip()
