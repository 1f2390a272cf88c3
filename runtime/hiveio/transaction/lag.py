"""How far the event topic is behind the log, as every instance sees it, whoever publishes or nobody.

Once a second the ends of both topics are asked for, of all scopes together. Where the event topic has moved, its last
event says up to which position it has come; where the first event after that is not known, the log is read from there
until an accepted record with events is found. Nothing is read where nothing moves.
"""

import asyncio
import logging
from collections.abc import Sequence

from hiveio.errors import HiveError, Unavailable
from hiveio.kafka import Message
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.tail import log_record
from hiveio.kafka.threads import blocking
from hiveio.outages import EVERY_S
from hiveio.transaction import record as records
from hiveio.transaction.backlog import Backlog, RecordWithEvents
from hiveio.transaction.record import Commit
from hiveio.transaction.resume import last_event
from hiveio.transaction.scope import Scope

logger = logging.getLogger("hiveio.publisher")

LOOK_S = 1.0  # between two looks
CHUNKS = (20, 2_000)  # records of the log read at once: first, and most
STRETCH = 20_000  # most records read in one look at a scope


class PublisherLag:
    """Keeps the backlog of every scope true."""

    def __init__(self, scopes: Sequence[Scope], marks: EndOffsets, events: LogReader, topic: str) -> None:
        self._scopes, self._marks, self._events, self._topic = scopes, marks, events, topic
        self._logged: tuple[str, float] = ("", 0.0)  # why a look failed, and when that was logged
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
                if self._is_news(error):
                    logger.warning("how far %s is behind its log cannot be seen: %s", self._topic, error)
            except Exception as error:
                if self._is_news(error):
                    logger.exception("a fault while looking how far %s is behind its log", self._topic)
            await asyncio.sleep(LOOK_S)

    def _is_news(self, error: Exception) -> bool:
        """Not logged already within EVERY_S."""
        now, kind = asyncio.get_running_loop().time(), type(error).__name__
        logged, at = self._logged
        if kind == logged and now - at < EVERY_S:
            return False
        self._logged = (kind, now)
        return True

    async def look(self) -> None:
        """Find how far publishing is behind now."""
        places = [(topic, scope.partition) for scope in self._scopes for topic in (scope.topic, self._topic)]
        ends = await blocking(self._marks.ends, places)
        failure: Unavailable | None = None
        for scope in self._scopes:
            backlog = scope.backlog
            backlog.log_ends_at(ends[scope.topic, scope.partition])
            try:
                if (end := ends[self._topic, scope.partition]) != backlog.events_end:
                    # Records of others are counted where publishing goes on.
                    last = await last_event(self._events, scope.partition, lambda offset: None)
                    backlog.moved((last.offset, last.place) if last else (-1, -1), end)
                if not backlog.first_is_current:
                    await self._seek(scope, backlog)
            except Unavailable as error:  # the other scopes go on
                failure = error
        if failure is not None:
            raise failure

    async def _seek(self, scope: Scope, backlog: Backlog) -> None:
        """Find the first accepted record after what is published, or that there is none. What this instance has not
        judged yet counts until it has."""
        stop, chunk = min(backlog.end, backlog.clean + STRETCH), CHUNKS[0]
        time = 0
        while backlog.clean < stop:
            upto = min(stop, backlog.clean + chunk)
            found, time = await blocking(self._with_events, scope, backlog, upto)
            if (first := await self._accepted(scope, found)) is not None:
                backlog.waits_for(first)
                backlog.passed(first.offset)
                return
            backlog.passed(upto)
            chunk = min(4 * chunk, CHUNKS[1])
        # The next look goes on; until then it is not known to be nothing.
        backlog.waits_for(RecordWithEvents(stop, time, 0) if stop < backlog.end else None)

    def _with_events(self, scope: Scope, backlog: Backlog, upto: int) -> tuple[list[RecordWithEvents], int]:
        """The next records up to there that have events which are not published, and the time of the last one read."""
        read = scope.reader.read_each(scope.partition, backlog.clean, upto, _with_events)
        found = [each for each in read if each.last >= 0 and (each.offset, each.last) > backlog.published]
        return found, read[-1].time if read else 0

    async def _accepted(self, scope: Scope, found: Sequence[RecordWithEvents]) -> RecordWithEvents | None:
        """The first of them that is accepted, or not judged yet."""
        judged = [record.offset for record in found if record.offset < scope.view.next]
        verdicts = await scope.verdicts(judged[0], judged[-1] + 1) if judged else ""
        for number, record in enumerate(found):
            verdict = verdicts[record.offset - judged[0]] if number < len(judged) else "?"
            if verdict != "0":
                return record._replace(sure=verdict == "1")
        return None


def _with_events(message: Message) -> RecordWithEvents:
    """Of any record; without events the index of its last one is -1."""
    offset, _, value, time = log_record(message)
    return RecordWithEvents(offset, time, _events(value) - 1)


def _events(value: bytes) -> int:
    """How many events a record of the log has."""
    try:
        record = records.decode(value)
    except HiveError:
        return 0  # the scope stops at it, and says so
    return sum(len(write.events) for write in record.writes) if isinstance(record, Commit) else 0
