"""How far a picture is from anything its artist drew, in two ways that fail apart.

*Texture* is `texture.py`'s statistics at full size: they see grain, blur and blocks that a person
sees, and know nothing of what is drawn. *Form* is the judge's own features at 64 px: they were taught
to ignore grain and softness, and see melted faces and shapes between two shapes. For each, a
picture's distance to its nearest real pictures of the same style is taken (their mean over
`NEIGHBOURS`, after scaling each dimension by its spread there), as a logarithm, because distances
multiply: then held-out real pictures set the zero and the unit. The measure is the sum of both, again
in units of held-out pictures: real ones have mean 0 and spread 1, whatever the dataset.

The style is the one asked for, as grain that belongs to one artist is a fault in another. A picture
of unknown style is measured against the style that the judge names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aid.judging.picture import Views
from aid.judging.texture import LEAST_SPREAD, SIZE
from aid.sd.file.tensorfile import is_finite
from aid.sd.picture.layout import CELLS, copy_distance, layout, nearest

NEIGHBOURS = 4
LEAST_UNIT = 0.05  # of a log distance
ENOUGH = 4  # held-out pictures, for a style to set its own zero
NEAREST = 1e-6


@dataclass(frozen=True)
class Traces:
    """What is measured of n pictures: judge features [n, d], texture [n, t], layout [n, l], and their
    style's row in the list of styles [n]."""

    features: Tensor
    textures: Tensor
    layouts: Tensor
    styles: Tensor


def trace(views: Views, features: Tensor, references: Sequence[str], styles: Sequence[str]) -> Traces:
    """The traces of pictures that are measured as of `styles`, each among `references`."""
    rows = {name: row for row, name in enumerate(references)}
    return Traces(
        features,
        views.textures,
        layout(views.thumbnails),
        torch.tensor([rows[style] for style in styles], dtype=torch.int64),
    )


@dataclass(frozen=True)
class Measured:
    """Of n pictures: the measure and its two parts, in spreads of real pictures, and near copies."""

    artefact: Tensor
    texture: Tensor
    form: Tensor
    near_copy: Tensor


@dataclass(frozen=True)
class Reference:
    """The training pictures, and what held-out ones measure beside them.

    `zero` [2, styles] and `unit` [3]: of texture, form and their sum; `copy_distance` is the layout
    distance that 1 % of held-out pictures come nearer than.
    """

    train: Traces
    texture_scale: Tensor
    feature_scale: Tensor
    zero: Tensor
    unit: Tensor
    copy_distance: float

    def tensors(self) -> dict[str, Tensor]:
        """For the judge's file; `from_tensors` reads them back."""
        return {
            "reference.features": self.train.features.half(),
            "reference.textures": self.train.textures,
            "reference.layouts": self.train.layouts.half(),
            "reference.styles": self.train.styles,
            "reference.texture_scale": self.texture_scale,
            "reference.feature_scale": self.feature_scale,
            "reference.zero": self.zero,
            "reference.unit": self.unit,
            "reference.copy_distance": torch.tensor([self.copy_distance], dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], features: int, styles: int) -> Reference:
        """For so many features of the judge, and so many styles. Raises KeyError and ValueError for what is
        missing or can't be measured by."""
        named = {key.removeprefix("reference."): value for key, value in tensors.items()}
        count = len(named["styles"])
        shapes = {
            "features": (count, features), "textures": (count, SIZE), "layouts": (count, 3 * CELLS**2),
            "texture_scale": (styles, SIZE), "feature_scale": (features,), "zero": (2, styles), "unit": (3,),
            "copy_distance": (1,),
        }  # fmt: skip
        for name, shape in shapes.items():
            own = named[name]
            if tuple(own.shape) != shape or not own.is_floating_point() or not is_finite(own):
                raise ValueError(f"{name} should be {list(shape)}, finite")
        rows = named["styles"]
        if (
            rows.dtype != torch.int64
            or rows.dim() != 1
            or not count
            or rows.min() < 0
            or rows.max() >= styles
        ):
            raise ValueError(f"styles should be rows of {styles}")
        return cls(
            Traces(named["features"].float(), named["textures"].float(), named["layouts"].float(), rows),
            named["texture_scale"].float(),
            named["feature_scale"].float(),
            named["zero"].float(),
            named["unit"].float(),
            float(named["copy_distance"]),
        )

    def measure(self, traces: Traces) -> Measured:
        logs = _log_distances(self.train, self.texture_scale, self.feature_scale, traces)
        parts = (logs - self.zero[:, traces.styles]) / self.unit[:2, None]
        return Measured(
            artefact=parts.sum(0) / self.unit[2],
            texture=parts[0],
            form=parts[1],
            near_copy=nearest(self.train.layouts, traces.layouts)[0] < self.copy_distance,
        )


def fit(train: Traces, held: Traces, styles: int) -> Reference:
    """Set scales by the training pictures and zero and unit by the held-out ones."""
    as_read = train.features.half().float(), train.textures, train.layouts.half().float()
    train = Traces(*as_read, train.styles)
    texture_scale = torch.stack([_spread(train, row) for row in range(styles)])
    feature_scale = _deviation(train.features).clamp(min=1e-3)
    logs = _log_distances(train, texture_scale, feature_scale, held)
    zero = torch.stack([_zero(logs, held.styles, row) for row in range(styles)], dim=1)
    parts = logs - zero[:, held.styles]
    unit = _deviation(parts.T).clamp(min=LEAST_UNIT)
    whole = _deviation((parts / unit[:, None]).sum(0)[:, None]).clamp(min=LEAST_UNIT)
    distance = copy_distance(train.layouts, held.layouts)
    return Reference(train, texture_scale, feature_scale, zero, torch.cat([unit, whole]), distance)


def _spread(train: Traces, row: int) -> Tensor:
    own = train.textures[train.styles == row]
    return _deviation(own if len(own) >= ENOUGH else train.textures).maximum(torch.tensor(LEAST_SPREAD))


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation of each column; 0 for a single row."""
    return values.std(0) if len(values) > 1 else torch.zeros(values.shape[1])


def _zero(logs: Tensor, styles: Tensor, row: int) -> Tensor:
    own = logs[:, styles == row]
    return (own if own.shape[1] >= ENOUGH else logs).mean(1)


def _log_distances(train: Traces, texture_scale: Tensor, feature_scale: Tensor, traces: Traces) -> Tensor:
    """[2, n]: of texture and of form, to the nearest training pictures of the same style."""
    logs = torch.zeros(2, len(traces.styles))
    for row in sorted(set(traces.styles.tolist())):
        mine, real = traces.styles == row, train.styles == row
        if not bool(real.any()):
            real = torch.ones_like(real)
        pairs = (
            (traces.textures[mine] / texture_scale[row], train.textures[real] / texture_scale[row]),
            (traces.features[mine] / feature_scale, train.features[real] / feature_scale),
        )
        for part, (ours, theirs) in enumerate(pairs):
            near = torch.cdist(ours, theirs).topk(min(NEIGHBOURS, len(theirs)), largest=False).values
            logs[part, mine] = (near.mean(1) + NEAREST).log()
    return logs
