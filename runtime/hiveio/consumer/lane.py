"""The records of one partition, in order: what is a repeat, who takes it, what happens when that fails."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from hiveio.consumer.careful import CarefulLane, Failure, Headers, id_of
from hiveio.consumer.progress import Progress, Window
from hiveio.consumer.retry import Hand, Retry
from hiveio.consumer.routing import Routing, Target
from hiveio.consumer.shelf import NOBODY, Shelf
from hiveio.envelope import Envelope
from hiveio.errors import Corrupt, Problem, Unavailable
from hiveio.kafka import Message

SLICE_S = 0.005  # so long a lane works before others get their turn
ENDED_S = 1.0  # so long a cancelled handler has to end
logger = logging.getLogger("hiveio.consumer")


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


class WorkLane(CarefulLane):
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
        done = (opening.start, opening.note)
        super().__init__(
            opening.topic, opening.partition, opening.begin, done, routing=routing, retry=retry, shelf=shelf
        )
        self.progress, self.window, self.start, self._resumes = opening.progress, window, opening.start, opening.resumes
        self._settled = max([opening.start, *opening.resumes.values()])
        self._on_finished = finished
        self._chunks: deque[list[Message]] = deque()
        self.oldest: Message | None = None  # not handled yet
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

    @property
    def lag(self) -> tuple[int, float]:
        """Records that are not handled, and the age of the oldest of them in seconds."""
        records = max(0, self.high - self.done[0])
        if not records or self.oldest is None:
            return records, 0.0
        return records, max(0.0, time.time() - self.oldest.timestamp()[1] / 1000)

    @property
    def parked(self) -> int:
        return len(self.shelf.parking.entries)

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
                elif not self.shelf.queue and not self._closing:
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
                    await self._undecodable(hand, message, value, error)
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
            await self._undecodable(hand, message, value, error)
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
