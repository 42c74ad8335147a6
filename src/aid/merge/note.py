"""What is noted while a file is written: faults."""

from __future__ import annotations

from dataclasses import dataclass, field

from aid.core.workbench import Ticker
from aid.errors import ModelError
from aid.merge.streaming.stream import Piece, Sum

WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass
class Notes:
    """Looks at each piece, in the file's order."""

    keeps_broken: bool
    tick: Ticker
    broken: dict[str, str] = field(default_factory=dict)
    """Tensor -> where its NaN or infinity comes from."""

    def __call__(self, piece: Piece, fault: int) -> None:
        """Raises ModelError for NaN and infinity, unless they are to be kept."""
        if piece.start == 0:
            self.tick()
        if fault:
            source = piece.output.source
            terms = source.terms if isinstance(source, Sum) else ()
            self._fault(piece, str(terms[fault - 1][0]) if terms and fault > 0 else "")

    def _fault(self, piece: Piece, parent: str) -> None:
        """Raises ModelError for NaN and infinity, unless they are to be kept."""
        format = piece.output.format.name
        where = f"{parent}: {piece.key}" if parent else f"{piece.key}, in {WORDS.get(format, format)},"
        if not self.keeps_broken:
            raise ModelError(
                f"{where} holds NaN or infinity", "finite weights", "Use an undamaged copy of this model."
            )
        self.broken.setdefault(piece.key, parent or "the sum")
