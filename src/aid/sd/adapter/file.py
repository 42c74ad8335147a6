"""Adapters (LoRA and its kin) as files: read in every naming, checked whole, and written as kohya's.

Formulas are in `adapter_kind`, names in `adapter_name`, their use on a model in `adapter_fitting`. Reading
needs no torch but for pickles.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

from aid.errors import ModelError
from aid.sd.adapter.kind import BIASES, KINDS, Shape, decompose, magnitude_axis, scale_of
from aid.sd.adapter.name import ALPHA, MAGNITUDE, PEFT_MAGNITUDE, family_of, group_keys, module_name
from aid.sd.file.header import FLOATING
from aid.sd.file.raw import Raw
from aid.sd.file.raw_file import number_of, open_raw

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aid.sd.embedding.file import Embedding

PEFT_METADATA = "lora_adapter_metadata"  # diffusers' own, JSON of PEFT's configurations
PEFT_PARTS = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}


@dataclass(frozen=True, eq=False, slots=True)
class Change:
    """What an adapter does to one module. `raw` is the module's name in the file, `shape` that of the
    delta as the kind makes it; without a kind only the bias changes."""

    raw: str
    kind: str | None
    stored: Mapping[str, Raw]
    scale: float = 1.0
    magnitude: Raw | None = None
    bias: Raw | None = None
    shape: Shape = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """For torch."""
        return {name: _tensor(raw) for name, raw in self.stored.items()}

    def applied(self, weight: Tensor, strength: float) -> Tensor:
        """`weight` [out, in(, kh, kw)], float32, with the change at `strength`, as A1111 adds it."""
        if self.kind is None:
            return weight
        tensors = {name: one.to(weight.device).float() for name, one in self.tensors.items()}
        delta = KINDS[self.kind].delta(tensors).reshape(weight.shape)
        if self.magnitude is None:
            return weight.add(delta, alpha=strength * self.scale)
        magnitude = _tensor(self.magnitude).to(weight.device).float()
        return weight.add(decompose(weight, delta * self.scale, magnitude), alpha=strength)

    def applied_to_bias(self, bias: Tensor, strength: float) -> Tensor:
        if self.bias is None:
            return bias
        return bias.add(_tensor(self.bias).to(bias.device).float().reshape(bias.shape), alpha=strength)

    def by_inputs(self, weight: Shape) -> bool:
        """Whether it has a magnitude for each input of a module, of whose weight that is the shape: then what
        becomes of some outputs hangs on all."""
        return self.magnitude is not None and magnitude_axis(self.magnitude.shape, weight) == 1


def _tensor(raw: Raw) -> Tensor:
    from aid.sd.file.tensorfile import tensor_of  # torch isn't needed to merge

    return tensor_of(raw)


def is_finite(raw: Raw) -> bool:
    """By torch."""
    from aid.sd.file.tensorfile import is_finite

    return is_finite(_tensor(raw))


@dataclass(frozen=True, eq=False)
class Adapter:
    """A file's changes under the one names of `adapter_name`, and the embeddings bundled with them.
    `unread` are the keys that no known kind explains."""

    name: str
    path: Path
    changes: Mapping[str, Change]
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @cached_property
    def family(self) -> str:
        """Such as SDXL; empty if nothing in the file tells."""
        return family_of({name: change.shape for name, change in self.changes.items()}, self.metadata)

    @property
    def kinds(self) -> dict[str, int]:
        """How many modules each kind changes, DoRA's counted by themselves."""
        counts: dict[str, int] = {}
        for change in self.changes.values():
            kind = ("dora+" if change.magnitude is not None else "") + (change.kind or "bias")
            counts[kind] = counts.get(kind, 0) + 1
        return dict(sorted(counts.items()))


def load_adapter(path: Path, kept: bool = True, finite: Callable[[Raw], bool] = is_finite) -> Adapter:
    """Read LoRA, LoHa, LoKr, DoRA, whole differences and bundled embeddings; the file's stem is the name.
    Unless they are to be `kept` in memory, tensors are read, and checked by `finite`, now, and read again
    whenever asked for.

    Raises FileError for a damaged or unsafe file and ModelError for one that is no adapter, or that holds
    NaN, ranks that disagree or half a pair.
    """
    stored, metadata = open_raw(path)
    modules, bundled, unread = group_keys(stored)
    if not modules and not bundled:
        found = f"holds {len(unread)} tensors such as {unread[0]}" if unread else "is empty"
        raise ModelError(f"{path} {found}", "an adapter: LoRA, LoHa, LoKr, DoRA or whole differences")
    alphas = _peft_alphas(metadata, path)
    changes: dict[str, Change] = {}
    for raw, words in modules.items():
        tensors = {word: _checked(stored[key], key, path, kept, finite) for word, key in words.items()}
        raw, name = intern(raw), intern(module_name(raw))  # of many adapters the same
        if name in changes:
            raise ModelError(f"{path} changes one module twice, as {changes[name].raw} and as {raw}")
        changes[name] = _change(raw, name, tensors, alphas, path)
    read = {
        name: {part: _tensor(stored[key]) for part, key in parts.items()} for name, parts in bundled.items()
    }
    return Adapter(path.stem, path, changes, _embeddings(read, path), metadata, tuple(unread))


def _embeddings(bundled: Mapping[str, dict[str, Tensor]], path: Path) -> dict[str, Embedding]:
    """Few files have any, and reading them takes a library for pictures."""
    if not bundled:
        return {}
    from aid.sd.embedding.file import read_embedding

    return {name: read_embedding(content, name, path) for name, content in bundled.items()}


def save_adapter(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write kohya's file: `tensors` under kohya's names (`adapter_target.kohya_targets`), such as
    NAME.lora_down.weight and NAME.alpha, in `dtype` (half precision); the same bytes every time.

    `metadata` are its `ss_*` and others; the `sshs_*` hashes are added, as kohya computes them: over a
    file whose only metadata are `ss_*`. Raises ModelError for a value that isn't finite in `dtype`.
    """
    import torch

    from aid.sd.file.hashes import hash_file
    from aid.sd.file.tensorfile import is_finite, write_tensors

    dtype, stored = dtype or torch.float16, dict[str, torch.Tensor]()
    for key, tensor in tensors.items():
        stored[key] = tensor.detach().to("cpu", dtype)
        if not is_finite(stored[key]):
            short = str(dtype).removeprefix("torch.")
            raise ModelError(f"{key} holds NaN, infinity or values too large for {short}", "finite weights")
    write_tensors(path, stored, metadata)
    found = hash_file(path)
    hashes = {"sshs_model_hash": found.sshs_model_hash, "sshs_legacy_hash": found.sshs_legacy_hash}
    write_tensors(path, stored, {**metadata, **hashes})


def _change(
    raw: str, name: str, stored: dict[str, Raw], alphas: Mapping[str, PeftAlpha], path: Path
) -> Change:
    """One module's tensors as a Change; nothing is computed yet but shapes."""
    small = (ALPHA, MAGNITUDE, PEFT_MAGNITUDE, *BIASES)
    own = {word: stored.pop(word).kept() for word in small if word in stored}
    alpha, magnitude = own.get(ALPHA), own.get(MAGNITUDE)
    if (peft := own.get(PEFT_MAGNITUDE)) is not None:
        magnitude = peft.reshaped(math.prod(peft.shape))  # PEFT: one per output, whatever the axes around it
    bias = next((own[word] for word in BIASES if word in own), None)
    if not stored and bias is not None:
        return Change(raw, None, {}, bias=bias)
    kind = _kind(raw, stored, path)
    shapes = {name: one.shape for name, one in stored.items()}
    shape = _shape(raw, kind, shapes, path)
    number = None if alpha is None else _number(alpha, raw, path)
    if number is None and (found := alphas.get(_part(name))) is not None:
        number = found.of(raw, shapes["lora_down.weight"][0] if kind == "lora" else None)
    if magnitude is not None:
        _check_magnitude(raw, magnitude.shape, shape, path)
    scale = scale_of(kind, shapes, number)
    if not math.isfinite(scale):
        raise ModelError(f"{path}: {raw}'s alpha is {number}", "a finite number")
    return Change(raw, kind, stored, scale, magnitude, bias, shape)


def _kind(raw: str, tensors: Mapping[str, object], path: Path) -> str:
    """The kind of which every needed tensor is there, and nothing of another."""
    for kind, parts in KINDS.items():
        if not tensors.keys() & set(parts.names):
            continue
        for row in parts.needs:
            if not any(tensors.keys() >= set(group) for group in row):
                wanted = " or ".join(" and ".join(group) for group in row)
                raise ModelError(f"{path}: {raw} has only {', '.join(sorted(tensors))}", wanted)
        if strange := tensors.keys() - set(parts.names):
            raise ModelError(f"{path}: {raw} mixes {kind} with {', '.join(sorted(strange))}", "one kind")
        return kind
    raise ModelError(f"{path}: {raw} has nothing that changes it", "the tensors of an adapter")


def _shape(raw: str, kind: str, shapes: Mapping[str, Shape], path: Path) -> Shape:
    """The delta's shape."""
    told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    try:
        delta = KINDS[kind].shape(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: the tensors of {raw} don't fit each other ({told})") from error
    if not delta:
        raise ModelError(f"{path}: {raw} holds a single number ({told})", "a tensor shaped like a weight")
    if not all(math.prod(shape) for shape in (delta, *shapes.values())):
        raise ModelError(f"{path}: {raw} is empty ({told})", "a rank of at least 1")
    return delta


def _checked(raw: Raw, key: str, path: Path, kept: bool, finite: Callable[[Raw], bool]) -> Raw:
    now, format = raw.kept() if kept else raw, raw.format
    if format.name not in FLOATING and math.prod(format.shape) != 1:
        raise ModelError(f"{path}: {key} holds {format.name}", "floating point")
    if not finite(now):
        raise ModelError(
            f"{path}: {key} holds NaN or infinity", "finite weights", "Use an earlier save of it."
        )
    return now


def _number(alpha: Raw, raw: str, path: Path) -> float:
    if math.prod(alpha.shape) != 1:
        raise ModelError(f"{path}: {raw}.alpha has shape {list(alpha.shape)}", "one number")
    return number_of(alpha)


def _check_magnitude(raw: str, magnitude: Shape, shape: Shape, path: Path) -> None:
    """Sizes that neither axis of the delta has can't be meant. The axis itself is the weight's to tell."""
    sizes, count = {shape[0], *shape[1:2]}, math.prod(magnitude)
    if len(shape) > 1 and count not in sizes and shape[1] % max(1, count):
        raise ModelError(
            f"{path}: {raw}.dora_scale has shape {list(magnitude)}", f"{shape[0]} or {shape[1]} numbers"
        )


@dataclass(frozen=True)
class PeftAlpha:
    """The scale of one part, as PEFT's configuration has it."""

    alpha: float | None
    pattern: Mapping[str, float]
    rank_stabilised: bool

    def of(self, raw: str, rank: int | None) -> float | None:
        """The alpha that, divided by the rank, is PEFT's scale; rank-stabilised LoRA divides by its root."""
        alpha = self.alpha
        for word, own in self.pattern.items():
            if re.search(rf"(?:^|\.){re.escape(word)}$", raw):
                alpha = own
        root = math.sqrt(rank) if self.rank_stabilised and rank else 1.0
        return None if alpha is None else alpha * root


def _part(name: str) -> str:
    return next((part for prefix, part in PEFT_PARTS.items() if name.startswith(prefix)), "")


def _peft_alphas(metadata: Mapping[str, str], path: Path) -> dict[str, PeftAlpha]:
    """What diffusers writes beside a LoRA whose alpha isn't its rank."""
    if PEFT_METADATA not in metadata:
        return {}
    try:
        found: Any = json.loads(metadata[PEFT_METADATA])
        return {
            part: _peft_alpha(found, part) for part in PEFT_PARTS.values() if f"{part}.lora_alpha" in found
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} has malformed {PEFT_METADATA}", "PEFT's configurations as JSON") from error


def _peft_alpha(found: Mapping[str, Any], part: str) -> PeftAlpha:
    pattern = found.get(f"{part}.alpha_pattern") or {}
    return PeftAlpha(
        float(found[f"{part}.lora_alpha"]),
        {str(word): float(alpha) for word, alpha in pattern.items()},
        bool(found.get(f"{part}.use_rslora")),
    )
