"""What an adapter's header tells: kinds, ranks and the family it is for, without a value being read.

Nothing is checked: that is `load_adapter`'s, which reads the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aid.sd.adapter.kind import BIASES, KINDS
from aid.sd.adapter.name import MAGNITUDES, TEXT, TEXT_2, family_of, group_keys, module_name

Shapes = Mapping[str, Sequence[int]]
FACTORS: dict[str, tuple[tuple[str, str, str], ...]] = {  # a delta's factors: whole, or left and right
    "lora": (("", "lora_up.weight", "lora_down.weight"),),
    "loha": (("", "hada_w1_a", "hada_w1_b"),),
    "lokr": (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b")),
    "full": (("diff", "", ""),),
}
CORES = ("hada_t1", "lokr_t2")  # of the CP form, which turns a factor's axes round


@dataclass(frozen=True)
class Outline:
    """`kinds` are those of `adapter_kind`, `dora` and `bias`; `family` is empty if nothing tells."""

    kinds: frozenset[str]
    modules: int
    text_modules: int
    ranks: tuple[int, ...]
    """Different ones, the largest first."""
    family: str
    embeddings: tuple[str, ...]
    """Bundled ones, by name."""


def outline(shapes: Shapes, metadata: Mapping[str, str]) -> Outline | None:
    """None if nothing in the file is an adapter's."""
    found = group_keys(shapes)
    modules = {
        module_name(raw): {word: shapes[key] for word, key in words.items()}
        for raw, words in found.modules.items()
    }
    kinds = {name: kind for name, own in modules.items() if (kind := _kind(own))}
    if not kinds and not found.bundled:
        return None
    decomposed = any(word in own for own in modules.values() for word in MAGNITUDES)
    ranks = {
        modules[name][word][0]
        for name, kind in kinds.items()
        for word in (KINDS[kind].ranks if kind in KINDS else ())
        if modules[name].get(word)
    }
    widths = {name: _widths(kind, modules[name]) for name, kind in kinds.items()}
    return Outline(
        frozenset(kinds.values()) | ({"dora"} if decomposed else set()),
        len(kinds),
        sum(name.startswith((TEXT, TEXT_2)) for name in kinds),
        tuple(sorted(ranks, reverse=True)),
        family_of(widths, metadata),
        tuple(found.bundled),
    )


def _kind(words: Mapping[str, object]) -> str:
    """Empty if no tensor changes anything."""
    changing = (kind for kind, parts in KINDS.items() if words.keys() & set(parts.names))
    return next(changing, "bias" if words.keys() & set(BIASES) else "")


def _widths(kind: str, shapes: Shapes) -> tuple[int, ...]:
    """[out, in] of what is added; empty where it isn't told."""
    if kind not in FACTORS or shapes.keys() & set(CORES):
        return ()
    try:
        out, inner = 1, 1
        for whole, left, right in FACTORS[kind]:
            own = shapes.get(whole) or (shapes[left][0], shapes[right][1])
            out, inner = out * own[0], inner * own[1]
    except (KeyError, IndexError):  # half a pair, or no matrix
        return ()
    return out, inner
