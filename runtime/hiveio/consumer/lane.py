"""The records of one partition, in order: what is a repeat, who takes it, what happens when that fails."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from hiveio.consumer.letters import ACTORS, OURS, TIME, headers_of, origin_of
from hiveio.consumer.progress import Progress, Window, parse_position
from hiveio.consumer.retry import Hand, Retry
from hiveio.consumer.routing import Routing, Target
from hiveio.consumer.shelf import GROUP, NOBODY, Shelf
from hiveio.envelope import Context, Envelope
from hiveio.errors import Corrupt, Problem, Refused, Stop, Unavailable
from hiveio.kafka import Lane, Message

SLICE_S = 0.005  # so long a lane works before others get their turn
ENDED_S = 1.0  # so long a cancelled handler has to end
logger = logging.getLogger("hiveio.consumer")

Headers = list[tuple[str, bytes | None]]
Failure = tuple[Exception, int]  # the last error, and the number of attempts


class Opening(NamedTuple):
    """Where a lane begins. Records from ``begin`` on only tell what was seen; those from ``start`` on are handled.

    ``resumes`` says from which offset on a target takes records, where it is not the same for all.
    """

    topic: str
    partition: int
    begin: int
    start: int
    progress: Progress
    note: str | bytes | None
    resumes: dict[Target, int]


class WorkLane(Lane):
    """A partition at work, in one task: each record is handled before the next, and then counts as done."""

    def __init__(
        self,
        opening: Opening,
        *,
        routing: Routing,
        retry: Retry,
        window: Window,
        shelf: Callable[[Callable[[], None]], Shelf],
        finished: Callable[[], None],
    ) -> None:
        super().__init__(opening.topic, opening.partition, opening.begin, (opening.start, opening.note))
        self.routing, self.retry = routing, retry
        self.progress, self.window, self.start, self._resumes = opening.progress, window, opening.start, opening.resumes
        self._settled = max([opening.start, *opening.resumes.values()])
        self._on_finished = finished
        self._chunks: deque[list[Message]] = deque()
        self._arrived = asyncio.Event()
        self.shelf = shelf(self._arrived.set)
        self._closing = False
        self.held: str | None = None  # why it stands still, for as long as it does
        self.oldest: Message | None = None  # not handled yet
        self.hand = Hand()
        self.hand.task = self.task = asyncio.create_task(self._run(), name=f"lane {self.topic}/{self.partition}")

    @property
    def hands(self) -> list[Hand]:
        return [self.hand]

    def take(self, chunk: list[Message]) -> None:
        if self._closing or self.failure is not None:
            self.finished += len(chunk)
            return
        self._chunks.append(chunk)
        self._arrived.set()

    async def close(self, timeout_s: float) -> None:
        """Finish what is in hand, or cancel its handler after the time. Nothing is handled after this."""
        self._closing = True
        self._arrived.set()
        tasks = []
        for hand in self.hands:
            if hand.task is not None:
                tasks.append(hand.task)
                if hand.idle or timeout_s <= 0:
                    hand.task.cancel()
        _, running = await asyncio.wait(tasks, timeout=max(timeout_s, 0.0))
        if running:
            if timeout_s > 0:
                logger.warning("%s: the handler did not finish within %g s and is cancelled", self, timeout_s)
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=ENDED_S)
        self.shelf.close()

    def fail(self, reason: str) -> None:
        """Stop this partition, loudly: its offset stays, and readiness tells. Others go on."""
        if self.failure is None:
            self.failure = f"{self}: {reason}"
            self.routing.counts.failed += 1
            logger.error("%s: this partition stops, and nothing of it is lost: %s", self, reason)
        self._chunks.clear()
        self.finished = self.handed
        self._on_finished()

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.done[0]}"

    # -- the task

    async def _run(self) -> None:
        try:
            await self._load()
            while not self._closing and self.failure is None:
                if self.shelf.queue:
                    await self._redrive()
                if self._chunks:
                    chunk = self._chunks.popleft()
                    self.oldest = chunk[0]
                    await self._work(chunk)
                    self.oldest = None
                    if self.failure is None:
                        self.finished += len(chunk)
                        self._on_finished()
                elif not self.shelf.queue:
                    self._arrived.clear()
                    await self._wait(self.hand, self._arrived.wait())
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except Corrupt as error:
            self.fail(str(error))
        except Exception as error:
            logger.exception("%s", self)
            self.fail(f"{type(error).__name__}: {error}")
        finally:
            self.hand.since = None

    async def _load(self) -> None:
        while True:
            try:
                await self._wait(self.hand, self.shelf.load())
                self.held = None
                return
            except Unavailable as error:
                self.held = f"{self}: its dead letters cannot be read: {error}"
                logger.warning("%s", self.held)
            await self._wait(self.hand, asyncio.sleep(random.uniform(0.5, 1.0)))

    async def _wait(self, hand: Hand, what: Awaitable[Any]) -> None:
        """Wait with nothing in hand: a revoke does not wait for it."""
        hand.idle, hand.since = True, None
        try:
            await what
        finally:
            hand.idle = False

    async def _work(self, chunk: list[Message]) -> None:
        routing, progress, shelf, hand, clock = self.routing, self.progress, self.shelf, self.hand, time.monotonic
        decode, by_type, counts = routing.codec.decode, routing.by_type, routing.counts
        slice_end = (now := clock()) + SLICE_S
        for message in chunk:
            hand.since = now
            offset = message.offset()
            assert offset is not None
            headers: Any = message.headers()
            new = True
            position = previous = None
            if headers is not None:
                for name, text in headers:
                    if name == "hive-position":
                        position = text
                    elif name == "hive-previous":
                        previous = text
                    elif name == "hive-key":
                        new = self.window.take(message.key(), text, headers)
                if position is not None:
                    new = progress.take(position, previous)
            if offset < self.start:
                continue
            if not new:
                counts.repeated += 1
            elif (value := message.value()) is None:
                counts.skipped += 1
            elif shelf.busy:
                await self._carefully(hand, message, headers, position)
            else:
                try:
                    event, meta = decode(value)
                except Problem as error:
                    await self._undecodable(hand, message, value, error, NOBODY)
                else:
                    key = message.key()
                    envelope = Envelope(message=event, id=id_of(key) if key else "", meta=meta)
                    failures = None
                    for target in by_type[type(event)]:
                        if offset < self._settled and offset < self._resumes.get(target, 0):
                            continue
                        if target.with_record and envelope.record is None:
                            self._add_record(envelope, message, headers, position)
                        try:
                            await target.handle(envelope)
                        except BaseException as error:
                            failed = await self._again(hand, message, target, envelope, error)
                            if failed is not None:
                                failures = {**(failures or {}), target.name: failed}
                    if failures:
                        await self._bury(hand, message, failures, NOBODY)
                    else:
                        counts.handled += 1
            if shelf.busy and shelf.pending:  # a record counts as done when its letter is written
                if message is chunk[-1] or self._closing:
                    hand.since = None
                    await shelf.flush()
                    self.done = (offset + 1, progress.last)
            else:
                self.done = (offset + 1, progress.last)
            if (now := clock()) > slice_end:
                hand.since = None
                await asyncio.sleep(0)
                slice_end = (now := clock()) + SLICE_S
            if self._closing:
                break
        hand.since = None

    async def _carefully(self, hand: Hand, message: Message, headers: Headers | None, position: bytes | None) -> None:
        """Handle a record while keys are parked, or others are handled beside it: as the loop of ``_work`` does."""
        value, offset, key, blocked = message.value(), message.offset(), message.key(), NOBODY
        assert value is not None
        assert offset is not None
        if self.shelf.busy:
            found = await self._blocked(message)
            if found is None:
                return
            blocked = found
        try:
            event, meta = self.routing.codec.decode(value)
        except Problem as error:
            await self._undecodable(hand, message, value, error, blocked)
            return
        envelope = Envelope(message=event, id=id_of(key) if key else "", meta=meta)
        failures: dict[str, Failure] = {}
        for target in self.routing.by_type[type(event)]:
            if target.name in blocked or (offset < self._settled and offset < self._resumes.get(target, 0)):
                continue
            if target.with_record and envelope.record is None:
                self._add_record(envelope, message, headers, position)
            hand.since = time.monotonic()
            try:
                await target.handle(envelope)
            except BaseException as error:
                failed = await self._again(hand, message, target, envelope, error)
                if failed is not None:
                    failures[target.name] = failed
            hand.since = None
        if failures or blocked:
            await self._bury(hand, message, failures, blocked)
        else:
            self.routing.counts.handled += 1

    def _look(self, message: Message) -> tuple[Headers | None, bytes | None, bool]:
        """The headers of a record, its position, and whether it is new. ``_work`` does the same, faster."""
        headers: Any = message.headers()
        position = previous = None
        new = True
        for name, text in headers or ():
            if name == "hive-position":
                position = text
            elif name == "hive-previous":
                previous = text
            elif name == "hive-key":
                new = self.window.take(message.key(), text, headers)
        if position is not None:
            new = self.progress.take(position, previous)
        return headers, position, new

    def _add_record(
        self, envelope: Envelope, message: Message, headers: Headers | None, position: bytes | None
    ) -> None:
        offset, time_ms = message.offset(), message.timestamp()[1]
        assert offset is not None
        self._set_record(envelope, headers or [], position, offset, time_ms, redriven=False)

    def _set_record(
        self,
        envelope: Envelope,
        headers: Headers,
        position: bytes | None,
        offset: int,
        time_ms: int,
        *,
        redriven: bool,
    ) -> None:
        texts = {name: text.decode("utf-8", "replace") for name, text in headers if text is not None}
        version = texts.get("hive-version", "")
        envelope.headers = texts
        envelope.key = texts.get("hive-key")
        envelope.record = Context(
            id=envelope.id or None,
            topic=self.topic,
            key=envelope.key,
            partition=self.partition,
            offset=offset,
            position=parse_position(position) if position is not None else None,
            version=int(version) if version.isdecimal() else None,
            time=time_ms / 1000,
            headers=texts,
            meta=msgspec.json.decode(envelope.meta) if envelope.meta else None,
            redriven=redriven,
        )

    # -- what fails

    async def _again(
        self, hand: Hand, message: Message, target: Target, envelope: Envelope, error: BaseException
    ) -> Failure | None:
        """Try a handler that raised again, in growing intervals. None when it worked, else how it failed at last."""
        attempt = 1
        while True:
            failure = hand.told(error, self.retry.timeout_s)
            if isinstance(failure, Stop):
                raise failure
            if self._closing:
                raise asyncio.CancelledError  # it is not done: another owner tries it
            wait_s = self.retry.wait_s(failure, attempt)
            if wait_s is None:
                return failure, attempt
            logger.warning(
                "%s/%d/%d: attempt %d failed, the next is in %.2f s: %s: %s",
                self.topic, self.partition, message.offset(), attempt, wait_s, type(failure).__name__, failure,
            )  # fmt: skip
            self.routing.counts.retried += 1
            await self._wait(hand, asyncio.sleep(wait_s))
            hand.since = time.monotonic()
            try:
                await target.handle(envelope)
                return None
            except BaseException as again:
                error, attempt = again, attempt + 1

    async def _blocked(self, message: Message) -> frozenset[str] | None:
        """The actors for whom its key is parked; None when that is all of them, and it is parked behind."""
        offset, key = message.offset(), message.key()
        assert offset is not None
        blocked = self.shelf.blocked(key, offset)
        if blocked is None or blocked < self.routing.names:
            return blocked
        await self._park(message, blocked)
        return None

    async def _park(self, message: Message, actors: frozenset[str]) -> None:
        self.routing.counts.parked += 1
        if self.shelf.put(message, "parked", "", 0, actors):
            await self.shelf.flush()

    async def _undecodable(
        self, hand: Hand, message: Message, value: bytes | str, error: Problem, blocked: frozenset[str] | None
    ) -> None:
        keepers = self.routing.keepers(value, error) | (blocked or NOBODY)  # type: ignore[arg-type]
        if not keepers:
            self.routing.counts.skipped += 1
            return
        await self._keep(hand, message, "undecodable", error, 1, keepers)

    async def _bury(self, hand: Hand, message: Message, failures: dict[str, Failure], blocked: frozenset[str]) -> None:
        actors = blocked | failures.keys()
        error, attempts = next(iter(failures.values()), (None, 0))
        if error is None or attempts == 0:  # it stands behind another of its key
            return await self._park(message, actors)
        reason = "refused" if isinstance(error, Refused) else "failed"
        return await self._keep(hand, message, reason, error, attempts, actors)

    async def _keep(
        self, hand: Hand, message: Message, reason: str, error: Exception, attempts: int, actors: frozenset[str]
    ) -> None:
        """Write a record that nobody can handle to the dead-letter topic, and park its key."""
        where, text = f"{self.topic}/{self.partition}/{message.offset()}", f"{type(error).__name__}: {error}"
        trace = error if reason == "failed" else None
        logger.error("%s: %s after %d attempts, a dead letter: %s", where, reason, attempts, text, exc_info=trace)
        hand.since = None
        await self._room(hand, f"{where}: {reason}: {text}")
        self.shelf.put(message, reason, text, attempts, actors)
        await self.shelf.flush()
        self.routing.counts.dead += 1

    async def _room(self, hand: Hand, what: str) -> None:
        """Stand still while more keys are parked than CONSUMER_PARKED allows."""
        while not self.shelf.room:
            if self.held is None:
                self.held = (
                    f"{what}; as many keys as CONSUMER_PARKED={self.shelf.limit} allows are parked, so this partition "
                    f"stops: `hiveio dead list` shows them, `hiveio dead retry` and `hiveio dead drop` free them"
                )
                logger.error("%s", self.held)
            if self.shelf.queue and hand is self.hand:
                await self._redrive()
            else:
                await self._wait(hand, self.shelf.changed())
        self.held = None

    # -- what is tried again

    async def _redrive(self) -> None:
        """Try some letters again, in order. What still fails stays where it is, and its key with it."""
        done: list[Message] = []
        while len(done) < GROUP and not self._closing and (message := self.shelf.next()) is not None:
            reason = await self._try(message)
            if reason is None:
                done.append(message)
                continue
            if done:
                await self.shelf.done(done)
                done = []
            await self.shelf.failed(message, reason)
        if done:
            await self.shelf.done(done)
            self.routing.counts.redriven += len(done)

    async def _try(self, message: Message) -> str | None:
        """One attempt of one letter: None, or why it failed."""
        routing, found = self.routing, headers_of(message)
        actors = frozenset(found.get(ACTORS, b"").decode("utf-8", "replace").split(","))
        if strange := actors - routing.names:
            return f"there is no actor {', '.join(sorted(strange))} here"
        value, key, origin = message.value() or b"", message.key(), origin_of(found)
        try:
            event, meta = routing.codec.decode(value)
        except Problem as error:
            return f"{type(error).__name__}: {error}" if routing.keepers(value, error) & actors else None
        envelope = Envelope(message=event, id=id_of(key) if key else "", meta=meta)
        assert origin is not None
        headers: Any = [(name, text) for name, text in found.items() if not name.startswith(OURS)]
        time_ms = int(found.get(TIME, b"0"))
        self._set_record(envelope, headers, found.get("hive-position"), origin[2], time_ms, redriven=True)
        for target in routing.by_type[type(event)]:
            if target.name not in actors:
                continue
            self.hand.since = time.monotonic()
            try:
                await target.handle(as_batch(envelope) if target.batch else envelope)
            except BaseException as error:
                failure = self.hand.told(error, self.retry.timeout_s)
                logger.warning("%s: tried again in vain: %s: %s", origin, type(failure).__name__, failure)
                return f"{type(failure).__name__}: {failure}"
            finally:
                self.hand.since = None
        return None


def as_batch(envelope: Envelope) -> Envelope:
    """One event as a batch."""
    return Envelope(message=[envelope.message], id=envelope.id, record=[envelope.record] if envelope.record else None)


def id_of(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode("utf-8", "replace")
