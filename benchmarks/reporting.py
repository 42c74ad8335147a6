"""Benchmark rows as a table and as JSON: {name, ours, limit, peers, ratio, unit}."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure; `limit` is what physics or the imports allow, `ratio` ours over it."""

    name: str
    ours: float
    unit: str
    limit: float | None = None
    peers: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.ours / self.limit if self.limit else None


def report(rows: list[Row], path: Path | None) -> None:
    for row in rows:
        beside = [f"limit {row.limit:.3g}, ratio {row.ratio:.2f}"] if row.limit else []
        beside += [f"{name} {value:.3g}" for name, value in row.peers.items()]
        print(f"{row.name:42} {row.ours:10.4g} {row.unit:5} {'; '.join(beside)}")
    if path is not None:
        objects = [
            {
                "name": r.name,
                "ours": r.ours,
                "limit": r.limit,
                "peers": r.peers,
                "ratio": r.ratio,
                "unit": r.unit,
            }
            for r in rows
        ]
        path.write_text(json.dumps(objects, indent=1) + "\n")
