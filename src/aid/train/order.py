"""Which pictures a step sees. A pure function of (seed, step): resuming needs no stored position."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from aid.core.dataset import Record
from aid.errors import SettingsError

Size = tuple[int, int]
Batch = tuple[Record, ...]


class Order:
    """Epochs over records, batched within buckets. Every record is seen once an epoch; the last batch
    of a bucket may be smaller."""

    def __init__(self, records: Sequence[Record], batch_size: int, seed: int) -> None:
        if not records:
            raise SettingsError("there are no pictures to train on", "at least one that is not held out")
        self.batch_size, self.seed = batch_size, seed
        self.buckets: dict[Size, list[Record]] = {}
        for record in records:
            self.buckets.setdefault((record.width, record.height), []).append(record)
        self.steps_per_epoch = sum(-(-len(bucket) // batch_size) for bucket in self.buckets.values())
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _draw_epoch(self, epoch: int) -> list[Batch]:
        chance = random.Random(f"{self.seed}/order/{epoch}")
        batches: list[Batch] = []
        for size in sorted(self.buckets):
            drawn = chance.sample(self.buckets[size], len(self.buckets[size]))
            batches += [
                tuple(drawn[at : at + self.batch_size]) for at in range(0, len(drawn), self.batch_size)
            ]
        chance.shuffle(batches)
        return batches


class Replay:
    """Regularisation pictures that go with a batch: `count` a step, of its size; none if there are none."""

    def __init__(self, records: Sequence[Record], count: int, seed: int) -> None:
        self.count = count
        sizes = {(record.width, record.height) for record in records}
        self.orders = {
            size: Order([r for r in records if (r.width, r.height) == size], 1, seed + 1) for size in sizes
        }

    def batch(self, step: int, size: Size) -> Batch:
        order = self.orders.get(size)
        if order is None:
            return ()
        return tuple(order.batch(step * self.count + index)[0] for index in range(self.count))
