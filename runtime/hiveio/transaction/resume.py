"""Where publishing resumes: after the last event of this log on its event topic, if log and topic still match.

They do not match where the log was cut or recreated while its event topic kept its events, or where the event topic was
emptied. Going on would skip events or publish them again, so the scope stops and says what an operator can do.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from hiveio.errors import Corrupt, Unavailable
from hiveio.kafka import Message
from hiveio.kafka.headers import headers_of
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.session import REPEATED
from hiveio.transaction.cache import Cache
from hiveio.transaction.metrics import ForeignRecords

logger = logging.getLogger("hiveio.publisher")

LOOK_BACK = 1_000  # records that are read at once, from the end of the topic backwards
PROOF_S = 5.0  # for a record of this instance to be read back
OLD_END_S = 12.0  # for which a broker that was the leader before the first event may report an empty topic


class Published(NamedTuple):
    """An event on the event topic. ``offset`` is that of its record in the log, ``event_index`` counts the events of
    that record, ``tx`` is the id of the record, and ``at`` is the offset of the event on the topic."""

    position: str
    offset: int
    event_index: int
    tx: str
    at: int = -1


def published(message: Message, partition: int) -> Published | None:
    """The event, or None for a record that no publisher of this partition wrote."""
    headers = dict(headers_of(message))
    position, id = headers.get("hive-position"), headers.get("hive-id")
    if not (isinstance(position, bytes) and isinstance(id, bytes)):
        return None
    try:
        text = position.decode("ascii")
        scope, offset, index = map(int, text.split(":"))
        tx = id.decode().rpartition(".")[0]
    except ValueError:  # UnicodeDecodeError is one of them
        return None
    return Published(text, offset, index, tx, message.offset() or 0) if scope == partition else None


async def last_event(
    events: LogReader, partition: int, foreign: Callable[[int], None], within: tuple[int, int] | None = None
) -> Published | None:
    """The last event of a partition, searched from the end backwards; with ``within`` only between these two offsets.
    ``foreign`` is called with the offset of each record that is no event. Raises Unavailable."""
    first, end = await events.bounds(partition) if within is None else within
    below = end
    while below > first:
        start = max(first, below - (1 if below == end else LOOK_BACK))
        found = await events.read_each(
            partition, start, below, lambda message: published(message, partition) or message.offset()
        )
        for each in reversed(found):
            if isinstance(each, Published):
                return each
            foreign(each or 0)
        below = start
    return None


class Resume:
    """Finds the last event of one partition, and compares it with the log."""

    def __init__(
        self,
        cache: Cache,
        log: LogReader,
        events: LogReader,
        partition: int,
        *,
        what: str,
        log_where: str,
        where: str,
        proved: Callable[[], Awaitable[int]],
    ) -> None:
        """``what`` is published: "events", as all are called below, or "commands". ``proved`` gives the end of the log,
        after a proof that it is not an old one."""
        self._cache, self._log, self._events, self._partition = cache, log, events, partition
        self._what, self._log_where, self._where, self._proved = what, log_where, where, proved
        self._foreign = ForeignRecords(where, f"none of the {what} of this service, so it is skipped")
        self._trimmed = 0
        self.end = 0  # of the topic at the start of the session, and after each of its requests
        self._has_published = False  # events of this log are on the topic
        self._noted = False  # the cache says so too
        self._empty_since: float | None = None

    async def last(self) -> Published | None:
        """The last event, or None where nothing was ever published. Raises Corrupt, with the remedy; Unavailable."""
        first, self.end = await self._events.bounds(self._partition)
        found = await last_event(self._events, self._partition, self._foreign.met, (first, self.end))
        if found is None:
            await self._never_published(first)
        else:
            found = await self._highest(found, first)
            await self._compare(found)
            self._empty_since = None
            self.forget()
            await self.note()
        if first > self._trimmed:
            self._trimmed = first
            logger.critical(
                "The %s below %s/%s were deleted, so consumers that read this topic from its start will miss them. Set "
                "retention.ms=-1 and retention.bytes=-1, and let nobody delete its records",
                self._what,
                self._where,
                first,
            )
        return found

    async def _highest(self, last: Published, first: int) -> Published:
        """The event with the highest position. The last one may be a repeat, which an overtaken session wrote; of
        REPEATED events in a row at least one is no repeat."""
        start = max(first, last.at - REPEATED)
        if start >= last.at:
            return last
        before = await self._events.read_each(
            self._partition, start, last.at, partial(published, partition=self._partition)
        )
        found: list[Published] = [last, *filter(None, before)]
        return max(found, key=lambda event: (event.offset, event.event_index))

    async def landed(self, at: tuple[int, int] | None, position: str) -> None:
        """Events were written ``at`` these offsets, the first of them with this position. Raises Unavailable where
        another session wrote that one before, or where nobody can say. The session then ends and repeats no more."""
        if at is None:
            raise Unavailable(f"Kafka did not report at which offsets of {self._where} it wrote the {self._what}")
        before, self.end = self.end, at[1] + 1
        if at[0] == before:
            return
        _, end = await self._events.bounds(self._partition)
        if at[0] < before or end <= at[1]:
            raise Unavailable(f"a broker that is no longer the leader names an old end of {self._where}")
        _, offset, index = position.split(":")
        below = at[0]
        while (last := await last_event(self._events, self._partition, self._foreign.met, (before, below))) is not None:
            if (last.offset, last.event_index) >= (int(offset), int(index)):
                raise Unavailable(f"another instance publishes to {self._where}: it has published {last.position}")
            below = last.at

    async def note(self) -> None:
        """Note in the cache, for every instance, that something of this log is on the topic."""
        self._has_published = True
        if not self._noted:
            await self._cache.note_published(self._partition, self._what)
            self._noted = True

    def forget(self) -> None:
        """The cache may have lost what was noted there."""
        self._noted = False

    async def note_again(self) -> None:
        """Note it again if the cache has lost it."""
        if self._has_published:
            await self.note()

    async def _never_published(self, first: int) -> None:
        """Raises Corrupt where events were published and the topic has lost them."""
        if first > 0 or self._has_published or await self._cache.published(self._partition, self._what):
            if first == 0:
                await self._doubt()
            what, key = self._what, self._cache.published_key(self._partition, self._what)
            raise Corrupt(
                f"{self._where} was emptied or recreated, so nobody can tell which {what} of {self._log_where} its "
                f"consumers have seen. Restore the topic; or, to publish all {what} of the log again, delete the "
                f"topic, stop all instances, and delete {key} in Redis"
            )

    async def _doubt(self) -> None:
        """Raises Unavailable while a broker that was the leader until it was cut off may report the empty topic.

        An instance that reaches another broker learns of the new leader within OLD_END_S; one that reaches none cannot
        have a record read back.
        """
        doubt = f"{self._where} had {self._what}, and a broker that may no longer be its leader says that it is empty"
        now = asyncio.get_running_loop().time()
        if self._empty_since is None:
            self._empty_since = now
        if now - self._empty_since < OLD_END_S:
            raise Unavailable(doubt)
        await self._end()
        _, end = await self._events.bounds(self._partition)
        if end > 0:
            raise Unavailable(doubt)

    async def _end(self) -> int:
        """The end of the log, after a record of this instance was read back: a broker that was the leader names an old
        end for as long as it is cut off. Raises Unavailable where no record is read back."""
        try:
            async with asyncio.timeout(PROOF_S):
                return await self._proved()
        except TimeoutError:
            raise Unavailable(
                f"{self._log_where} took no record within {PROOF_S:.0f} s, so its end is unknown"
            ) from None

    async def _compare(self, last: Published) -> None:
        """Raises Corrupt if the log does not have the record that the event came from; Unavailable."""
        record = await self._log.read(self._partition, last.offset)
        if record is None and await self._end() > last.offset:
            raise Unavailable(f"a broker that is no longer the leader names an old end of {self._log_where}")
        if record is not None and record.key == last.tx:
            return
        there = "ends before that" if record is None else f"has the record {record.key} there"
        raise Corrupt(
            f"{self._where} does not match its log: its last record came from {self._log_where}/{last.offset}, "
            f"transaction {last.tx}, and the log {there}. The log was cut or recreated, or another service writes to "
            "this topic. Restore the log; or, to give up its records, let the service write to another "
            "EVENT_STORE_TOPIC"
        )
