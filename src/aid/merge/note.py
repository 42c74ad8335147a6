"""What is noted while a file is written: faults."""

from __future__ import annotations

from dataclasses import dataclass, field

from aid.core.workbench import Ticker
from aid.errors import ModelError
from aid.merge.streaming.stream import THE_SUM, Fault, Piece


@dataclass
class Notes:
    """Looks at each piece, in the file's order."""

    keeps_broken: bool
    tick: Ticker
    broken: dict[str, str] = field(default_factory=dict)
    """Tensor -> where its NaN or infinity comes from."""

    def __call__(self, piece: Piece, fault: Fault) -> None:
        """Raises ModelError for NaN and infinity, unless they are to be kept."""
        if piece.start == 0:
            self.tick()
        if not fault:
            return
        if not self.keeps_broken:
            summed = f"{piece.key}, in {piece.output.format.word},"
            where = summed if fault == THE_SUM else f"{fault}: {piece.key}"
            raise ModelError(
                f"{where} holds NaN or infinity",
                "finite weights",
                "Use an undamaged copy of it, or smaller weights.",
            )
        self.broken.setdefault(piece.key, fault)
