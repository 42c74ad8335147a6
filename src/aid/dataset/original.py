"""Originals: candidates that are no copies of one another, with their hashes and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aid.core.files import sha256_file
from aid.core.picture import picture_size
from aid.core.workbench import Workbench
from aid.dataset.cutting.cut import in_order
from aid.dataset.cutting.fitting import Size
from aid.dataset.duplicate import first_copies
from aid.dataset.finding.find import Candidate
from aid.errors import PictureError


@dataclass(frozen=True)
class Original:
    """A picture as it was found; `size` is by its header, upright, None if that can't be read."""

    candidate: Candidate
    sha256: str
    size: Size | None


@dataclass(frozen=True)
class Copy:
    """A file with the same bytes as an earlier one."""

    candidate: Candidate
    of: Candidate


def originals_of(candidates: Sequence[Candidate], bench: Workbench) -> tuple[list[Original], list[Copy]]:
    """The first of each file, and the copies."""
    read = []
    with bench.progress.task("hash", len(candidates), "pictures") as tick:
        for original in in_order(_read, candidates, bench):
            read.append(original)
            tick()
    first = first_copies([original.sha256 for original in read])
    originals = [original for index, original in enumerate(read) if index not in first]
    return originals, [Copy(candidates[copy], candidates[index]) for copy, index in first.items()]


def _read(candidate: Candidate) -> Original:
    sha256 = sha256_file(candidate.path)
    try:
        return Original(candidate, sha256, picture_size(candidate.path))
    except PictureError:
        return Original(candidate, sha256, None)  # why, is told when it is cut
