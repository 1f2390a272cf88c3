"""The regular review of the quarantine of a scope: what others could not fold, and what they have healed."""

import asyncio
import logging
import random
from collections.abc import Callable

from hiveio.errors import Unavailable
from hiveio.transaction.applier import Applier
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import CacheReply, Entry
from hiveio.transaction.mirror import Mirror
from hiveio.transaction.view import View

logger = logging.getLogger("hiveio.scope")

REVIEW_S = 2.0  # between two reviews
GROUP = 500  # aggregates that are asked for at once


class Review:
    """Keeps the quarantine of a scope up to date while other instances move its cache. While it is empty, a review
    costs one small call."""

    def __init__(
        self,
        partition: int,
        view: View,
        mirror: Mirror,
        cache: Cache,
        applier: Applier,
        reconcile: Callable[[str, CacheReply], Entry | None],
        ready: Callable[[], bool],
    ) -> None:
        self._partition, self._view, self._mirror, self._cache = partition, view, mirror, cache
        self._applier, self._reconcile, self._ready = applier, reconcile, ready

    async def run(self) -> None:
        while True:
            await asyncio.sleep(REVIEW_S * (0.5 + random.random()))
            try:
                if self._ready():
                    await self.learn()
            except Unavailable:
                pass  # the next caller that needs the cache reports it
            except Exception:
                logger.exception(
                    "the review of the quarantine of %s failed with an unexpected error", self._mirror.where
                )

    async def learn(self) -> None:
        """Read the aggregates that may have changed in the cache, and have those written that are folded only here.
        Raises Unavailable."""
        view, mirror, quarantine = self._view, self._mirror, self._view.quarantine
        listed = await self._cache.unfolded(self._partition, mirror.watermark.generation)
        doubtful = list(quarantine.entries.keys() - listed - self._applier.touched())
        for name in listed:
            if name.endswith("/"):
                quarantine.add_unknown_actor(name[:-1])
            elif (entry := view.entry(name)) is None:
                doubtful.append(name)
            elif not entry.fault:
                quarantine.healed.add(name)
        if quarantine.healed:
            self._applier.wake()
        while doubtful:
            asked = mirror.watermark.offset
            replies = await self._cache.load(self._partition, [(name, "") for name in doubtful[:GROUP]])
            if not mirror.observe_watermark(replies[0].watermark, asked):
                return
            for name, reply in zip(doubtful, replies, strict=False):
                self._reconcile(name, reply)
            del doubtful[: len(replies)]
