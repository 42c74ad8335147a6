"""How the model was made, read from the lineage: nothing on the card's method section is invented."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aid.core.blocks import BLOCKS, SD1_BLOCKS, expand
from aid.core.lineage import Lineage, Node, Source
from aid.errors import SettingsError

DEFAULT_MODE = "weighted_sum"
LINK_WORDS: dict[str, tuple[Any, ...]] = {
    "alpha": (None,), "beta": (None, 0.0), "gamma": (None, 1.0), "elements": (None, []), "freeze": (None, []),
    "seed": (None, 0),
}  # fmt: skip
"""What else is told of a chain's step, and the values that need no telling."""
MODELS = {"checkpoint", "models", "loras", "vae", "tuned", "origin"}
"""Inputs whose weights are in the result; what drew the pictures that a model learnt from is none of it."""
SHORT_HASH = 10  # characters, as A1111 shows a model's hash


@dataclass(frozen=True)
class Step:
    """One run that made the model: its verb, what later runs call its result, what it started from.

    `shares` (model -> block -> share) are a merge's; `is_own` marks a run on the release's own dataset.
    """

    verb: str
    label: str
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    shares: Mapping[str, Mapping[str, float]] | None = None
    is_own: bool = False


def making_of(lineage: Lineage, family: str, merge_metadata: str = "") -> tuple[Step, ...]:
    """The training and merging runs behind the checkpoint of a release's `lineage`, oldest first.

    `family` is the checkpoint's, and `merge_metadata` its own `aid.merge`, which knows the shares of the last
    merge exactly.
    """
    steps = _steps(lineage, family, "checkpoint", MODELS, ("train finetune", "train lora", "merge"))
    exact = _exact_shares(merge_metadata)
    if exact and steps and steps[-1].verb == "merge" and not steps[-1].settings.get("chain"):
        steps[-1] = replace(steps[-1], shares=exact)
    return tuple(steps)


def embedding_steps(lineage: Lineage, family: str) -> tuple[Step, ...]:
    """The trainings of the embeddings that a release's `lineage` takes in."""
    return tuple(_steps(lineage, family, "embeddings", {"embeddings"}, ("train embedding",)))


def drew_for_embeddings(lineage: Lineage) -> bool:
    """Whether an embedding learned from pictures that AID itself drew."""
    return any(
        drawn.verb == "generate"
        for _, node in _ancestors(lineage, "embeddings", {"embeddings"})
        if node.verb == "train embedding" and "pictures" in node.inputs
        for _, drawn in _behind(lineage, [node.inputs["pictures"]])
    )


def block_text(shares: Mapping[str, float]) -> str:
    """Blocks in order, runs drawn together: `BASE, OUT00-OUT11`, or `IN00-IN05 × 0.3, M00`."""
    runs: list[tuple[str, str, float]] = []
    for block in SD1_BLOCKS:
        if not shares.get(block):
            continue
        if runs and _follows(runs[-1][1], block) and runs[-1][2] == shares[block]:
            runs[-1] = (runs[-1][0], block, shares[block])
        else:
            runs.append((block, block, shares[block]))
    return ", ".join(_run_text(*run) for run in runs)


def link_text(link: Mapping[str, Any]) -> str:
    """A step of a chain in one line: `x = ties(a, b, c), alpha 0.5, beta 0.2`."""
    name = f"{link['name']} = " if link.get("name") else ""
    told = [f"{name}{link.get('mode', DEFAULT_MODE)}({', '.join(map(str, link.get('models', ())))})"]
    told += [f"{key} {_number_text(link[key])}" for key in LINK_WORDS if link.get(key) not in LINK_WORDS[key]]
    return ", ".join(told).replace("`", "'")


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _steps(
    lineage: Lineage, family: str, name: str, through: Collection[str], verbs: Sequence[str]
) -> list[Step]:
    """The runs of some verbs behind the inputs called `name`, oldest first."""
    labels = _labels(lineage)
    own = lineage.node.inputs.get("dataset")
    return [
        Step(
            verb=node.verb,
            label=labels.get(key, ""),
            settings=node.settings,
            sources={input_: _source(lineage, labels, source) for input_, source in node.inputs.items()},
            shares=_shares(node, family),
            is_own=own is not None and _dataset(node) == own.key,
        )
        for key, node in _ancestors(lineage, name, through)
        if node.verb in verbs
    ]


def _ancestors(lineage: Lineage, name: str, through: Collection[str]) -> list[tuple[str, Node]]:
    """The nodes behind the run's inputs called `name` or `name.0`, and behind the inputs of those that are
    called as `through` says; parents before children, each once."""
    return _behind(lineage, _inputs(lineage.node, {name}), through)


def _inputs(node: Node, names: Collection[str]) -> list[Source]:
    return [source for name, source in node.inputs.items() if re.split(r"[./]", name)[0] in names]


def _behind(
    lineage: Lineage, sources: Iterable[Source], through: Collection[str] | None = None
) -> list[tuple[str, Node]]:
    """All nodes behind some, or those alone that are reached `through` inputs of these names."""
    ordered: dict[str, Node] = {}
    seen: set[str] = set()

    def visit(key: str) -> None:
        node = lineage.nodes.get(key)
        if node is not None and key not in seen:
            seen.add(key)
            for source in node.inputs.values() if through is None else _inputs(node, through):
                visit(source.key)
            ordered[key] = node

    for source in sources:
        visit(source.key)
    return list(ordered.items())


def _labels(lineage: Lineage) -> dict[str, str]:
    """What merges call the models they take: node key -> `style`."""
    named: dict[str, str] = {}
    for node in lineage.nodes.values():
        for name, source in node.inputs.items():
            if node.verb == "merge" and name.startswith("models."):
                named.setdefault(source.key, name.removeprefix("models."))
    return named


def _dataset(node: Node) -> str:
    source = node.inputs.get("dataset")
    return source.key if source else ""


def _source(lineage: Lineage, labels: Mapping[str, str], source: Source) -> str:
    """What an input is called: its file's name and short hash, or the label or verb of the run behind it."""
    node = lineage.nodes.get(source.key)
    if node is None:
        return source.sha256[:SHORT_HASH]
    if node.verb == "file" and node.inputs:
        name, content = next(iter(node.inputs.items()))
        return f"{name} [{content.sha256[:SHORT_HASH]}]"
    if node.verb == "release":
        return f"{node.settings.get('title', '')} {node.settings.get('version', '')}".strip()
    return labels.get(source.key) or node.verb


def _exact_shares(metadata: str) -> dict[str, dict[str, float]] | None:
    try:
        shares = json.loads(metadata)["shares"]
        return {str(name): {str(b): float(w) for b, w in row.items()} for name, row in shares.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _shares(node: Node, family: str) -> dict[str, dict[str, float]] | None:
    """The shares that a merge's settings spell out; None for a preset, series or chain, which don't."""
    settings = node.settings
    if node.verb != "merge" or any(settings.get(name) for name in ("preset", "steps", "chain")):
        return None
    try:
        given = {
            name: expand(weights, family=family) for name, weights in settings.get("weights", {}).items()
        }
    except (SettingsError, TypeError, ValueError, AttributeError):
        return None
    rest = {block: round(1.0 - sum(row[block] for row in given.values()), 9) for block in BLOCKS[family]}
    return {settings.get("primary") or "base": rest, **given}


def _follows(block: str, after: str) -> bool:
    at = SD1_BLOCKS.index(block)
    same_family = block.rstrip("0123456789") == after.rstrip("0123456789")
    return same_family and SD1_BLOCKS[at + 1] == after


def _run_text(first: str, last: str, share: float) -> str:
    blocks = first if first == last else f"{first}-{last}"
    return blocks if share == 1 else f"{blocks} × {share:g}"
