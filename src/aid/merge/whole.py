"""The modes that look at a whole tensor: pure functions of A, B, ... and a step's three numbers.

Arrays are float32, or float64 where the result is; sums are taken in float64 and by one thread, so that the
same tensors give the same bytes everywhere. Sources: hako-mikan's sd-webui-supermerger, s1dlx's meh, ljleb's
sd-mecha; TIES: Yadav et al. 2023; DARE: Yu et al. 2023; SLERP: Shoemake 1985.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aid.errors import SettingsError

Array = NDArray[Any]
PART = 1 << 14  # values


class Numbers(NamedTuple):
    """What a mode is told: a step's weights, chance of its own for each tensor, and for the cosine modes the
    range of similarities in the whole model."""

    alpha: float
    beta: float
    gamma: float
    chance: np.random.Generator
    bounds: tuple[float, float] = (0.0, 1.0)


Mode = Callable[[Sequence[Array], Numbers], Array]


def train_difference(models: Sequence[Array], told: Numbers) -> Array:
    """A + 1.8 alpha s (B - C), s = |B - A| / (|B - A| + |B - C|): the more where A hasn't learned it yet."""
    a, b, c = models
    learned, left = b - c, np.abs(b - a)
    both = left + np.abs(learned)
    share = np.divide(left, both, out=np.zeros_like(both), where=both != 0)
    return np.asarray(a + 1.8 * told.alpha * share * learned)


def smooth_add(models: Sequence[Array], told: Numbers) -> Array:
    """A + alpha S(B - C): the median over 3 neighbours along each axis, then a Gaussian of sigma 1."""
    try:
        from scipy.ndimage import gaussian_filter, median_filter
    except ImportError as error:
        raise SettingsError("smooth_add needs scipy", next_step="pip install scipy") from error
    a, b, c = models
    smooth = gaussian_filter(median_filter(b - c, size=3), sigma=1)
    return np.asarray(a + told.alpha * smooth)


def cosine_a(models: Sequence[Array], told: Numbers) -> Array:
    """A where the two are alike, B elsewhere; alike by their columns' directions."""
    a, b = models
    return _by_likeness(a, b, (alike_a(models) + _cosine(_normal(a), _normal(b))) / 2, told)


def cosine_b(models: Sequence[Array], told: Numbers) -> Array:
    """As `cosine_a`, of the columns as they are."""
    a, b = models
    return _by_likeness(a, b, alike_b(models), told)


def alike_a(models: Sequence[Array]) -> Array:
    """Each column's cosine, of which supermerger takes the range for `cosine_a`."""
    a, b = (_normal(model) for model in models)
    return _cosine(a, b, 0)


def alike_b(models: Sequence[Array]) -> Array:
    """Each column's cosine and the whole tensors', averaged."""
    a, b = models
    return (_cosine(a, b, 0) + _cosine(a, b)) / 2


def _by_likeness(a: Array, b: Array, alike: Array, told: Numbers) -> Array:
    lowest, highest = told.bounds
    share = np.clip((alike - lowest) / (highest - lowest or 1.0) - told.alpha, 0.0, 1.0)
    share = np.nan_to_num(share).astype(a.dtype)
    return b * (1 - share) + a * share


def _normal(model: Array) -> Array:
    """Columns of length 1."""
    length = np.sqrt(np.sum(model * model, axis=0, dtype=np.float64))
    return (model / np.maximum(length, 1e-12)).astype(model.dtype)


def _cosine(a: Array, b: Array, axis: int | None = None) -> Array:
    product, *squares = (np.sum(x * y, axis=axis, dtype=np.float64) for x, y in ((a, b), (a, a), (b, b)))
    lengths = np.sqrt(np.maximum(squares[0], 1e-16) * np.maximum(squares[1], 1e-16))
    return np.asarray(product / lengths)


def tensor(models: Sequence[Array], told: Numbers) -> Array:
    """A, but B in the rows from beta to alpha + beta of their number, going round beyond the last."""
    return _rows(models, told, 0)


def tensor2(models: Sequence[Array], told: Numbers) -> Array:
    """As `tensor`, by columns where there are more than a hundred."""
    a = models[0]
    return _rows(models, told, 1 if a.ndim > 1 and a.shape[1] > 100 else 0)


def _rows(models: Sequence[Array], told: Numbers, axis: int) -> Array:
    a, b = models
    if a.ndim == 0:
        return a
    count, end = a.shape[axis], told.alpha + told.beta
    outside, inside = (a, b) if end <= 1 else (b, a)
    first, last = (told.beta, end) if end <= 1 else (end - 1, told.beta)
    result = outside.copy()
    taken = (slice(None),) * axis + (slice(int(count * first), int(count * last)),)
    result[taken] = inside[taken]
    return result


def extract(models: Sequence[Array], told: Numbers) -> Array:
    """A + what B and C, mixed by alpha, have in common beyond A; with beta 1 what they don't have in common.
    The greater gamma, the more alike it must be."""
    base, b, c = models
    b, c = b - base, c - base
    alike = np.clip(_cosine(b, c, -1), -1, 1)[..., None] if base.ndim else _cosine(b, c)
    alike = (((alike + 1) / 2) ** told.gamma).astype(base.dtype)
    kept = alike + told.beta * (1 - 2 * alike)
    return base + (b + told.alpha * (c - b)) * kept


def ties(models: Sequence[Array], told: Numbers) -> Array:
    """A + alpha times the mean of what the others agree on: of each one's differences the largest, a share of
    beta, and of these only those with the sign that most have."""
    return _agreed(models, told, np.sign)


def ties_mass(models: Sequence[Array], told: Numbers) -> Array:
    """`ties`, the sign being that of the differences' sum, as in the paper."""
    return _agreed(models, told, lambda difference: difference)


def _agreed(models: Sequence[Array], told: Numbers, vote: Callable[[Array], Array]) -> Array:
    """By parts that a processor's cache holds: but for each model's least difference, values stand alone."""
    base, result = models[0], np.empty_like(models[0])
    least = [_least(model, base, told.beta) for model in models[1:]] if base.size else []
    rows = [model.reshape(-1) for model in models]
    for start in range(0, base.size, PART):
        own, *others = (row[start : start + PART] for row in rows)
        differences = [
            np.where(np.abs(d := other - own) >= end, d, 0) for other, end in zip(others, least, strict=True)
        ]
        result.reshape(-1)[start : start + PART] = own + told.alpha * _mean_of_agreed(differences, vote)
    return result


def _mean_of_agreed(differences: Sequence[Array], vote: Callable[[Array], Array]) -> Array:
    elected = np.sign(sum(map(vote, differences)))
    agree = [np.sign(one) == elected for one in differences]
    total = sum(np.where(own, one, 0) for own, one in zip(agree, differences, strict=True))
    count = sum(own.astype(elected.dtype) for own in agree)
    return np.asarray(np.divide(total, count, out=np.zeros_like(elected), where=count != 0))


def _least(model: Array, base: Array, share: float) -> float:
    """The size of the smallest difference among the largest, a share of all."""
    sizes = (model - base).reshape(-1)
    np.abs(sizes, out=sizes).partition(place := max(int((1 - share) * sizes.size), 1) - 1)
    return float(sizes[place])


def dare(models: Sequence[Array], told: Numbers) -> Array:
    """A + alpha times the mean of the others' differences, of which a share of beta is dropped by chance and
    the rest enlarged to make up for it."""
    base, total = models[0], np.zeros_like(models[0])
    for model in models[1:]:
        kept = told.chance.random(base.shape, dtype=np.float32) >= told.beta
        total += np.where(kept, model - base, 0)
    return base + told.alpha / ((1 - told.beta) * (len(models) - 1)) * total


def slerp(models: Sequence[Array], told: Numbers) -> Array:
    """From A to B along the sphere, alpha of the way; the length goes straight."""
    a, b = models
    lengths = [float(np.sqrt(np.sum(one * one, dtype=np.float64))) for one in models]
    angle = float(np.arccos(np.clip(_cosine(a, b), -1, 1))) if all(lengths) else 0.0
    if np.sin(angle) < 1e-6:
        return a + told.alpha * (b - a)
    length = (lengths[0] + told.alpha * (lengths[1] - lengths[0])) / np.sin(angle)
    first, second = np.sin((1 - told.alpha) * angle), np.sin(told.alpha * angle)
    return np.asarray((length * first / lengths[0]) * a + (length * second / lengths[1]) * b)


WHOLE: dict[str, Mode] = {
    mode.__name__: mode
    for mode in (
        train_difference, smooth_add, cosine_a, cosine_b, tensor, tensor2, extract, ties, ties_mass, dare,
        slerp,
    )
}  # fmt: skip
LIKENESS: dict[str, Callable[[Sequence[Array]], Array]] = {"cosine_a": alike_a, "cosine_b": alike_b}
"""Modes that go by a range of similarities in the whole model, and what is ranged."""
