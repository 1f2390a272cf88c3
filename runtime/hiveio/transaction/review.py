"""A look now and then at what a scope has in quarantine: what others could not fold, and what they have healed."""

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from hiveio.errors import Unavailable
from hiveio.transaction.cache import Cache

if TYPE_CHECKING:
    from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.scope")

REVIEW_S = 2.0  # between two looks
GROUP = 500  # aggregates asked for at once


class Review:
    """Keeps the quarantine of a scope true where other instances move its cache. One small call, where it is empty."""

    def __init__(self, scope: "Scope", cache: Cache) -> None:
        self._scope, self._cache = scope, cache

    async def run(self) -> None:
        scope = self._scope
        while not scope.failed:
            await asyncio.sleep(REVIEW_S * (0.5 + random.random()))
            try:
                if scope.ready:
                    await self.learn()
            except Unavailable:
                pass  # it is told where the cache is needed
            except Exception:
                logger.exception("a fault while looking at what %s has in quarantine", scope.where)

    async def learn(self) -> None:
        """Ask for the aggregates that stand otherwise in the cache than here. What is folded here and not there is
        written. Raises Unavailable."""
        scope, view, quarantine = self._scope, self._scope.view, self._scope.quarantine
        listed = await self._cache.unfolded(scope.partition, scope.stands.generation)
        doubtful = list(quarantine.held.keys() - listed - scope.applier.touched())
        for name in listed:
            if name.endswith("/"):
                quarantine.meet(name[:-1])
            elif (entry := view.entry(name)) is None:
                doubtful.append(name)
            elif not entry.fault:
                quarantine.healed.add(name)
        if quarantine.healed:
            scope.applier.wake()
        while doubtful:
            asked = scope.stands.offset
            stands, replies = await self._cache.load(scope.partition, [(name, "") for name in doubtful[:GROUP]])
            if not scope.saw(stands, asked):
                return
            for name, (text, _) in zip(doubtful, replies, strict=False):
                scope.reconcile(name, stands, text)
            del doubtful[: len(replies)]
