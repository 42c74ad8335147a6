"""SLERP (Shoemake 1985): a weighted sum, once the angle is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aid.merge.arithmetic.source import Operand
from aid.merge.arithmetic.sums import arithmetic
from aid.merge.modes.mode import Told
from aid.sd.file.header import ITEM_BYTES


def slerp(models: Sequence[Operand], told: Told) -> memoryview:
    """From A to B along the sphere, alpha of the way; the length goes straight. `measured` are the products
    A B, A A and B B."""
    weighed = [one._replace(weight=own) for one, own in zip(models, _weights(told), strict=True)]
    out = memoryview(bytearray(told.length * ITEM_BYTES[told.working]))
    way = arithmetic([*(one.format for one in models), told.working])
    way.blend(weighed, told.length, told.working, out)
    return out


def _weights(told: Told) -> tuple[float, float]:
    product, *squares = told.measured
    one, other = (math.sqrt(square) for square in squares)
    cosine = product / (one * other) if one and other else 1.0
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return 1 - told.alpha, told.alpha
    length = (one + told.alpha * (other - one)) / math.sin(angle)
    first, second = math.sin((1 - told.alpha) * angle), math.sin(told.alpha * angle)
    return length * first / one, length * second / other
