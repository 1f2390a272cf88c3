"""Which instance folds a scope whose cache is far behind: one of them does, and the others wait for it.

An instance that folds has a lease, which it renews as long as the cache moves on. So one that has died, is stuck or is
cut off from Kafka is succeeded when the lease ends. The lease is a hint: two that fold at once do no harm. Instances
that have lost the caches of many scopes at once share these: who folds several already asks later for the next one.
"""

import asyncio
import random

from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import Watermark

FAR = 1_000  # records; what is closer to its end is folded by whoever follows it
LEASE_MS = 3_000  # without progress, after which another instance folds
RENEW_S = 0.6
WAIT_S = 0.1  # between two looks of an instance that waits
ASIDE_S = (0.1, 2.0)  # the longest wait for each further scope that is rebuilt here, and for all of them


class Rebuilds:
    """The scopes that one instance rebuilds, or waits for."""

    def __init__(self, holder: str) -> None:
        """``holder`` names this instance."""
        self.holder = holder
        self.active: set[Rebuild] = set()


class Rebuild:
    """The rebuild of one scope."""

    def __init__(self, partition: int, cache: Cache, all: Rebuilds) -> None:
        self._partition, self._cache, self._all = partition, cache, all
        self.folds = False  # this instance has the lease
        self._renewed_at, self._offset = 0.0, 0  # the latest renewal, and how far the cache had come
        self._ended = False
        self.waits_at: int | None = None  # how far another instance has come that folds the scope

    async def turn(self, enough: int) -> None:
        """Return when this instance should fold the scope, or when another one has folded it up to ``enough``, or the
        scope has failed. Raises Unavailable."""
        self.folds = False
        self._all.active.add(self)
        each_s, most_s = ASIDE_S
        pause = random.uniform(0.0, min(most_s, each_s * (len(self._all.active) - 1)))
        try:
            while not (self._ended or await self._has_come(enough, pause)):
                pause = WAIT_S * (0.5 + random.random())
        finally:
            self.waits_at = None
            if not self.folds:
                self._all.active.discard(self)

    async def _has_come(self, enough: int, pause: float) -> bool:
        await asyncio.sleep(pause)
        watermark = await self._renew()
        self.waits_at = self._offset = watermark.offset if watermark is not None else 0
        return self.folds or self._offset >= enough

    async def progressed(self, offset: int) -> None:
        """The cache has come to this offset, so the lease is renewed if that is due. Raises Unavailable."""
        if offset > self._offset and asyncio.get_running_loop().time() - self._renewed_at > RENEW_S:
            self._offset = offset
            await self._renew()

    async def _renew(self) -> Watermark | None:
        self._renewed_at = asyncio.get_running_loop().time()
        watermark, name = await self._cache.lease_fold(self._partition, self._all.holder, LEASE_MS)
        self.folds = name == self._all.holder
        return watermark

    def over(self) -> None:
        """The scope is folded. The lease ends by itself: nobody waits for it any more."""
        self.folds = False
        self._all.active.discard(self)

    def end(self) -> None:
        """The scope has failed, or is not followed any more."""
        self._ended = True
        self.over()
