"""Where publishing goes on: after the last event of this log on its event topic, if log and topic still fit together.

They do not where the log was cut or made anew beside a topic with events, or where the topic was emptied. To go on then
would skip events, or publish them again: the scope stops, and says what an operator can do.
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
from hiveio.kafka.threads import blocking
from hiveio.transaction.cache import Cache
from hiveio.transaction.metrics import ForeignRecords

logger = logging.getLogger("hiveio.publisher")

LOOK_BACK = 1_000  # records read at once, from the end of the topic backwards
PROOF_S = 5.0  # for a record of our own to be read back
OLD_END_S = 12.0  # for which a broker that was the leader before the first event may call the topic empty


class Published(NamedTuple):
    """An event on the event topic: where its record stands in the log, its place among the events of that record, the
    record's id, and the offset on the topic."""

    position: str
    offset: int
    place: int
    tx: str
    at: int = -1


def published(message: Message, partition: int) -> Published | None:
    """None for a record that no publisher of this partition wrote."""
    headers = dict(headers_of(message))
    position, id = headers.get("hive-position"), headers.get("hive-id")
    if not (isinstance(position, bytes) and isinstance(id, bytes)):
        return None
    try:
        text = position.decode("ascii")
        scope, offset, index = map(int, text.split(":"))
        tx = id.decode().rpartition(".")[0]
    except ValueError:  # of which UnicodeDecodeError is one
        return None
    return Published(text, offset, index, tx, message.offset() or 0) if scope == partition else None


async def last_event(
    events: LogReader, partition: int, foreign: Callable[[int], None], within: tuple[int, int] | None = None
) -> Published | None:
    """The last event of a partition, or ``within`` two of its offsets, searched from the end backwards; ``foreign`` is
    given the offsets of records that are none. Raises Unavailable."""
    first, end = await blocking(events.bounds, partition) if within is None else within
    below = end
    while below > first:
        start = max(first, below - (1 if below == end else LOOK_BACK))
        found = await blocking(
            events.read_each, partition, start, below, lambda message: published(message, partition) or message.offset()
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
        log_where: str,
        where: str,
        proved: Callable[[], Awaitable[int]],
    ) -> None:
        """``proved`` gives the end of the log, surely not an old one."""
        self._cache, self._log, self._events, self._partition = cache, log, events, partition
        self._log_where, self._where, self._proved = log_where, where, proved
        self._foreign = ForeignRecords(where, "no event of this service: it is passed over")
        self._trimmed = 0
        self._ends = 0  # where the topic ended at the start of the session, or behind what it has sent last
        self._noted = False
        self._empty_since: float | None = None

    async def last(self) -> Published | None:
        """The last event, or None where nothing was ever published. Raises Corrupt, with the remedy; Unavailable."""
        first, self._ends = await blocking(self._events.bounds, self._partition)
        found = await last_event(self._events, self._partition, self._foreign.met, (first, self._ends))
        if found is None:
            await self._never_published(first)
        else:
            found = await self._highest(found, first)
            await self._compare(found)
            self._noted, self._empty_since = False, None  # Redis may have lost it since
            await self.note()
        if first > self._trimmed:
            self._trimmed = first
            logger.critical(
                "the events below %s/%s are gone: consumers that read this topic from its start will miss them; "
                "set retention.ms=-1 and retention.bytes=-1, and let nobody delete its records",
                self._where,
                first,
            )
        return found

    async def _highest(self, last: Published, first: int) -> Published:
        """The last event may be a repeat, which an overtaken session wrote: of so many in a row one is none."""
        start = max(first, last.at - REPEATED)
        if start >= last.at:
            return last
        before = await blocking(
            self._events.read_each, self._partition, start, last.at, partial(published, partition=self._partition)
        )
        found: list[Published] = [last, *filter(None, before)]
        return max(found, key=lambda event: (event.offset, event.place))

    async def landed(self, at: tuple[int, int] | None, position: str) -> None:
        """Events were written ``at`` these offsets, the first of them with this position. Raises Unavailable where
        another session wrote it before, or where nobody can say: then this one ends, and repeats no more."""
        if at is None:
            raise Unavailable(f"Kafka does not tell where events stand in {self._where}")
        before, self._ends = self._ends, at[1] + 1
        if at[0] == before:
            return
        _, end = await blocking(self._events.bounds, self._partition)
        if at[0] < before or end <= at[1]:
            raise Unavailable(f"a broker that is the leader no more names an old end of {self._where}")
        _, offset, place = position.split(":")
        below = at[0]
        while (last := await last_event(self._events, self._partition, self._foreign.met, (before, below))) is not None:
            if (last.offset, last.place) >= (int(offset), int(place)):
                raise Unavailable(f"another instance publishes to {self._where}, and has come to {last.position}")
            below = last.at

    async def note(self) -> None:
        """Let every instance know that events of this log are on the topic."""
        if not self._noted:
            await self._cache.note_published(self._partition)
            self._noted = True

    async def _never_published(self, first: int) -> None:
        """Raises Corrupt where events were published, and are gone with their topic."""
        if first > 0 or self._noted or await self._cache.published(self._partition):
            if first == 0:
                await self._doubt()
            raise Corrupt(
                f"{self._where} was emptied or made anew, so nobody can tell which events of {self._log_where} its "
                "consumers have seen. Bring the topic back; or, to publish every event of the log again, delete the "
                f"topic, stop all instances, and delete {self._cache.scope(self._partition)}:published in Redis"
            )

    async def _doubt(self) -> None:
        """Raises Unavailable where the topic may be called empty by a broker that was the leader until it was cut off.

        Who reaches another broker learns of the new leader within OLD_END_S; who reaches none has no record read back.
        """
        doubt = f"{self._where} had events and is empty, if the broker that says so is its leader"
        now = asyncio.get_running_loop().time()
        if self._empty_since is None:
            self._empty_since = now
        if now - self._empty_since < OLD_END_S:
            raise Unavailable(doubt)
        await self._end()
        _, end = await blocking(self._events.bounds, self._partition)
        if end > 0:
            raise Unavailable(doubt)

    async def _end(self) -> int:
        """A broker that was the leader until it was cut off names an old end for as long as it is; a record of our own
        that is read back does not lie. Raises Unavailable where none is."""
        try:
            async with asyncio.timeout(PROOF_S):
                return await self._proved()
        except TimeoutError:
            raise Unavailable(f"{self._log_where} takes no record, so nobody can tell where it ends") from None

    async def _compare(self, last: Published) -> None:
        """Whether the log has the record that the event came from."""
        record = await self._log.read(self._partition, last.offset)
        if record is None and await self._end() > last.offset:
            raise Unavailable(f"a broker that is the leader no more names an old end of {self._log_where}")
        if record is not None and record.key == last.tx:
            return
        there = "does not reach so far" if record is None else f"has the record {record.key} there"
        raise Corrupt(
            f"{self._where} does not fit its log: its last event came from {self._log_where}/{last.offset}, "
            f"transaction {last.tx}, and the log {there}. The log was cut or made anew, or another service writes to "
            "this topic. Bring the log back; or, to give up what it held, let the service write to another "
            "EVENT_STORE_TOPIC"
        )
