"""Where an instance starts to follow a scope: at the watermark of its cache if that is a place in the log, and else at
the start of the log, with a new generation of the cache.
"""

import asyncio
import logging
import os

from hiveio.errors import Unavailable
from hiveio.kafka.log_reader import LogReader
from hiveio.transaction.cache import Cache
from hiveio.transaction.entry import Watermark
from hiveio.transaction.rule import Writer

logger = logging.getLogger("hiveio.scope")

OLD_END_S = 12.0  # for which a broker that was the leader may name an old end; after that the log counts as cut


class Anchor:
    """Finds the watermark of one scope, and checks it against the log."""

    def __init__(self, cache: Cache, reader: LogReader, partition: int, where: str, topic_id: str) -> None:
        self._cache, self._reader, self._partition = cache, reader, partition
        self._where, self._topic_id = where, topic_id
        self._beyond: float | None = None  # when the watermark was first beyond the end that Kafka names

    async def find(self) -> tuple[Watermark, dict[str, Writer], int]:
        """The watermark from which to go on, the writers at that offset, and the end of the log. Raises Unavailable."""
        while True:
            text, watermark, writers = await self._cache.watermark(self._partition)
            end = await self._reader.end(self._partition)
            if watermark is not None:
                self._doubt(watermark, end)
                if await self._matches(watermark, end):
                    return watermark, writers, end
                logger.error(
                    "the watermark of the cache of %s is %s, which is not in the log (end %s): the cache is rebuilt",
                    *(self._where, watermark.text, end),
                )
            fresh = Watermark(0, 0, self._topic_id, os.urandom(5).hex())
            if await self._cache.reset(self._partition, text, fresh):
                if watermark is not None:
                    await self._cache.forget(self._partition, watermark.generation)
                return fresh, {}, end
            # Another instance was faster, so look again.

    def _doubt(self, watermark: Watermark, end: int) -> None:
        """Raises Unavailable while the end may be an old one: other instances work with that cache, and would have to
        rebuild it too."""
        if watermark.topic != self._topic_id or watermark.offset <= end:
            self._beyond = None
            return
        now = asyncio.get_running_loop().time()
        if self._beyond is None:
            self._beyond = now
        if now - self._beyond < OLD_END_S:
            raise Unavailable(f"the watermark {watermark.offset} of the cache is beyond the end {end} that Kafka names")

    async def _matches(self, watermark: Watermark, end: int) -> bool:
        if watermark.topic != self._topic_id or watermark.offset > end:
            return False
        if watermark.offset == 0:
            return True
        last = await self._reader.read(self._partition, watermark.offset - 1)
        return (last.key if last is not None else "") == watermark.transaction  # None at a transaction marker
