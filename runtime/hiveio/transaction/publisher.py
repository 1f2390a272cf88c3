"""Accepted events → event topic: in log order, gapless, one record an event.

One *session* reads the event partition to its end, resumes after the position of its last record, and sends in log
order; a record can land only after those before it, and any failure ends the session. Sessions of several instances
may overlap (a lease keeps that rare, and a dead holder is succeeded when it ends), so repeats occur; each record names
its position and the one before, by which a consumer drops repeats and would notice a gap. A session that finds that
another one was faster ends, so repeats are few in a row (REPEATED). Modelled in Publisher.tla.

The lease is for an instance that can publish: one whose scope is ready, that reaches Kafka, and that gets on. Any other
gives it back, and stays away for longer than the others need to take it.
"""

import asyncio
import logging
import random
import time
from collections import deque
from itertools import islice

from hiveio.config import Settings
from hiveio.errors import Corrupt, HiveError, Unavailable
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.session import MOST, Outgoing, Session
from hiveio.kafka.tail import LogRecord, Tail
from hiveio.transaction import metrics
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.record import Commit, Record
from hiveio.transaction.resume import Resume
from hiveio.transaction.rule import Effects
from hiveio.transaction.scope import Scope
from hiveio.types import Observer

logger = logging.getLogger("hiveio.publisher")

LEASE_MS = 2_000  # a dead holder is succeeded after it
RENEW_S = 0.6
AWAY_S = 2.0  # after a session that failed; the others ask every RENEW_S
CHECK_S = 1.0  # between two looks at whether it gets on
STUCK_S = 3.0  # without a record published, while there are some
POSITION = 2  # among the headers of an event
GATHER_S = 0.005  # between two requests
GROUP = 500  # most records of the log at once
GROUP_BYTES = 600_000
LIVE = 5_000  # records handed on by the scope and not sent, beyond which the log is read again; so it is with bytes


Told = tuple[LogRecord, Record | None]  # what it says, or None where it is void


class Publisher:
    """Publishes one scope, while it holds the lease."""

    def __init__(
        self,
        settings: Settings,
        scope: Scope,
        cache: Cache,
        tail: Tail,
        events: LogReader,
        holder: str,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._settings, self._scope, self._cache, self._tail = settings, scope, cache, tail
        self._holder = holder
        self._topic = settings.written_topic
        where = f"{self._topic}/{scope.partition}"
        self._resuming = Resume(
            cache,
            scope.reader,
            events,
            scope.partition,
            log_where=scope.where,
            where=where,
            proved=self._log_end,
        )
        self._where = where
        self._inbox: deque[LogRecord] = deque()  # from the log, while it catches up; perhaps not judged yet
        self._told: deque[Told] = deque()  # judged and not sent: from the inbox or, where it keeps up,
        self._live = False  # handed on by the scope as it judges
        self._live_bytes = 0
        self._news = asyncio.Event()
        self._renewed = 0.0
        self._checked = self._moved = 0.0  # when it was looked at, and when it last got on
        self._read_then = 0
        self._trouble = ""  # why the log cannot be read
        self._previous = ""
        self._after = (-1, -1)  # offset and index of the last event published
        self._task: asyncio.Task[None] | None = None
        self.read = 0  # the log is published, or holds nothing to publish, below this offset
        self.paused_s = float("-inf")  # when it last paused, because Kafka did not take or give what it has to

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self, timeout_s: float) -> None:
        """Publish what this instance has accepted, within the bound, and hand the lease on."""
        if self._task is None:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while self._renewed and self.read < self._scope.view.next and not self._task.done() and loop.time() < end:
            await asyncio.sleep(0.01)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._give_back()

    async def _run(self) -> None:
        while not self._scope.failed:
            pause = RENEW_S
            try:
                if not self._scope.state and await self._held():
                    pause = AWAY_S
                    await self._session()
                    pause = RENEW_S  # another instance has the lease
            except Unavailable as error:
                self.paused_s = time.monotonic()
                logger.warning("publishing %s pauses: %s", self._where, error)
            except Corrupt as error:
                self._scope.fail(str(error))
            except HiveError as error:
                logger.error("publishing %s fails: %s", self._where, error)
            except Exception:  # a session finds its place anew: whatever it was, the next one may go on
                logger.exception("a fault while publishing %s", self._where)
            if pause == AWAY_S:
                await self._give_back()
            await asyncio.sleep(pause * (0.5 + random.random() / 2))

    async def _give_back(self) -> None:
        if self._renewed:
            self._renewed = 0.0
            try:
                await self._cache.lease(self._scope.partition, self._holder, 1)
            except HiveError:
                pass  # it ends by its time

    async def _held(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._renewed and now - self._renewed < RENEW_S:
            return True
        mirror, before = self._scope.mirror, self._scope.mirror.watermark
        watermark, held = await self._cache.lease(self._scope.partition, self._holder, LEASE_MS)
        if (
            mirror.watermark.generation == before.generation
        ):  # so an instance without work notices a cache that was lost
            mirror.observe_watermark(watermark, before.offset)
        if not held:
            self._renewed = 0.0
            return False
        self._renewed = now
        return True

    async def _session(self) -> None:
        await self._resume()
        session = Session(self._settings, self._topic, self._scope.partition, self._observer)
        logger.info("publishing %s after %s", self._where, self._previous or "the start")
        loop = asyncio.get_running_loop()
        self._checked = self._moved = loop.time()
        try:
            while await self._held():
                group = await self._gather()
                began = loop.time()
                if group:
                    await self._send(session, group)
                    await self._resuming.note()
                    metrics.published.inc(len(group))
                self._scope.applier.note_published(self.read)
                await self._check()
                if group and (pause := began + GATHER_S - loop.time()) > 0:
                    await asyncio.sleep(pause)
        finally:
            session.close()
            self._end_live()
            self._unfollow()

    async def _send(self, session: Session, group: list[Outgoing]) -> None:
        """Raises Unavailable when that fails, or when another session has published some of them before."""
        for start in range(0, len(group), MOST):
            events = group[start : start + MOST]
            await self._resuming.landed(await session.send(events), str(events[0].headers[POSITION][1]))

    async def _check(self) -> None:
        """Raises Unavailable if this instance cannot publish, so that another one may try."""
        if self._scope.state or self._trouble:
            raise Unavailable(self._scope.state or self._trouble)
        now = asyncio.get_running_loop().time()
        if now - self._checked < CHECK_S:
            return
        try:
            async with asyncio.timeout(CHECK_S):
                end = await self._scope.reader.end(self._scope.partition)
        except TimeoutError:
            raise Unavailable(f"Kafka does not say where {self._scope.where} ends") from None
        if self.read >= end or self.read > self._read_then:
            self._moved = now
        elif now - self._moved > STUCK_S:
            raise Unavailable(f"nothing beyond {self._scope.where}/{self.read} was published for {STUCK_S:.0f} s")
        self._checked, self._read_then = now, self.read

    async def _log_end(self) -> int:
        await self._scope.caught_up("linearizable")
        return self._scope.view.next

    async def _resume(self) -> None:
        last = await self._resuming.last()
        self._previous, self._after = (last.position, (last.offset, last.place)) if last else ("", (-1, -1))
        self.read, self._trouble = max(0, self._after[0]), ""
        self._tail.follow(self._scope.partition, self.read, self._arrived, self._broken)

    def _unfollow(self) -> None:
        self._tail.unfollow(self._scope.partition)
        self._inbox.clear()

    def _judged(self, message: LogRecord, record: Record, effects: Effects) -> None:
        """The scope has judged the next record. When it begins anew, or is too fast, the log is read again."""
        told = self._told
        self._live_bytes += len(message.value)
        expected = told[-1][0].offset + 1 if told else self.read
        many = len(told) >= LIVE or self._live_bytes > self._scope.bounds.live
        if effects.verdict is None or message.offset != expected or many:
            self._end_live()
            self._tail.follow(self._scope.partition, self.read, self._arrived, self._broken)
        else:
            told.append((message, record if effects.verdict else None))
        self._news.set()

    def _end_live(self) -> None:
        self._scope.notify_judged(None)
        self._live = False
        self._told.clear()

    def _arrived(self, batch: list[LogRecord]) -> None:
        self._inbox.extend(batch)
        self._news.set()

    def _broken(self, reason: str) -> None:
        self._trouble = f"{self._scope.where} cannot be read: {reason}"

    async def _gather(self) -> list[Outgoing]:
        """The next events to publish; none if there are none within a moment."""
        if not (self._live or self._told or self._inbox) and self.read == self._scope.view.next:
            self._unfollow()
            self._live, self._live_bytes = True, 0
            self._scope.notify_judged(self._judged)
        if not (self._told or self._inbox):
            self._news.clear()
            try:
                async with asyncio.timeout(RENEW_S / 2):
                    await self._news.wait()
            except TimeoutError:
                return []
        if not self._told:
            await self._ask()
        group: list[Outgoing] = []
        size = 0
        while self._told and len(group) < GROUP:
            message, accepted = self._told[0]
            if size and size + len(message.value) > GROUP_BYTES:
                break
            self._told.popleft()
            size += len(message.value)
            if accepted is not None:
                group += self._outgoing(message, accepted)
            self.read = message.offset + 1
        self._live_bytes -= size
        return group

    async def _ask(self) -> None:
        """For the verdicts of what was read from the log."""
        if not self._inbox:
            return
        try:
            async with asyncio.timeout(RENEW_S / 2):
                await self._scope.reach(self._inbox[0].offset + 1)
        except TimeoutError:
            return  # not judged yet: the lease is renewed meanwhile
        batch = [message for message in islice(self._inbox, GROUP) if message.offset < self._scope.view.next]
        verdicts = await self._scope.verdicts(batch[0].offset, batch[-1].offset + 1) if batch else ""
        for message, verdict in zip(batch, verdicts, strict=True):
            if verdict == "?":
                break
            self._told.append((message, records.decode(message.value) if verdict == "1" else None))
            self._inbox.popleft()
        self._tail.taken(self._scope.partition, len(self._told))
        if not self._told:
            await asyncio.sleep(0.1)  # it is being folded anew

    def _outgoing(self, message: LogRecord, record: Record) -> list[Outgoing]:
        group = outgoing(self._scope.partition, message, record)
        if message.offset == self._after[0]:
            group = group[self._after[1] + 1 :]
        for event in group:
            if self._previous:
                event.headers.append(("hive-previous", self._previous))
            self._previous = str(event.headers[POSITION][1])
        return group


def outgoing(partition: int, message: LogRecord, record: Record) -> list[Outgoing]:
    """The events of an accepted record as they stand on the event topic, but for ``hive-previous``."""
    group: list[Outgoing] = []
    if not isinstance(record, Commit):
        return group
    for write in record.writes:
        actor, _, id = write.aggregate.partition("/")
        for version, event in enumerate(write.events, write.version + 1):
            index = len(group)
            headers: list[tuple[str, str | bytes | None]] = [
                ("hive-actor", actor),
                ("hive-id", f"{message.key}.{index}"),
                ("hive-position", f"{partition}:{message.offset}:{index}"),
                ("hive-version", str(version)),
                ("content-type", "application/json"),
            ]
            if record.trace:
                headers.append(("traceparent", record.trace))
            if record.tracestate:
                headers.append(("tracestate", record.tracestate))
            group.append(Outgoing(id, bytes(event), headers))
    return group
