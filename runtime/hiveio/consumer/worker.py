"""The worker of one partition, from its assignment to its revoke."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from hiveio.consumer.batch import Batches
from hiveio.consumer.dead_letters.store import DeadLetterStore
from hiveio.consumer.dispatch import Dispatcher
from hiveio.consumer.envelopes import Envelopes, NewRecord
from hiveio.consumer.failures import Attempts, HandlerSlot, RetryPolicy
from hiveio.consumer.intake import Intake
from hiveio.consumer.parallel import ParallelKeys
from hiveio.consumer.progress import EventsMissing, Progress, RecentKeys
from hiveio.consumer.redrive import Redrive
from hiveio.consumer.routing import Routing, Target
from hiveio.errors import Corrupt, Unavailable, is_cancelled
from hiveio.kafka import Lane, Message, Start

ENDED_S = 1.0  # the time that a cancelled handler has to end
logger = logging.getLogger("hiveio.consumer")


class Opening(NamedTuple):
    """Where a worker begins. Records from ``begin`` on only show what was seen; those from ``start`` on are handled.

    ``seen`` is the last position that was seen before ``begin``, to be committed until there is a later one.
    ``resumes`` says from which offset on a target handles records, where it is not the same for all.
    """

    assigned: Start
    begin: int
    start: int
    progress: Progress
    seen: str | bytes | None
    resumes: Mapping[Target, int]


class PartitionWorker(Lane):
    """Handles the records that the poller hands over: one after the other, as lists where an actor takes those, or with
    ``concurrency`` keys at once.

    It has a dispatcher, which decides who handles a record, the store of the partition's dead letters, and slots, whose
    tasks run the handlers. ``store`` makes that store, and is given a function to call when something was read from it;
    ``finished`` is called when records are done; ``claim`` commits that this instance owns the partition; ``look_back``
    gives it another worker, which begins further back.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        routing: Routing,
        policy: RetryPolicy,
        keys: RecentKeys,
        concurrency: int,
        store: Callable[[Callable[[], None]], DeadLetterStore],
        finished: Callable[[], None],
        claim: Callable[[Lane], Awaitable[None]],
        look_back: Callable[["PartitionWorker"], None],
    ) -> None:
        start = opening.assigned
        super().__init__(start, opening.begin, (opening.start, opening.seen))
        self._progress = opening.progress
        self._start, self._routing, self._finished, self._claim = opening.start, routing, finished, claim
        self._look_back, self._low = look_back, start.low
        self._arrived = asyncio.Event()  # records, dead letters, or the end
        self._chunks: deque[list[Message]] = deque()
        self._chunk: list[Message] = []  # that is being handled
        self._handled_to = self.done  # including records whose dead letters are not written yet
        self._slot = HandlerSlot(policy.timeout_s)
        self.store = store(self._arrived.set)
        where, envelopes = f"{self.topic}/{self.partition}", Envelopes(start, routing.codec)
        self._intake = Intake(opening.start, opening.progress, keys, routing)
        self._redrive = Redrive(self._slot, self.store, routing, envelopes)
        attempts = Attempts(policy, routing.counts, where)
        self._dispatcher = Dispatcher(where, routing, opening.resumes, envelopes, attempts, self.store, self._redrive)
        name = f"partition {where}"
        self._batches: Batches | None = None
        self._parallel: ParallelKeys | None = None
        if concurrency > 1:
            slots = [HandlerSlot(policy.timeout_s) for _ in range(concurrency)]
            self._parallel = ParallelKeys(
                slots, self._intake, self._dispatcher, self._advance, self._until_closed, name
            )
        elif any(target.batch for target in routing.targets):
            self._batches = Batches(self._slot, self._intake, self._dispatcher)
        self.slots = [self._slot, *(self._parallel.slots if self._parallel else ())]
        self._slot.run(self._run(), name)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.done[0]}"

    @property
    def blocked_reason(self) -> str | None:
        """Why the partition, or a part of it, does not go on; None while it does."""
        return next((slot.blocked_reason for slot in self.slots if slot.blocked_reason), None) or self.store.waits

    @property
    def parked(self) -> int:
        """Keys that are parked."""
        return len(self.store.fold.entries)

    @property
    def lag(self) -> tuple[int, float]:
        """Records that are not handled, and the age of the oldest of them in seconds."""
        oldest = (self._parallel.oldest if self._parallel else None) or (self._chunk[0] if self._chunk else None)
        records = max(0, self.high - self.at[0])
        if not records or oldest is None:
            return records, 0.0
        return records, max(0.0, time.time() - oldest.timestamp()[1] / 1000)

    def take(self, chunk: list[Message]) -> None:
        if self._slot.closing or self.failure is not None:
            self.finished += len(chunk)
            return
        self._chunks.append(chunk)
        self._arrived.set()

    async def close(self, timeout_s: float) -> None:
        """Wait for the handlers that run, and cancel them after the time. Nothing is handled after this."""
        self._arrived.set()
        for slot in self.slots:
            slot.stop()
            slot.cancel(idle_only=timeout_s > 0)
        tasks = [slot.task for slot in self.slots if slot.task is not None]
        _, running = await asyncio.wait(tasks, timeout=max(timeout_s, 0.0))
        if running:
            if timeout_s > 0:
                logger.warning("%s: the handler did not finish within %g s and is cancelled", self, timeout_s)
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=ENDED_S)
        self.store.close()

    def fail(self, reason: str) -> None:
        """Stop this partition: its offset stays, and log and readiness say why. Other partitions go on."""
        if self.failure is None:
            self.failure = f"{self}: {reason}"
            self._routing.counts.failed += 1
            logger.error("%s: this partition stops, and nothing of it is lost: %s", self, reason)
        for slot in self.slots:
            slot.stop()  # nothing after the failure is handled
        self._arrived.set()
        self._chunks.clear()
        self.finished = self.handed
        self._finished()

    # -- the task

    @contextmanager
    def _until_closed(self, slot: HandlerSlot) -> Iterator[None]:
        """The frame of a task of this partition: a fault in the task stops the partition."""
        try:
            yield
        except Corrupt as error:
            self.fail(str(error))
        except BaseException as error:
            if slot.closing and isinstance(error, asyncio.CancelledError):
                return
            logger.exception("%s", self)
            self.fail(f"{type(error).__name__}: {error}")
            if is_cancelled(error):
                raise
        finally:
            slot.end()

    async def _run(self) -> None:
        with self._until_closed(self._slot):
            await self._load()
            try:
                await self._work()
            except EventsMissing as error:
                if self.begin <= self._low:
                    raise
                await self._begin_further_back(error)

    async def _work(self) -> None:
        slot = self._slot
        while not slot.closing:
            if self.store.queue:
                await self._redrive.run()
            if self._chunks:
                self._chunk = self._chunks.popleft()
                await self._handle(self._chunk)
                if self.failure is None:
                    self.finished += len(self._chunk)
                    self._finished()
                self._chunk = []
            elif not self.store.queue and not slot.closing:
                await self._rest()

    @property
    def looked_back(self) -> int:
        """The records before its first one that it reads to know what was seen."""
        return self._start - self.begin

    async def _begin_further_back(self, error: EventsMissing) -> None:
        """What seems to be missing may have been published, and handled, before everything that was read here."""
        logger.warning("%s: %s, unless they come before offset %d: it looks further back", self, error, self.begin)
        with suppress(Unavailable):  # then records that are done may be handled again
            await self._slot.wait(self._claim(self))
        self._look_back(self)

    async def _load(self) -> None:
        """Load the parked keys and claim the partition before anything is handled.

        From then on no dead letter of another instance counts.
        """
        slot = self._slot
        while True:
            try:
                await slot.wait(self.store.load())
                await slot.wait(self._claim(self))
                slot.block(None)
                return
            except Unavailable as error:
                before = slot.blocked_reason
                slot.block(f"{self}: nothing is handled yet: {error}")
                if before != slot.blocked_reason:  # once for each reason; readiness repeats it
                    logger.warning("%s", slot.blocked_reason)
            await slot.wait(asyncio.sleep(random.uniform(0.5, 1.0)))

    async def _rest(self) -> None:
        """Wait for records, for dead letters to try again, or for something to be done."""
        self._arrived.clear()
        await self._slot.wait(self._arrived.wait())

    async def _handle(self, chunk: list[Message]) -> None:
        end = chunk[-1].offset()
        assert end is not None
        if self._parallel is not None:
            await self._hand_out(self._parallel, chunk, end + 1)
            return
        if self._batches is not None:
            await self._batches.handle(chunk)
        else:
            await self._one_by_one(chunk)
            if self._slot.closing:
                return
        await self._all_done(end + 1)

    async def _all_done(self, end: int) -> None:
        """Write the dead letters; then everything before this offset is done."""
        if self.store.pending:
            await self.store.flush()
        if end > self._start:
            self._advance(end, self._progress.last)

    async def _one_by_one(self, chunk: list[Message]) -> None:
        """Each record counts as done by itself. When the partition closes, the record in the handler is the last."""
        held_up = await self._dispatcher.deliver(self._slot, self._intake.new(chunk), self._handled)
        if held_up:
            await self._slot.give_way()  # and the next group has a whole slice
        if self._slot.closing and self.store.pending:
            await self.store.flush()
            self.done = self._handled_to

    def _handled(self, record: NewRecord) -> None:
        self._handled_to = (record.offset + 1, self._progress.last)
        if not self.store.pending:  # a record counts as done when its dead letter is written
            self.done = self._handled_to

    async def _hand_out(self, parallel: ParallelKeys, chunk: list[Message], end: int) -> None:
        for record in self._intake.new(chunk):
            while parallel.full and not self._slot.closing:
                await (self._redrive.run() if self.store.queue else self._rest())
            if self._slot.closing:
                return
            parallel.take(record)
        if parallel.idle:
            await self._all_done(end)
        else:
            parallel.up_to(end)

    def _advance(self, offset: int, position: bytes | None) -> None:
        self.done = (offset, position)
        self._arrived.set()
