"""prepare: folders of pictures with tags -> Dataset."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from aid.core.artifact import SCRATCH, verb
from aid.core.dataset import LATENT_SCALE, PICTURE_FOLDER, RECORDS_FILE, REPORT_FILE, Record, Split
from aid.core.files import write_json, write_lines
from aid.core.workbench import Ticker, Workbench
from aid.dataset.cutting.bucket import Rule, Size, rules
from aid.dataset.cutting.cut import Cut, View, cut_picture, in_order, picture_files
from aid.dataset.cutting.mask import MaskSheet
from aid.dataset.duplicate import Fingerprint, near_duplicates
from aid.dataset.finding.find import Aside, Found, find, printable, require_styles
from aid.dataset.finding.tag import Tags
from aid.dataset.finding.wording import added_words, character_features, without_features
from aid.dataset.latents.vault import PART_BATCHES, PARTS, Vault
from aid.dataset.original import Copy, Original, originals_of
from aid.dataset.report import in_words, summarise
from aid.dataset.room import require_room
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.dataset.split import split
from aid.errors import PictureError


class Sink(Protocol):
    """Takes the views of pictures in the order of their rows, and keeps their latents."""

    def add(self, sha256: str, view: View) -> None: ...

    def finish(self) -> None: ...


@verb("prepare", resumable=True, spared=PARTS)
def prepare(settings: PrepareSettings, inputs: PrepareInputs, out: Path, bench: Workbench) -> None:
    """Find, drop copies, choose buckets, cut and encode side by side, tell near duplicates, split.

    An interrupted run cuts again, which is quick, and goes on with the latents that it finds, whatever has
    changed meanwhile; so does one that replaces an artifact, with the latents of pictures that are the same.

    Fills `out` as aid.core.dataset describes; report.json names every file set aside, and why. Raises
    FileError for a style none of whose pictures is left, and for inputs that can't be read at all.
    """
    if bench.ray:
        from aid.dataset.cluster import absolute

        inputs, out = absolute(inputs), out.absolute()
    with _kept_for_latents(out):
        if inputs.vae is None:
            prepare_pictures(settings, inputs, out, bench)
            return
        from aid.dataset.latents.latent import Encoder  # torch is only needed here
        from aid.sd.model.checkpoint import load_vae
        from aid.sd.model.device import torch_device
        from aid.sd.model.vae_file import latent_scale

        vae = load_vae(inputs.vae, torch_device(bench))  # first: a wrong one is told at once
        vault = Vault(out, PART_BATCHES * settings.latent_batch)
        batch, mirrored = settings.latent_batch, settings.mirrored
        encoder: Callable[..., Sink] = partial(Encoder, vae)
        if bench.ray:
            from aid.dataset.latents.cluster import ClusterEncoder

            encoder = partial(ClusterEncoder, vae, inputs.vae, bench.ray)
        scale = latent_scale(inputs.vae)
        prepare_pictures(
            settings, inputs, out, bench, lambda tick: encoder(vault, batch, mirrored, tick), scale
        )


@contextmanager
def _kept_for_latents(out: Path) -> Iterator[None]:
    """After an error, keep what was prepared only if there are latents that a later run can go on with."""
    try:
        yield
    except BaseException:
        if not any((out / SCRATCH).glob(PARTS)):
            shutil.rmtree(out / PICTURE_FOLDER, ignore_errors=True)
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
            for path in (*out.glob("latents-*"), *out.glob("masks-*")):
                path.unlink()
            for name in (RECORDS_FILE, REPORT_FILE):
                (out / name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Placed:
    """A view in the dataset: its bucket and row there, the share of the original's pixels kept."""

    size: Size
    row: int
    kept: float
    file: str


@dataclass(frozen=True)
class Kept:
    """An original with its views in the dataset, and how it looks."""

    original: Original
    views: tuple[Placed, ...]
    look: Fingerprint


def prepare_pictures(
    settings: PrepareSettings,
    inputs: PrepareInputs,
    out: Path,
    bench: Workbench,
    sink: Callable[[Ticker], Sink] | None = None,
    latent_scale: float | None = None,
) -> list[Record]:
    """A Dataset, from the start; its latents too, if there is a sink for them."""
    shutil.rmtree(out / PICTURE_FOLDER, ignore_errors=True)
    found = find(inputs, settings)
    require_styles(found, {candidate.style for candidate in found.candidates}, {})
    originals, copies = originals_of(found.candidates, bench)
    plan = rules(Counter(original.size for original in originals if original.size), settings)
    _require_room(originals, plan, out, settings, sink is not None)
    kept = _cut(originals, plan, found, out, settings, bench, sink)
    require_styles(found, {each.original.candidate.style for each in kept}, _asides(copies))

    looks = [each.look for each in kept]
    likeness = near_duplicates(looks, settings.near_duplicate_bits, settings.near_duplicate_levels)
    sources = [each.original.candidate.source for each in kept]
    near = [(sources[a], sources[b], distance) for a, b, distance in likeness.pairs]
    records = _records(kept, _sides(kept, likeness.leader, settings), settings)
    shares = [view.kept for each in kept for view in each.views]
    duplicates = [(copy.candidate.source, copy.of.source) for copy in copies]
    write_lines(out / RECORDS_FILE, [record.model_dump(mode="json") for record in records])
    report = summarise(records, shares, found, duplicates, near, settings)
    report[LATENT_SCALE] = latent_scale
    write_json(out / REPORT_FILE, report)
    for line in in_words(report):
        bench.progress.say(f"  {line}")
    return records


def _asides(copies: Sequence[Copy]) -> dict[str, Aside]:
    return {
        copy.candidate.source: Aside(f"is a copy of {copy.of.source}", copy.candidate.style)
        for copy in copies
    }


def _require_room(
    originals: Sequence[Original], plan: Sequence[Rule], out: Path, settings: PrepareSettings, latents: bool
) -> None:
    sizes = (
        {rule.choose(*original.size) for rule in plan} for original in originals if original.size is not None
    )
    pixels = sum(size[0] * size[1] for own in sizes for size in own if size is not None)
    require_room(out, pixels, latents * (1 + settings.mirrored))


def _cut(
    originals: Sequence[Original],
    plan: Sequence[Rule],
    found: Found,
    out: Path,
    settings: PrepareSettings,
    bench: Workbench,
    sink: Callable[[Ticker], Sink] | None,
) -> list[Kept]:
    """Every picture that could be cut; the others go to `found.quarantined`. While threads cut the next
    ones, the sink encodes; rows count up within each bucket."""
    files = picture_files([(original.candidate, original.sha256) for original in originals])

    def work(job: tuple[Original, str]) -> Cut | Aside:
        original, file = job
        try:
            cut = cut_picture(original.candidate, out, file, plan, settings)
            return cut.without_pixels() if far else cut
        except PictureError as error:
            return Aside(printable(str(error)), original.candidate.style)

    far = bool(bench.ray)  # where pixels would have to travel
    kept: list[Kept] = []
    rows, masks = Counter[Size](), MaskSheet()
    label, each = ("encode", len(plan) * (1 + settings.mirrored)) if sink else ("crop", 1)
    jobs = list(zip(originals, files, strict=True))
    with (
        warnings.catch_warnings(action="ignore"),
        bench.progress.task(label, len(jobs) * each, "pictures") as tick,
    ):
        encoder = sink(tick) if sink else None
        for (original, _), cut in zip(jobs, in_order(work, jobs, bench), strict=True):
            if isinstance(cut, Aside):
                found.quarantined[original.candidate.source] = cut
                tick(each)
                continue
            kept.append(_placed(original, cut, rows, masks))
            for view in cut.views if encoder else ():
                encoder.add(original.sha256, view)  # type: ignore[union-attr]
            tick(each - len(cut.views) * (1 + settings.mirrored) if encoder else 1)
        if encoder:
            encoder.finish()
    masks.write(out, rows)
    return kept


def _placed(original: Original, cut: Cut, rows: Counter[Size], masks: MaskSheet) -> Kept:
    """A cut picture's views with the next rows of their buckets; their pixels are let go."""
    views = []
    for view in cut.views:
        row = rows[view.size]
        rows[view.size] += 1
        masks.add(view.size, row, view.mask)
        views.append(Placed(view.size, row, view.kept, view.file))
    return Kept(original, tuple(views), cut.look)


def _sides(kept: Sequence[Kept], leader: Sequence[int], settings: PrepareSettings) -> list[Split]:
    return split(
        [each.original.sha256 for each in kept],
        [each.original.candidate.style for each in kept],
        leader,
        settings.held_fraction,
        settings.held_minimum,
    )


def _records(kept: Sequence[Kept], sides: Sequence[Split], settings: PrepareSettings) -> list[Record]:
    """Records in the order found, a picture's views one after another."""
    tags = _tags(kept, settings)
    return [
        _record(each.original, view, side, words)
        for each, side, words in zip(kept, sides, tags, strict=True)
        for view in each.views
    ]


def _tags(kept: Sequence[Kept], settings: PrepareSettings) -> list[Tags]:
    """What is written of each picture, without what its character says, and with what follows from itself."""
    candidates = [each.original.candidate for each in kept]
    written = [Tags(one.tags, one.fixed, one.characters) for one in candidates]
    features = character_features(written, settings)
    tags = []
    for each, own in zip(kept, written, strict=True):
        one, size = each.original.candidate, each.original.size or each.views[0].size
        more = added_words(size, one.score, one.rating, settings)
        plain = without_features(own, features)
        tags.append(replace(plain, tags=tuple(dict.fromkeys((*plain.tags, *more)))))
    return tags


def _record(original: Original, view: Placed, side: Split, tags: Tags) -> Record:
    candidate = original.candidate
    return Record(
        sha256=original.sha256,
        source=candidate.source,
        file=view.file,
        style=candidate.style,
        tags=tags.tags,
        fixed=tags.fixed,
        description=candidate.description,
        score=candidate.score,
        repeats=candidate.repeats,
        split=side,
        regularisation=candidate.regularisation,
        licence=candidate.licence,
        credit=candidate.credit,
        width=view.size[0],
        height=view.size[1],
        row=view.row,
    )
