"""What is known before anything runs: pictures, models, and what earlier steps will have made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aid import starter
from aid.core.dataset import Dataset
from aid.errors import AidError
from aid.sd.model.cost import COSTS, Cost, read_cost

DISK_RATE = 0.3e9  # bytes/s


@dataclass(frozen=True)
class Pictures:
    """A dataset or gallery; by default the card's, which stands in where pictures are missing."""

    count: int = 4300
    styles: frozenset[str] = frozenset(f"style {number}" for number in range(40))
    replayed: int = 0
    held: int = 0
    pixels: int = 512 * 512
    note: str = "the pictures are missing: 4,300 of 40 styles are assumed, about the card's"

    @property
    def trained(self) -> int:
        """Neither held out nor replayed."""
        return max(1, self.count - self.replayed - self.held)


@dataclass(frozen=True)
class Work:
    """What one step takes. `number_bytes` is 2 where a GPU computes in 16 bits."""

    sizes: str
    made: Cost | Pictures | None = None
    flops: float = 0.0
    number_bytes: int = 4
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """The steps so far: folder -> name, what they will have made; which may make something new, or wait.
    Whether a GPU is meant, whose memory is to suffice. What a model is like that is missing."""

    names: dict[Path, str] = field(default_factory=dict)
    made: dict[Path, Cost | Pictures | None] = field(default_factory=dict)
    changed: set[Path] = field(default_factory=set)
    waiting: set[Path] = field(default_factory=set)
    gpu: bool = True
    model: Cost = COSTS["sd1"]

    def maker(self, path: Path) -> Path | None:
        """The folder of the earlier step that `path` is or lies in."""
        return next((folder for folder in (path, *path.parents) if folder in self.names), None)

    def told(self, path: Path) -> str:
        """A path as recipes write it: `@style` is what an earlier step makes, `aid:` what is shipped."""
        if maker := self.maker(path):
            return f"@{(Path(self.names[maker]) / path.relative_to(maker)).as_posix()}"
        if path == starter.BASE:
            return "aid:base"
        shipped = path.is_relative_to(starter.FOLDER)
        return f"aid:{path.relative_to(starter.FOLDER).as_posix()}" if shipped else str(path)

    def cost(self, path: Path) -> Cost:
        found = self.made.get(self.maker(path) or path)
        return found if isinstance(found, Cost) else read_cost(path, self.model)

    def pictures(self, path: Path) -> Pictures:
        found = self.made.get(self.maker(path) or path)
        return found if isinstance(found, Pictures) else read_pictures(path)


def read_pictures(path: Path) -> Pictures:
    """Of a dataset made before; the card's, with a note, if there is none."""
    try:
        records = Dataset(path).records
    except AidError:
        return Pictures()
    return Pictures(
        count=len(records),
        styles=frozenset(record.style for record in records if record.style),
        replayed=sum(record.regularisation and record.split == "train" for record in records),
        held=sum(record.split == "held" for record in records),
        pixels=max((record.width * record.height for record in records), default=0),
        note="",
    )


def many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
