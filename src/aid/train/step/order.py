"""Which pictures a step sees. A pure function of the seed, the shares and the step's number.

A run is a row of rounds. Each style has a deck of its pictures, which comes up pass after pass, every pass in
an order of its own. By the end of a round each style has had its share of all places so far, to within half a
picture, whatever the shares were; within it a style's pictures lie evenly.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor

from aid.core.dataset import Record
from aid.errors import SettingsError

Size = tuple[int, int]
Batch = tuple[Record, ...]
Shares = Mapping[str, float]  # by style; only their proportions count


def size_of(record: Record) -> Size:
    return record.width, record.height


class Deck:
    """Pictures without end: every pass holds each as often as it is in `records`, newly shuffled."""

    def __init__(self, records: Sequence[Record], name: str) -> None:
        self.records, self.name = list(records), name
        self._pass = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.records)

    def at(self, position: int) -> Record:
        turn, index = divmod(position, len(self.records))
        return self._pass(turn)[index]

    def _shuffled(self, turn: int) -> list[Record]:
        return random.Random(f"{self.name}/{turn}").sample(self.records, len(self.records))


@dataclass(frozen=True)
class Round:
    """Its first step; how many pictures of each style came before, and how many it has itself."""

    first: int
    before: dict[str, int]
    counts: dict[str, int]


class Order:
    """Rounds over decks, batched within buckets; a bucket's last batch in a round may be smaller.

    Every round goes by `shares`, by default the pictures' counts: then it is an epoch, each picture once. A
    `live` order instead has every round laid out, by shares of its own, before its first step. A round has
    `places`, by default one for each picture, but for rounding.
    """

    def __init__(
        self,
        records: Sequence[Record],
        batch_size: int,
        seed: int,
        shares: Shares | None = None,
        places: int = 0,
        live: bool = False,
    ) -> None:
        if not records:
            raise SettingsError("there are no pictures to train on", "at least one that is not held out")
        self.batch_size, self.seed, self.live = batch_size, seed, live
        self.decks = {
            style: Deck([record for record in records if record.style == style], f"{seed}/deck/{style}")
            for style in sorted({record.style for record in records})
        }
        self.shares = shares or {style: len(deck) for style, deck in self.decks.items()}
        self.sizes = sorted({size_of(record) for record in records})
        self.places = max(places or len(records), len(self.decks))
        sizes = {
            (record.width, record.height, record.row): (record.width, record.height) for record in records
        }
        self.pictures = len(sizes)
        self.steps_per_epoch = sum(-(-count // batch_size) for count in Counter(sizes.values()).values())
        self.rounds: list[Round] = []
        self.end = 0  # of the steps laid out
        self.due = dict.fromkeys(self.decks, 0.0)
        self.seen = dict.fromkeys(self.decks, 0)
        self._batches = lru_cache(maxsize=2)(self._draw_round)

    def lay(self, shares: Shares) -> None:
        """Lay the next round out. A style's count is what is due to it after the round, rounded, less what it
        has had: never negative, as what is due only grows."""
        total = sum(shares[style] for style in self.decks)
        counts = {}
        for style in self.decks:
            self.due[style] += self.places * shares[style] / total
            counts[style] = floor(self.due[style] + 0.5) - self.seen[style]
        self.rounds.append(Round(self.end, dict(self.seen), counts))
        self.seen = {style: self.seen[style] + count for style, count in counts.items()}
        self.end += len(self._batches(len(self.rounds) - 1))

    def known(self, step: int) -> bool:
        """Whether what the step sees is decided."""
        return not self.live or step < self.end

    def batch(self, step: int) -> Batch:
        while step >= self.end and not self.live:
            self.lay(self.shares)
        index = self._round(step)
        return self._batches(index)[step - self.rounds[index].first]

    def seen_before(self, step: int) -> dict[str, int]:
        """Pictures of each style in the steps before this one, all of which must be known."""
        if not step:
            return dict.fromkeys(self.decks, 0)
        self.batch(step - 1)
        index = self._round(step - 1)
        done = self._batches(index)[: step - self.rounds[index].first]
        seen = Counter(record.style for batch in done for record in batch)
        return {style: count + seen[style] for style, count in self.rounds[index].before.items()}

    def _round(self, step: int) -> int:
        return bisect_right(self.rounds, step, key=lambda one: one.first) - 1

    def _draw_round(self, index: int) -> list[Batch]:
        """Batches as they fill up, and then what is left of each bucket."""
        waiting: dict[Size, list[Record]] = {size: [] for size in self.sizes}
        batches: list[Batch] = []
        for record in self._line(index):
            bucket = waiting[size_of(record)]
            bucket.append(record)
            if len(bucket) == self.batch_size:
                batches.append(tuple(bucket))
                bucket.clear()
        return batches + [tuple(bucket) for bucket in waiting.values() if bucket]

    def _line(self, index: int) -> list[Record]:
        """A round's pictures, each style spread evenly: the j-th of n stands between j/n and (j + 1)/n."""
        chance, one = random.Random(f"{self.seed}/order/{index}"), self.rounds[index]
        placed = [
            ((number + chance.random()) / count, style, number)
            for style, count in one.counts.items()
            for number in range(count)
        ]
        return [self.decks[style].at(one.before[style] + number) for _, style, number in sorted(placed)]


def pictures_of(records: Sequence[Record]) -> dict[tuple[int, int, int], Size]:
    """Each picture's size, once however often it is repeated."""
    return {(one.width, one.height, one.row): (one.width, one.height) for one in records}


def steps_of(records: Sequence[Record], batch_size: int) -> int:
    """The batches of an epoch that has every picture once."""
    return sum(-(-count // batch_size) for count in Counter(pictures_of(records).values()).values())


class Replay:
    """Regularisation pictures that go with batches of `sizes`: `count` a step. They are of the batch's size,
    or of one that no batch has; where there are neither, of any. So none goes unused, and no batch has none.
    """

    def __init__(self, records: Sequence[Record], count: int, seed: int, sizes: Collection[Size]) -> None:
        self.count = count
        strays = [record for record in records if size_of(record) not in sizes]
        self.decks = {
            size: Deck(
                [record for record in records if size_of(record) == size] + strays or records,
                f"{seed}/replay/{size}",
            )
            for size in sizes
        }

    @property
    def fits(self) -> bool:
        """Whether every batch is of one size with what goes with it."""
        return all(size_of(one) == size for size, deck in self.decks.items() for one in deck.records)

    def batch(self, step: int, size: Size) -> Batch:
        return tuple(self.decks[size].at(step * self.count + index) for index in range(self.count))
