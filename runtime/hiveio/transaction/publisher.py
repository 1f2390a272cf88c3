"""The accepted events are published on the event topic: in log order, without gaps, one event in each record. What
processes send is published in the same way on the topic of their commands.

One *session* reads the event partition to its end, resumes after the position of the last record there, and sends in
log order. A record can land only after those before it, and any failure ends the session. Sessions of several
instances may overlap (the lease of the leader keeps that rare), so repeats occur. Each record names its position and
the position before it, by which a consumer drops repeats and would notice a gap. A session ends when it finds that
another one was faster, so there are few repeats in a row (REPEATED). It is modelled in Publisher.tla.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from hiveio.envelope import encode_message
from hiveio.errors import Unavailable
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.session import MAX_GROUP, Session
from hiveio.kafka.session_clients import Outgoing, Replaced, SessionClients
from hiveio.kafka.tail import LogRecord, Tail
from hiveio.messages import CommandAccepted, CommandRefused, Event
from hiveio.metrics import Counter, Gauge
from hiveio.transaction import metrics
from hiveio.transaction import record as records
from hiveio.transaction.cache import Cache
from hiveio.transaction.leader import IsLeading
from hiveio.transaction.record import Cause, Commit, Record
from hiveio.transaction.resume import Resume
from hiveio.transaction.rule import Effects
from hiveio.transaction.scope import Scope
from hiveio.types import Observer

logger = logging.getLogger("hiveio.publisher")

WAIT_S = 0.3  # for something to publish, until it asks again whether this instance still leads
CHECK_S = 1.0  # between two checks of its progress
RESUME_S = 0.1  # the longest pause until the next session, where the one before ended because of another partition
STUCK_S = 3.0  # without progress while there are records to publish
POSITION = 2  # among the headers of an event
GATHER_S = 0.005  # between two requests
GROUP = 500  # the most records of the log in one group, and
GROUP_BYTES = 600_000  # their bytes
LIVE = 5_000  # records that the scope has passed on and that are not sent, beyond which the log is read again


Candidate = tuple[LogRecord, Record | None]  # a judged record, decoded; None where it is void


class Origin(NamedTuple):
    """From where is published, and to which topic: ``log_id`` is the id of the log topic."""

    topic: str
    log_id: str
    partition: int


Outgoings = Callable[[Origin, LogRecord, Record], list[Outgoing]]


class Kind(NamedTuple):
    """What is published: its name, what of it an accepted record holds (without ``hive-previous``), the counter, and a
    gauge of how far the topic is behind."""

    name: str
    outgoing: Outgoings
    published: Counter
    behind: Gauge | None = None


class Publisher:
    """Publishes the events of one scope, or the commands that its processes send. It is a duty of the leader."""

    def __init__(
        self,
        kind: Kind,
        topic: str,
        scope: Scope,
        cache: Cache,
        tail: Tail,
        events: LogReader,
        clients: SessionClients,
        observer: Observer | None = None,
    ) -> None:
        """``events`` reads the topic. ``tail`` is for publishing alone: it follows the log while the publisher is
        behind the scope."""
        self._kind, self._observer = kind, observer
        self.topic, self._scope, self._tail, self._clients = topic, scope, tail, clients
        self._origin = Origin(topic, cache.topic_id, scope.partition)
        self._where = where = f"{self.topic}/{scope.partition}"
        self.name = f"publishing {where}"
        self._note = scope.applier.publishing(kind.name)
        self._resuming = Resume(
            cache,
            scope.reader,
            events,
            scope.partition,
            what=kind.name,
            log_where=scope.where,
            where=where,
            proved=self._log_end,
        )
        scope.mirror.subscribe(on_loss=self._resuming.forget)
        self._inbox: deque[LogRecord] = deque()  # read from the log while it catches up, and perhaps not judged yet
        self._judged: deque[Candidate] = deque()  # not sent yet; they come from the inbox or from the scope
        self._live = False  # whether the scope passes records on as it judges them
        self._live_bytes = 0
        self._news = asyncio.Event()
        self._checked_at = self._moved_at = 0.0  # the latest check, and the latest progress
        self._check_s = CHECK_S
        self._read_at_check = 0
        self._trouble = ""  # why the log cannot be read
        self._previous = ""
        self._after = (-1, -1)  # offset and index of the last event published
        self._session: Session | None = None
        self._read = 0  # all events of the log below this offset are published, or on their way
        self._stored = -1  # the same without those on their way

    @property
    def done(self) -> bool:
        """Whether all events that this instance has judged are published: Kafka has stored them."""
        return self._stored >= self._scope.view.next

    rests = done

    async def run(self, is_leading: IsLeading) -> None:
        """Run one session after the other, while this instance leads. Raises Unavailable, Corrupt."""
        now = asyncio.get_running_loop().time
        self._checked_at = self._moved_at = now()
        while await is_leading():
            try:
                await self._run_session(is_leading)
            except Replaced:  # what failed is not of this partition
                if now() - self._moved_at > STUCK_S:
                    raise
                await asyncio.sleep(random.uniform(0.0, RESUME_S))

    async def _run_session(self, is_leading: IsLeading) -> None:
        await self._resume()
        session = self._session = Session(self._clients, self.topic, self._scope.partition, self._observer)
        logger.info("publishing %s after %s", self._where, self._previous or "the start")
        loop = asyncio.get_running_loop()
        try:
            while self._session is session and session.usable and await is_leading():
                group = await self._gather()
                began = loop.time()
                if group:
                    await self._send(session, group)
                    self._kind.published.inc(len(group))
                    await self._resuming.note()
                elif not self._scope.mirror.lost:
                    await self._resuming.note_again()
                self._stored = self._read
                self._note(self._resumes_at)
                await self._check()
                if group and (pause := began + GATHER_S - loop.time()) > 0:
                    await asyncio.sleep(pause)
        finally:
            session.close()
            self._end_live()
            self._unfollow()
            self._show(0)  # the next leader shows it

    @property
    def _resumes_at(self) -> int:
        """The record at which the next session resumes: the last one that has something on the topic, however far below
        the end that is. It asks for the verdicts from there on."""
        return int(self._previous.split(":")[1]) if self._previous else 0

    def renew(self) -> None:
        """End the session. The next one begins with a new client, which asks who leads the partitions of the topic."""
        if self._session is not None:
            self._session.close()
            self._session = None

    async def _send(self, session: Session, group: list[Outgoing]) -> None:
        """Raises Unavailable when sending fails, or when another session has published some of them before."""
        for start in range(0, len(group), MAX_GROUP):
            events = group[start : start + MAX_GROUP]
            await self._resuming.landed(await session.send(events), str(events[0].headers[POSITION][1]))

    async def _check(self) -> None:
        """Raises Unavailable if this instance cannot publish, so that another one can try."""
        if self._trouble:
            raise Unavailable(self._trouble)
        now = asyncio.get_running_loop().time()
        if now - self._checked_at < self._check_s:
            return
        try:
            async with asyncio.timeout(CHECK_S):
                end = await self._scope.reader.end(self._scope.partition)
        except TimeoutError:
            raise Unavailable(f"Kafka did not name the end of {self._scope.where} within {CHECK_S:.0f} s") from None
        self._show(max(0, end - max(0, self._stored)))
        if self._read >= end or self._read > self._read_at_check:
            self._moved_at = now
        elif now - self._moved_at > STUCK_S:
            raise Unavailable(
                f"no {self._kind.name} from {self._scope.where}/{self._read} on were published for {STUCK_S:.0f} s"
            )
        self._checked_at, self._read_at_check = now, self._read
        self._check_s = CHECK_S * (0.75 + random.random() / 2)  # not all publishers at once

    def _show(self, behind: int) -> None:
        if self._kind.behind is not None:
            self._kind.behind.labels(str(self._scope.partition)).set(behind)

    async def _log_end(self) -> int:
        await self._scope.caught_up("linearizable")
        return self._scope.view.next

    async def _resume(self) -> None:
        self._stored = -1
        last = await self._resuming.last()
        self._previous, self._after = (last.position, (last.offset, last.event_index)) if last else ("", (-1, -1))
        self._read = self._stored = max(0, self._after[0])
        self._trouble = ""
        self._tail.follow(self._scope.partition, self._read, self._arrived, self._broken)

    def _unfollow(self) -> None:
        self._tail.unfollow(self._scope.partition)
        self._inbox.clear()

    def _on_judged(self, message: LogRecord, record: Record, effects: Effects) -> None:
        """The scope has judged the next record. If the scope has started again, or is too fast, the log is read
        instead."""
        judged = self._judged
        self._live_bytes += len(message.value)
        expected = judged[-1][0].offset + 1 if judged else self._read
        too_many = len(judged) >= LIVE or self._live_bytes > self._scope.bounds.live
        if effects.verdict is None or message.offset != expected or too_many:
            self._end_live()
            self._tail.follow(self._scope.partition, self._read, self._arrived, self._broken)
        else:
            judged.append((message, record if effects.verdict else None))
        self._news.set()

    def _end_live(self) -> None:
        self._scope.stop_judged(self._on_judged)
        self._live = False
        self._judged.clear()

    def _arrived(self, batch: list[LogRecord]) -> None:
        self._inbox.extend(batch)
        self._news.set()

    def _broken(self, reason: str) -> None:
        self._trouble = f"{self._scope.where} cannot be read: {reason}"

    async def _gather(self) -> list[Outgoing]:
        """The next events to publish; none if there are none within WAIT_S."""
        if not (self._live or self._judged or self._inbox) and self._read == self._scope.view.next:
            self._unfollow()
            self._live, self._live_bytes = True, 0
            self._scope.notify_judged(self._on_judged)
        if not (self._judged or self._inbox):
            self._news.clear()
            try:
                async with asyncio.timeout(WAIT_S):
                    await self._news.wait()
            except TimeoutError:
                return []
        if not self._judged:
            await self._ask()
        group: list[Outgoing] = []
        size = 0
        while self._judged and len(group) < GROUP:
            message, accepted = self._judged[0]
            if size and size + len(message.value) > GROUP_BYTES:
                break
            self._judged.popleft()
            size += len(message.value)
            if accepted is not None:
                group += self._outgoing(message, accepted)
            self._read = message.offset + 1
        self._live_bytes -= size
        return group

    async def _ask(self) -> None:
        """Ask for the verdicts of the records that were read from the log."""
        if not self._inbox:
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await self._scope.reach(self._inbox[0].offset + 1)
        except TimeoutError:
            return  # it is not judged yet; the caller renews the lease and comes back
        batch = [message for message in islice(self._inbox, GROUP) if message.offset < self._scope.view.next]
        verdicts = await self._scope.verdicts(batch[0].offset, batch[-1].offset + 1) if batch else ""
        for message, verdict in zip(batch, verdicts, strict=True):
            if verdict == "?":
                break
            self._judged.append((message, records.decode(message.value) if verdict == "1" else None))
            self._inbox.popleft()
        self._tail.consumed(self._scope.partition, len(self._judged))
        if not self._judged:
            await asyncio.sleep(0.1)  # the scope folds it again

    def _outgoing(self, message: LogRecord, record: Record) -> list[Outgoing]:
        group = self._kind.outgoing(self._origin, message, record)
        if message.offset == self._after[0]:
            group = group[self._after[1] + 1 :]
        for event in group:
            if self._previous:
                event.headers.append(("hive-previous", self._previous))
            self._previous = str(event.headers[POSITION][1])
        return group


def outgoing(origin: Origin, message: LogRecord, record: Record) -> list[Outgoing]:
    """The events of an accepted record as they are on the event topic, without ``hive-previous``. Those of a command
    that has a cause name that, and the process that sent it; without events there is an outcome instead."""
    group: list[Outgoing] = []
    if not isinstance(record, Commit):
        return group
    further: list[tuple[str, str | bytes | None]] = [*_trace(record)]
    if subject := record.command.caller:
        further.append(("hive-subject", subject))
    if record.passed:
        further += [(name, value.encode("latin-1")) for name, value in record.passed]
    if record.cause is not None:
        further = [("hive-cause", record.cause.text), ("hive-process", record.cause.process), *further]
    for write in record.writes:
        actor, _, id = write.aggregate.partition("/")
        for version, event in enumerate(write.events, write.version + 1):
            index = len(group)
            headers: list[tuple[str, str | bytes | None]] = [
                ("hive-actor", actor),
                ("hive-id", f"{message.key}.{index}"),
                ("hive-position", f"{origin.partition}:{message.offset}:{index}"),
                ("hive-version", str(version)),
                ("content-type", "application/json"),
            ]
            headers += further
            group.append(Outgoing(id, bytes(event), headers))
    if record.cause is not None and not group:
        group.append(_outcome(origin, message, record, record.cause, further))
    return group


def _outcome(
    origin: Origin, message: LogRecord, record: Commit, cause: Cause, further: Sequence[tuple[str, str | bytes | None]]
) -> Outgoing:
    """The answer to a command of a process that has no events."""
    actor, _, id = record.command.target.partition("/")
    answer: Event = CommandAccepted(origin.topic, id, cause.command)
    if record.refusal is not None:
        answer = CommandRefused(origin.topic, id, cause.command, record.refusal)
    headers: list[tuple[str, str | bytes | None]] = [
        ("hive-actor", actor),
        ("hive-id", f"{message.key}.0"),
        ("hive-position", f"{origin.partition}:{message.offset}:0"),
        ("hive-outcome", "accepted" if record.refusal is None else "refused"),
        ("content-type", "application/json"),
        *further,
    ]
    return Outgoing(id, encode_message(answer), headers)


def commands(origin: Origin, message: LogRecord, record: Record) -> list[Outgoing]:
    """The commands that an accepted record of a process sends, as they are on the topic of commands. ``hive-service``
    and the key name to whom, ``hive-process`` who sends it, ``hive-log`` the log to which the position belongs: an
    answer names the process, and the command as its cause."""
    if not isinstance(record, Commit) or record.process is None:
        return []
    group = []
    for index, send in enumerate(record.process.sends):
        headers: list[tuple[str, str | bytes | None]] = [
            ("hive-service", send.service),
            ("hive-id", f"{message.key}.{index}"),
            ("hive-position", f"{origin.partition}:{message.offset}:{index}"),
            ("hive-log", origin.log_id),
            ("hive-process", record.command.target),
            ("content-type", "application/json"),
            *_trace(record),
        ]
        group.append(Outgoing(send.id, bytes(send.message), headers))
    return group


def _trace(record: Commit) -> list[tuple[str, str]]:
    return [
        (name, value) for name, value in (("traceparent", record.trace), ("tracestate", record.tracestate)) if value
    ]


EVENTS = Kind("events", outgoing, metrics.published)
COMMANDS = Kind("commands", commands, metrics.sent, metrics.outbox_behind)
