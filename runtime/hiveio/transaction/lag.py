"""How far the event topic is behind the log, as every instance sees it, whoever publishes or nobody.

Once a second the ends of both topics are asked for, of all scopes together. Where the event topic has moved, its last
record says up to which position it has come; where the first event after that is not known, the log is read from there
until an accepted record with events is found. Nothing is looked up where nothing moves.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import closing

import msgspec

from hiveio.errors import HiveError, Unavailable
from hiveio.kafka.marks import Marks
from hiveio.kafka.tail import log_record
from hiveio.transaction import record as records
from hiveio.transaction.backlog import Backlog, Bearing
from hiveio.transaction.publisher import position_of
from hiveio.transaction.record import Commit
from hiveio.transaction.scope import Scope

log = logging.getLogger("hiveio.publisher")

LOOK_S = 1.0  # between two looks
CANDIDATES = 20  # records with events whose verdicts are asked for at once
STRETCH = 20_000  # most records read in one look at a scope


class PublisherLag:
    """Keeps the backlog of every scope true."""

    def __init__(self, scopes: Sequence[Scope], marks: Marks, topic: str) -> None:
        self._scopes, self._marks, self._topic = scopes, marks, topic
        self._silent = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._marks.close)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
                self._silent = False
            except HiveError as error:
                if not self._silent:
                    log.warning("how far %s is behind its log cannot be seen: %s", self._topic, error)
                self._silent = True
            except Exception:
                log.exception("a fault while looking how far %s is behind its log", self._topic)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        places = [(topic, scope.partition) for scope in self._scopes for topic in (scope.topic, self._topic)]
        ends = await asyncio.to_thread(self._marks.ends, places)
        failure: Unavailable | None = None
        for scope in self._scopes:
            backlog = scope.backlog
            backlog.end = ends[scope.topic, scope.partition]
            try:
                if (end := ends[self._topic, scope.partition]) != backlog.events_end:
                    backlog.moved(await asyncio.to_thread(self._position, scope.partition, end))
                    backlog.events_end = end
                if not backlog.stands:
                    await self._seek(scope, backlog)
            except Unavailable as error:  # the other scopes go on
                failure = error
        if failure is not None:
            raise failure

    def _position(self, partition: int, end: int) -> tuple[int, int]:
        """Of the last event on the topic."""
        if not end:
            return -1, -1
        with closing(self._marks.read((self._topic, partition), end - 1, end)) as messages:
            return position_of(next(messages))

    async def _seek(self, scope: Scope, backlog: Backlog) -> None:
        """Find the first accepted record after what is published, or that there is none. What this instance has not
        judged yet counts until it has."""
        looked = 0
        while looked < STRETCH and backlog.clean < backlog.end:
            found, clean, time = await asyncio.to_thread(self._bearing, scope, backlog, STRETCH - looked)
            first = await self._accepted(scope, found)
            if first is not None:
                backlog.first, backlog.clean = first, first.offset
                return
            looked += clean - backlog.clean
            backlog.clean = clean
            backlog.first = Bearing(clean, time, 0) if clean < backlog.end else None  # the next look goes on
        if backlog.clean >= backlog.end:
            backlog.first = None

    def _bearing(self, scope: Scope, backlog: Backlog, most: int) -> tuple[list[Bearing], int, int]:
        """The next records that bear events which are not published; up to where the log was read, and its time."""
        found: list[Bearing] = []
        clean, end, time = backlog.clean, min(backlog.end, backlog.clean + most), 0
        with closing(self._marks.read((scope.topic, scope.partition), clean, end)) as messages:
            for offset, _, value, time in map(log_record, messages):
                count = _events(value)
                if count and (offset, count - 1) > backlog.published:
                    found.append(Bearing(offset, time, count - 1))
                clean = offset + 1
                if len(found) == CANDIDATES:
                    break
        return found, clean, time

    async def _accepted(self, scope: Scope, found: Sequence[Bearing]) -> Bearing | None:
        judged = [bearing.offset for bearing in found if bearing.offset < scope.view.next]
        first = judged[0] if judged else 0
        verdicts = await scope.verdicts(first, judged[-1] + 1) if judged else ""
        for bearing in found:
            verdict = verdicts[bearing.offset - first] if bearing.offset in judged else "?"
            if verdict != "0":
                return bearing._replace(sure=verdict == "1")
        return None


def _events(value: bytes) -> int:
    """How many events a record of the log bears."""
    try:
        record = records.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0  # the scope stops at it, and says so
    return sum(len(write.events) for write in record.writes) if isinstance(record, Commit) else 0
