"""The records of one partition, in order: what is a repeat, who takes it, what happens when that fails."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hiveio.actor import Tombstone
from hiveio.cloudevents import MARK as CLOUD_EVENT
from hiveio.cloudevents import is_structured
from hiveio.consumer.careful import CarefulLane, Failure, as_batch, enveloped, offset_of, settled
from hiveio.consumer.reading import JSON, LONGEST_VERSION, Reading, read, undecoded
from hiveio.consumer.retry import Hand
from hiveio.consumer.routing import Target
from hiveio.consumer.shelf import NOBODY
from hiveio.envelope import Envelope
from hiveio.errors import Corrupt, Invalid, Unavailable, is_cancelled
from hiveio.kafka import Message
from hiveio.kafka.headers import UNREADABLE, Pairs, mended

SLICE_S = 0.005  # so long a lane works before others get their turn
ENDED_S = 1.0  # so long a cancelled handler has to end
# Headers by which a repeat is known, and what is more than an action.
_MARKS = frozenset(
    ("hive-position", "hive-previous", "hive-version", "hive-key", "content-type", CLOUD_EVENT, UNREADABLE)
)
logger = logging.getLogger("hiveio.consumer")


# A record that is to be handled, and is no repeat: message, offset, value, headers, position. In the place of the value
# stands what was read already, where it is more than an action.
New = tuple[Message, int, bytes | Reading, Pairs | None, bytes | None]


class WorkLane(CarefulLane):
    """A partition at work, in one task: each record is handled before the next, and then counts as done."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._chunks: deque[list[Message]] = deque()
        self._chunk: list[Message] = []  # at work
        self.hand.task = self.task = asyncio.create_task(self._run(), name=f"lane {self.topic}/{self.partition}")

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
        self._finished()

    @property
    def oldest(self) -> Message | None:
        """Of those that are not handled; about."""
        return self._chunk[0] if self._chunk else None

    @property
    def lag(self) -> tuple[int, float]:
        """Records that are not handled, and the age of the oldest of them in seconds."""
        records, oldest = max(0, self.high - self.at[0]), self.oldest
        if not records or oldest is None:
            return records, 0.0
        return records, max(0.0, time.time() - oldest.timestamp()[1] / 1000)

    # -- the task

    @contextmanager
    def _until_closed(self, hand: Hand) -> Iterator[None]:
        """Around a task of this lane: it ends with the lane, or with a fault, which stops the partition."""
        try:
            yield
        except Corrupt as error:
            self.fail(str(error))
        except BaseException as error:
            if self._closing and isinstance(error, asyncio.CancelledError):
                return
            logger.exception("%s", self)
            self.fail(f"{type(error).__name__}: {error}")
            if is_cancelled(error):
                raise
        finally:
            hand.since = None

    async def _run(self) -> None:
        with self._until_closed(self.hand):
            await self._load()
            while not self._closing and self.failure is None:
                if self.shelf.queue:
                    await self._redrive()
                if self._chunks:
                    self._chunk = self._chunks.popleft()
                    await self._work(self._chunk)
                    if self.failure is None:
                        self.finished += len(self._chunk)
                        self._finished()
                    self._chunk = []
                elif not self.shelf.queue and not self._closing:
                    await self._rest()

    async def _load(self) -> None:
        while True:
            try:
                await self._wait(self.hand, self.shelf.load())
                await self._wait(self.hand, self._claim(self))  # before anything is handled
                self.hand.held = None
                return
            except Unavailable as error:
                before, self.hand.held = self.hand.held, f"{self}: nothing is handled yet: {error}"
                if before != self.hand.held:  # once for each reason; readiness says it for as long as it lasts
                    logger.warning("%s", self.hand.held)
            await self._wait(self.hand, asyncio.sleep(random.uniform(0.5, 1.0)))

    async def _rest(self) -> None:
        """Wait for records, or for letters to try again."""
        self._arrived.clear()
        await self._wait(self.hand, self._arrived.wait())

    async def _work(self, chunk: list[Message]) -> None:
        await self._handle(self.hand, self._new(chunk), in_order=True)
        if not self._closing:
            await self._all_done(chunk)

    async def _all_done(self, chunk: list[Message]) -> None:
        """Everything up to the end of the chunk is done, once the letters are written."""
        if self.shelf.pending:
            await self.shelf.flush()
        if (end := offset_of(chunk[-1]) + 1) > self.start:
            self.done = (end, self.progress.last)

    def _new(self, chunk: list[Message]) -> Iterator[New]:
        """The records to be handled. What was seen before, or says nothing, is counted; ``progress`` moves along."""
        start, counts, progress, window = self.start, self.routing.counts, self.progress, self.window.take
        codec, tombstones = self.routing.codec, Tombstone in self.routing.by_type
        all_headers = map(Message.headers, chunk)  # a map takes no short cut: see hiveio.kafka.headers
        for message in chunk:
            try:
                headers: Any = next(all_headers)
            except SystemError:
                headers = mended(message)
            position = previous = key = wrong = None
            new, odd = True, False
            if headers is not None:
                for name, text in headers:
                    if name in _MARKS:
                        if name == "content-type":
                            if text != JSON and text is not None and is_structured(text):
                                odd = True
                        elif name == "hive-position":
                            position = text
                        elif name == "hive-previous":
                            previous = text
                        elif name == "hive-version":
                            if text is not None and not (text.isdigit() and len(text) <= LONGEST_VERSION):
                                odd = True
                        elif name == "hive-key":
                            key = text
                        else:
                            odd = True
                if key is not None:
                    new = window(message.key(), key, headers)
            offset: Any = message.offset()
            if offset < start:
                if position is not None:
                    progress.look(position, previous)
                continue
            if position is not None:
                try:
                    new = progress.take(position, previous)
                except Invalid as error:
                    wrong = error
            value: Any = message.value()
            if not new:
                counts.repeated += 1
            elif wrong is not None:
                yield message, offset, wrong, headers, None
            elif odd or (value is None and tombstones):
                yield message, offset, read(headers or [], value, codec), headers, position
            elif value is None:
                counts.skipped += 1
            else:
                yield message, offset, value, headers, position

    def _anew(self, record: New, target: Target) -> Envelope:
        """What a record gives to an actor, once more: an attempt before this one may have changed what it was given."""
        envelope = self._envelope(record, *self._reread(record), target)
        return as_batch(envelope) if target.batch else envelope

    def _reread(self, record: New) -> tuple[Any, Any]:
        """Event and meta of a record that was read before."""
        message, _, value, headers, _ = record
        if type(value) is bytes:
            return self.routing.codec.decode(value, headers or ())
        return settled(read(headers or [], message.value(), self.routing.codec))

    def _envelope(self, record: New, event: Any, meta: Any, target: Target) -> Envelope:
        message, offset, _, headers, position = record
        envelope = enveloped(message, event, meta)
        if target.with_record:
            self._set_record(envelope, message, headers, position, offset, message.timestamp()[1])
        return envelope

    async def _handle(self, hand: Hand, records: Iterable[New], *, in_order: bool = False) -> None:
        """Each record, by all who take it. What they cannot handle is a letter, which may have to be flushed still.

        Records in order count as done one by one, and when the lane closes the one in hand is the last.
        """
        shelf, progress, since, clock = self.shelf, self.progress, self._settled, time.monotonic
        decode, by_type, counts = self.routing.codec.decode, self.routing.by_type, self.routing.counts
        mutable, now = self.routing.mutable, clock()
        for record in records:
            message, offset, value, headers, position = record
            blocked: frozenset[str] | None = NOBODY
            if shelf.busy and (blocked := await self._blocked(message)) is None:
                pass  # parked, or a letter already
            else:
                try:
                    event, meta = decode(value, headers or ()) if type(value) is bytes else settled(value)
                except BaseException as error:
                    await self._undecodable(hand, message, undecoded(error))
                else:
                    envelope: Envelope | None = None
                    failures: dict[str, Failure] | None = None
                    given = False
                    for target in by_type[type(event)]:
                        if (blocked and target.name in blocked) or (
                            offset < since and offset < self._resumes.get(target, 0)
                        ):
                            continue
                        if given and (meta is not None or type(event) in mutable):
                            (event, meta), envelope = self._reread(record), None  # another actor may have changed it
                        given = True
                        if target.plain is None:
                            envelope = envelope or enveloped(message, event, meta)
                            if target.with_record and envelope.record is None:
                                self._set_record(envelope, message, headers, position, offset, message.timestamp()[1])
                        hand.since = now = clock()
                        raised: BaseException | None = None
                        try:
                            if target.plain is not None:
                                if (result := target.plain(event)) is not None and hasattr(result, "__await__"):
                                    await result
                            elif envelope is not None:
                                await target.handle(envelope)
                        except BaseException as error:
                            raised = error
                        if raised is not None:  # not above: what comes next would have it as its context
                            make = partial(self._anew, record, target)
                            failed = await self._attempt(hand, message, target, make, raised)
                            if failed is not None:
                                failures = {**(failures or {}), target.name: failed}
                    hand.since = None
                    if failures or blocked:
                        await self._bury(hand, message, failures or {}, blocked or NOBODY)
                    else:
                        counts.handled += 1
            if in_order:
                if shelf.pending and self._closing:
                    await shelf.flush()
                if not shelf.pending:  # a record counts as done when its letter is written
                    self.done = (offset + 1, progress.last)
                if self._closing:
                    return
            if now > hand.slice_end:
                await asyncio.sleep(0)
                hand.slice_end = clock() + SLICE_S
