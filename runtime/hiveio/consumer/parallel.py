"""Several keys of one partition at work at once, each in order; the offset follows the oldest that is not done."""

import asyncio
import logging
from collections import deque
from typing import Any

from hiveio.consumer.careful import Headers
from hiveio.consumer.lane import WorkLane
from hiveio.consumer.retry import Hand
from hiveio.errors import Corrupt
from hiveio.kafka import Message

AHEAD = 32  # records taken on and not done, for each hand: beyond it a slow key holds up the others
logger = logging.getLogger("hiveio.consumer")


class Item:
    """A record at work. ``note`` is what a commit behind it says was seen."""

    __slots__ = ("done", "headers", "message", "note", "offset", "position")

    def __init__(
        self, message: Message, offset: int, headers: Headers | None, position: bytes | None, note: bytes | None
    ) -> None:
        self.message, self.offset, self.headers, self.position, self.note = message, offset, headers, position, note
        self.done = False


class ParallelLane(WorkLane):
    """``concurrency`` keys at once. Records without a key have no order among each other."""

    def __init__(self, *arguments: Any, concurrency: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most = AHEAD * concurrency
        self._open: deque[Item] = deque()  # in the order of their offsets
        self._queues: dict[bytes | int, deque[Item]] = {}  # of keys that have records to handle
        self._ready: deque[bytes | int] = deque()  # those of them that nobody works at
        self._work_came = asyncio.Semaphore(0)
        self._workers = [Hand() for _ in range(concurrency)]
        for hand in self._workers:
            hand.task = asyncio.create_task(self._serve(hand), name=f"lane {self.topic}/{self.partition}")

    @property
    def hands(self) -> list[Hand]:
        return [self.hand, *self._workers]

    def fail(self, reason: str) -> None:
        super().fail(reason)
        self._closing = True  # nothing behind the failure is begun

    async def _work(self, chunk: list[Message]) -> None:
        counts = self.routing.counts
        for message in chunk:
            while len(self._open) >= self._most and not self._closing:
                if self.shelf.queue:
                    await self._redrive()
                else:
                    self._arrived.clear()
                    await self._wait(self.hand, self._arrived.wait())
            if self._closing:
                return
            headers, position, new = self._look(message)
            offset = message.offset()
            assert offset is not None
            if offset < self.start:
                continue
            item = Item(message, offset, headers, position, self.progress.last)
            self._open.append(item)
            if not new:
                counts.repeated += 1
                self._finish(item)
            elif message.value() is None:
                counts.skipped += 1
                self._finish(item)
            else:
                raw: Any = message.key()
                key = offset if raw is None else raw
                queue = self._queues.get(key)
                if queue is None:
                    self._queues[key] = deque([item])
                    self._ready.append(key)
                    self._work_came.release()
                else:
                    queue.append(item)

    def _finish(self, item: Item) -> None:
        item.done = True
        while self._open and self._open[0].done:
            last = self._open.popleft()
            self.done = (last.offset + 1, last.note)
        self.oldest = self._open[0].message if self._open else None
        self._arrived.set()

    async def _serve(self, hand: Hand) -> None:
        """One hand: the first record of a key, then that key stands behind the others."""
        try:
            while True:
                await self._wait(hand, self._work_came.acquire())
                if self._closing:
                    return
                key = self._ready.popleft()
                queue = self._queues[key]
                item = queue[0]
                await self._carefully(hand, item.message, item.headers, item.position)
                if self.shelf.busy:
                    await self.shelf.flush()  # a record counts as done when its letter is written
                self._finish(queue.popleft())
                if queue:
                    self._ready.append(key)
                    self._work_came.release()
                else:
                    del self._queues[key]
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except Corrupt as error:
            self.fail(str(error))
        except Exception as error:
            logger.exception("%s", self)
            self.fail(f"{type(error).__name__}: {error}")
        finally:
            hand.since = None
