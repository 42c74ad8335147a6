"""prepare: folders of pictures with tags -> Dataset."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aid.core.artifact import verb
from aid.core.dataset import PICTURE_FOLDER, RECORDS_FILE, REPORT_FILE, Record
from aid.core.files import sha256_file, write_json, write_lines
from aid.core.workbench import Workbench
from aid.dataset.bucket import Size, ladder
from aid.dataset.cut import Cut, cut_picture, in_order, picture_files
from aid.dataset.duplicate import first_copies, near_duplicates
from aid.dataset.find import Aside, Candidate, Found, find, printable, require_styles
from aid.dataset.report import summarise
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.dataset.split import split
from aid.errors import PictureError


@verb("prepare", resumable=True)
def prepare(settings: PrepareSettings, inputs: PrepareInputs, out: Path, bench: Workbench) -> None:
    """Find, check, drop copies, cut to buckets, tell near duplicates, split, cache latents. An interrupted
    run cuts again, which is quick, and goes on with the latents that it finds.

    Fills `out` as aid.core.dataset describes; report.json names every file set aside, and why. Raises
    FileError for a style none of whose pictures is left, and for inputs that can't be read at all.
    """
    with _kept_for_latents(out):
        if inputs.vae is None:
            prepare_pictures(settings, inputs, out, bench)
            return
        from aid.dataset.latent import cache_latents  # torch is only needed here
        from aid.sd.checkpoint import load_vae
        from aid.sd.device import torch_device

        vae = load_vae(inputs.vae, torch_device(bench))  # first: a wrong one is told at once
        records = prepare_pictures(settings, inputs, out, bench)
        cache_latents(records, out, vae, settings.latent_batch, bench)


@contextmanager
def _kept_for_latents(out: Path) -> Iterator[None]:
    """After an error, keep what was prepared only if there are latents that a later run can go on with."""
    try:
        yield
    except BaseException:
        if not any(out.rglob("latents-*.npy")):
            shutil.rmtree(out / PICTURE_FOLDER, ignore_errors=True)
            for name in (RECORDS_FILE, REPORT_FILE):
                (out / name).unlink(missing_ok=True)
        raise


def prepare_pictures(
    settings: PrepareSettings, inputs: PrepareInputs, out: Path, bench: Workbench
) -> list[Record]:
    """All of a Dataset but its latents, from the start."""
    shutil.rmtree(out / PICTURE_FOLDER, ignore_errors=True)
    found = find(inputs, settings)
    require_styles(found, {candidate.style for candidate in found.candidates}, {})
    originals, copies = _drop_copies(found.candidates, bench)
    kept = _cut(originals, found, out, settings, bench)
    duplicates = [(copy.source, first.source) for copy, first in copies]
    asides = {copy.source: Aside(f"is a copy of {first.source}", copy.style) for copy, first in copies}
    require_styles(found, {candidate.style for candidate, *_ in kept}, asides)

    looks = [cut.look for *_, cut in kept]
    likeness = near_duplicates(looks, settings.near_duplicate_bits, settings.near_duplicate_levels)
    records = _records(kept, likeness.leader, settings)
    near = [(records[a].source, records[b].source, distance) for a, b, distance in likeness.pairs]
    shares = [cut.kept for *_, cut in kept]
    write_lines(out / RECORDS_FILE, [record.model_dump(mode="json") for record in records])
    write_json(out / REPORT_FILE, summarise(records, shares, found, duplicates, near, settings))
    return records


Original = tuple[Candidate, str]  # with its sha256
Kept = tuple[Candidate, str, str, Cut]  # with its sha256, its file in the dataset, what it became


def _drop_copies(
    candidates: Sequence[Candidate], bench: Workbench
) -> tuple[list[Original], list[tuple[Candidate, Candidate]]]:
    """The first of each file with its sha256; and each copy with its first."""
    sha256s = []
    with bench.progress.task("hash", len(candidates), "pictures") as tick:
        for sha256 in in_order(lambda candidate: sha256_file(candidate.path), candidates, bench):
            sha256s.append(sha256)
            tick()
    copies = first_copies(sha256s)
    originals = [
        (candidate, sha256s[index]) for index, candidate in enumerate(candidates) if index not in copies
    ]
    return originals, [(candidates[copy], candidates[first]) for copy, first in copies.items()]


def _cut(
    originals: Sequence[Original], found: Found, out: Path, settings: PrepareSettings, bench: Workbench
) -> list[Kept]:
    """Every picture that could be cut; the others go to `found.quarantined`."""
    rungs = ladder(settings)
    jobs = [(*original, file) for original, file in zip(originals, picture_files(originals), strict=True)]

    def work(job: tuple[Candidate, str, str]) -> Cut | Aside:
        candidate, _, file = job
        try:
            return cut_picture(candidate.path, out / file, rungs, settings)
        except PictureError as error:
            return Aside(printable(str(error)), candidate.style)

    kept: list[Kept] = []
    with warnings.catch_warnings(action="ignore"), bench.progress.task("crop", len(jobs), "pictures") as tick:
        for job, result in zip(jobs, in_order(work, jobs, bench), strict=True):
            if isinstance(result, Aside):
                found.quarantined[job[0].source] = result
            else:
                kept.append((*job, result))
            tick()
    return kept


def _records(kept: Sequence[Kept], leader: Sequence[int], settings: PrepareSettings) -> list[Record]:
    """Records in the order found; rows count up within each bucket."""
    splits = split(
        [sha256 for _, sha256, *_ in kept],
        [candidate.style for candidate, *_ in kept],
        leader,
        settings.held_fraction,
        settings.held_minimum,
    )
    rows: dict[Size, int] = {}
    records = []
    for (candidate, sha256, file, cut), side in zip(kept, splits, strict=True):
        row = rows.get(cut.size, 0)
        rows[cut.size] = row + 1
        records.append(
            Record(
                sha256=sha256,
                source=candidate.source,
                file=file,
                style=candidate.style,
                tags=candidate.tags,
                split=side,
                regularisation=candidate.regularisation,
                licence=candidate.licence,
                credit=candidate.credit,
                width=cut.size[0],
                height=cut.size[1],
                row=row,
            )
        )
    return records
