"""What a mode is that doesn't only weigh: it works part by part, after a first pass where it needs one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aid.merge.arithmetic.source import Operand

Shape = tuple[int, ...]
PART = 1 << 14  # values: a few arrays of as many stay in a processor's cache


class Told(NamedTuple):
    """What a mode is told: a step's numbers; the tensor's name and shape; which of its values are wanted, in
    float32 or float64; what the first pass found; for the cosine modes the whole model's range; and how many
    values more it is given to both sides, as far as there are any."""

    alpha: float
    beta: float
    gamma: float
    seed: int
    key: str
    shape: Shape
    start: int
    length: int
    working: str
    measured: Any = None
    bounds: tuple[float, float] = (0.0, 1.0)
    around: int = 0

    @property
    def given(self) -> tuple[int, int]:
        """The first value and how many."""
        first = max(0, self.start - self.around)
        return first, min(math.prod(self.shape), self.start + self.length + self.around) - first


@dataclass(frozen=True)
class Given:
    """One tensor of A, B, ...: `read` gives so many values of one of the `models` (number, start, count);
    `keep` lays bytes aside, and gives what reads them again: of all tensors they would fill the memory."""

    shape: Shape
    models: int
    working: str
    read: Callable[[int, int, int], Operand]
    keep: Callable[[bytes], Callable[[], bytes]] = lambda content: lambda: content

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def parts(
        self, which: Sequence[int], grain: int = 1, every: int = 1, values: int = PART
    ) -> Iterator[tuple[int, list[Operand]]]:
        """How many values a part has, and these of the models asked for. Parts are whole grains and always
        the same, so sums may hang on them; of so many, one is given."""
        step = parts_of(grain, values)
        for start in range(0, self.size, step * every):
            count = min(step, self.size - start)
            yield count, [self.read(number, start, count) for number in which]


@dataclass(frozen=True)
class Mode:
    """`part` gives values wanted, of A's, B's, ...; `measure` is the first pass over a tensor, told beta.
    Parts begin at a multiple of what `grain` says of a shape, and hold whole grains."""

    part: Callable[[Sequence[Operand], Told], memoryview]
    measure: Callable[[Given, float], Any] | None = None
    grain: Callable[[Shape], int] = lambda shape: 1
    around: Callable[[Shape], int] = lambda shape: 0
    """How many values more it hangs on to both sides of a part."""
    values: int = PART
    """At a time."""
    exact: bool = False
    """Whether it works in doubles whatever the format: where large numbers cancel out, what is left shows
    if floats were rounded."""
    ranged: Callable[[Any], Any] = lambda measured: measured
    """What of the measured the whole model's range is of, in the modes that go by one."""


def parts_of(grain: int, values: int = PART) -> int:
    """So many values at most, if a grain isn't larger."""
    grain = max(1, grain)  # of a tensor without values it is 0
    return max(grain, values // grain * grain)
