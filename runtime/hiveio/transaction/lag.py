"""How far the event topic is behind the log. Every instance measures it, whether it publishes or not.

Once a second it asks for the ends of both topics, for all scopes together. Where the event topic has moved, its last
event says up to which position events are published. Where the first event after that is unknown, the log is read from
there until an accepted record with events is found. Nothing is read where nothing moves.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from hiveio.errors import HiveError, Unavailable
from hiveio.kafka import Message
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import log_record
from hiveio.kafka.threads import blocking
from hiveio.outages import EVERY_S
from hiveio.transaction import record as records
from hiveio.transaction.backlog import Backlog, RecordWithEvents
from hiveio.transaction.resume import last_event
from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.publisher")

LOOK_S = 1.0  # between two measurements
CHUNKS = (20, 2_000)  # records of the log that are read at once: at first, and at most
STRETCH = 20_000  # the most records that one measurement of a scope reads


class PublisherLag:
    """Keeps the backlog of every scope up to date."""

    def __init__(self, scopes: Iterable[Scope], end_offsets: EndOffsets, events: LogReader, topic: str) -> None:
        self._scopes, self._end_offsets, self._events, self._topic = scopes, end_offsets, events, topic
        self._logged: tuple[str, float] = ("", 0.0)  # why a measurement failed, and when that was logged
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
                self._logged = ("", 0.0)
            except HiveError as error:
                # A request fails a moment before the Kafka client says that its broker is away, and that is one line.
                await asyncio.sleep(LOOK_S)
                if self._is_news(error):
                    logger.warning("the publisher lag of %s cannot be measured: %s", self._topic, error)
                continue
            except Exception as error:
                if self._is_news(error):
                    logger.exception("measuring the publisher lag of %s failed with an unexpected error", self._topic)
            await asyncio.sleep(LOOK_S)

    def _is_news(self, error: Exception) -> bool:
        """Whether an error of this kind was not logged within EVERY_S."""
        now, kind = asyncio.get_running_loop().time(), type(error).__name__
        logged, at = self._logged
        if kind == logged and now - at < EVERY_S:
            return False
        self._logged = (kind, now)
        return True

    async def look(self) -> None:
        """Measure the lag of every scope that is followed now."""
        scopes = list(self._scopes)
        if not scopes:
            return
        partitions = [(topic, scope.partition) for scope in scopes for topic in (scope.topic, self._topic)]
        ends = await blocking(self._end_offsets.ends, partitions)
        failure: Unavailable | None = None
        for scope in scopes:
            backlog = scope.backlog
            backlog.log_ends_at(ends[scope.topic, scope.partition])
            try:
                if (end := ends[self._topic, scope.partition]) != backlog.events_end:
                    # The publisher counts the records of others.
                    last = await last_event(self._events, scope.partition, lambda offset: None)
                    backlog.moved((last.offset, last.event_index) if last else (-1, -1), end)
                if not backlog.first_is_current:
                    await self._seek(scope, backlog)
            except Unavailable as error:  # the other scopes are measured all the same
                failure = error
        if failure is not None:
            raise failure

    async def _seek(self, scope: Scope, backlog: Backlog) -> None:
        """Find the first accepted record whose events are not published, or that there is none. A record that this
        instance has not judged yet counts as accepted until then."""
        stop, chunk = min(backlog.end, backlog.clean + STRETCH), CHUNKS[0]
        time = 0
        while backlog.clean < stop:
            upto = min(stop, backlog.clean + chunk)
            found, time = await self._with_events(scope, backlog, upto)
            if (first := await self._accepted(scope, found)) is not None:
                backlog.waits_for(first)
                backlog.passed(first.offset)
                return
            backlog.passed(upto)
            chunk = min(4 * chunk, CHUNKS[1])
        # The next measurement goes on here; until then something may be left to publish.
        backlog.waits_for(RecordWithEvents(stop, time, 0) if stop < backlog.end else None)

    async def _with_events(self, scope: Scope, backlog: Backlog, upto: int) -> tuple[list[RecordWithEvents], int]:
        """The next records below ``upto`` with events that are not published, and the time of the last record read."""
        read = await scope.reader.read_each(scope.partition, backlog.clean, upto, _with_events)
        found = [each for each in read if each.last >= 0 and (each.offset, each.last) > backlog.published]
        return found, read[-1].time if read else 0

    async def _accepted(self, scope: Scope, found: Sequence[RecordWithEvents]) -> RecordWithEvents | None:
        """The first of them that is accepted or not judged yet."""
        judged = [record.offset for record in found if record.offset < scope.view.next]
        verdicts = await scope.verdicts(judged[0], judged[-1] + 1) if judged else ""
        for number, record in enumerate(found):
            verdict = verdicts[record.offset - judged[0]] if number < len(judged) else "?"
            if verdict != "0":
                return record._replace(sure=verdict == "1")
        return None


def _with_events(message: Message) -> RecordWithEvents:
    """From any record; ``last`` is -1 for a record without events."""
    record = log_record(message)
    return RecordWithEvents(record.offset, record.time, _events(record.value) - 1)


def _events(value: bytes) -> int:
    """The number of events in a record of the log."""
    try:
        return records.published(records.decode(value))
    except HiveError:
        return 0  # the scope stops at this record and reports it
