"""Which scopes an instance follows: it opens those that need an instance, and closes those that nobody uses.

An instance follows a scope while it is used, and for a minute after, or while it leads it and there is work left. A
scope that is left with work, because its leader has died, is found by a sweep. Each instance looks at the same small
number of scopes in a second, whatever the number of scopes or instances is. At its start it looks at all of them once.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from hiveio.errors import HiveError
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.threads import blocking
from hiveio.transaction import rebuild
from hiveio.transaction.cache import Cache, Look, rest
from hiveio.transaction.leadership import Leadership
from hiveio.transaction.scope import Scope
from hiveio.transaction.scopes import Scopes

logger = logging.getLogger("hiveio.scope")

FOLLOW_S = 60.0  # after the last use
SWEEP_S = 1.0  # between two looks at
LOOKED_AT = 20  # scopes that this instance does not follow
FIRST_LOOK = 100  # scopes looked at together at the start
TRIED = 8  # scopes that are opened at the start although they need nobody
OPENING = 12  # scopes that are opened at once then, unless they take longer than
OPENING_S = 1.0


class Following:
    """The choice of one instance."""

    def __init__(
        self,
        scopes: Scopes,
        leadership: Leadership,
        cache: Cache,
        end_offsets: EndOffsets,
        log_topic: str,
        topics: Sequence[str],
        *,
        works_on: Callable[[Scope], bool],
        unused_s: float,
    ) -> None:
        """``topics`` are those that the leader of a scope publishes. ``works_on`` says whether something of a scope is
        in work here. ``unused_s`` is the least time after its last use for which a scope is followed."""
        self._scopes, self._leadership, self._cache, self._end_offsets = scopes, leadership, cache, end_offsets
        self._log_topic, self._topics = log_topic, topics
        self._works_on, self._unused_s = works_on, max(FOLLOW_S, unused_s)
        self._order: list[int] = []  # of the scopes to look at next
        self._behind: dict[int, bytes] = {}  # the watermarks of those that were behind their log when looked at
        self._task: asyncio.Task[None] | None = None
        self.looked_at = float("inf")  # when it had looked at all of them once

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            try:
                if self.looked_at > now():
                    await self.look_at_all()
                    self.looked_at = now()
                await self.close_unused()
                await self.look_at_some()
            except HiveError as error:
                logger.debug("the scopes that are not followed here could not be looked at: %s", error)
            except Exception:
                logger.exception("looking at the scopes that are not followed here failed with an unexpected error")
            await asyncio.sleep(SWEEP_S * (0.5 + random.random()))

    # -- opening

    async def look_at_all(self) -> None:
        """Open those that need an instance, and some of the others: a version that cannot read the log must find that
        out before it is ready."""
        used: list[int] = []  # that have records
        for start in range(0, len(self._scopes), FIRST_LOOK):
            some = range(start, min(start + FIRST_LOOK, len(self._scopes)))
            used += [partition for partition in await self.look(some, first=True) if partition not in self._scopes]
        for partition in random.sample(used, min(TRIED, len(used))):
            await self._open(partition)

    async def look_at_some(self) -> None:
        """Open those of the next scopes that need an instance."""
        if not self._order:
            self._order = random.sample(range(len(self._scopes)), len(self._scopes))
        some, self._order = self._order[:LOOKED_AT], self._order[LOOKED_AT:]
        await self.look(some)

    async def look(self, partitions: Sequence[int], *, first: bool = False) -> list[int]:
        """Open those of them that need an instance. Returns all that have more than their format record."""
        asked = [partition for partition in partitions if partition not in self._scopes]
        if not asked:
            return []
        topics = (self._log_topic, *self._topics)
        # Redis first: nothing else notices here that it is away.
        looks = await asyncio.gather(*[self._cache.look(partition) for partition in asked])
        ends = await blocking(self._end_offsets.known, [(topic, partition) for topic in topics for partition in asked])
        for partition, look in zip(asked, looks, strict=True):
            found = [ends[topic, partition] for topic in topics if (topic, partition) in ends]
            if len(found) < len(topics):  # nobody leads it in Kafka; at the start that is to be seen
                needs_one = first
            else:
                needs_one = self._needs_one(partition, look, found[0], found[1:], first)
            if needs_one:
                await self._open(partition)
        return [partition for partition in asked if ends.get((self._log_topic, partition), 0) > 1]

    def _needs_one(self, partition: int, look: Look, log_end: int, topic_ends: list[int], first: bool) -> bool:
        """Whether a scope needs an instance: nobody leads it or folds it, and it is not at rest; or its cache is behind
        the log and makes no progress, because those that follow it have other models."""
        before = self._behind.pop(partition, None)
        if log_end <= 1 and not any(topic_ends):  # nothing but the format record
            return False
        behind = log_end - (look.watermark.offset if look.watermark is not None else 0)
        if behind > 0:
            self._behind[partition] = look.text
        stuck = behind > rebuild.FAR if first else behind > 0 and look.text == before
        return stuck or not (look.served or look.rest == rest(log_end, topic_ends))

    async def _open(self, partition: int) -> None:
        """Open a scope, and wait a moment while many are being opened here."""
        if partition in self._scopes:
            return
        self._scopes.open(partition)
        loop = asyncio.get_running_loop()
        end = loop.time() + OPENING_S
        while loop.time() < end:
            if sum(scope.opening and not scope.folded_elsewhere for scope in self._scopes) < OPENING:
                break
            await asyncio.sleep(0.005)

    # -- closing

    async def close_unused(self) -> None:
        """Close the scopes that nobody has used for a while, unless there is work left."""
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if now - scope.used_at > self._unused_s and scope.ready and not self._works_on(scope):
                await self._close(scope)

    async def _close(self, scope: Scope) -> None:
        used_at = scope.used_at
        if not await self._leadership.leave(scope):
            return
        if scope.used_at != used_at or self._works_on(scope):
            self._leadership.begin(scope)  # it was used again meanwhile
            return
        self._scopes.forget(scope)
        await scope.stop()
