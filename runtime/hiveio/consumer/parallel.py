"""Several keys of one partition at work at once, each in order; the offset follows the oldest that is not done."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from hiveio.consumer.careful import offset_of
from hiveio.consumer.lane import New, WorkLane
from hiveio.consumer.retry import Hand
from hiveio.kafka import Message

AHEAD = 32  # records taken on and not done, for each hand: beyond it a slow key holds up the others


class Item(msgspec.Struct):
    """A record at work. ``then`` is the offset and the note to commit once it and all before it are done."""

    record: New
    key: Any  # bytes, or its offset where it has none
    then: tuple[int, bytes | None]
    next: "Item | None" = None  # of its key
    done: bool = False


class ParallelLane(WorkLane):
    """``concurrency`` keys at once. Records without a key have no order among each other."""

    def __init__(self, *arguments: Any, concurrency: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most = AHEAD * concurrency
        self._open: deque[Item] = deque()  # in the order of their offsets
        self._last: dict[Any, Item] = {}  # of keys that have records to handle
        self._ready: deque[Item] = deque()  # the first of each key at which nobody works
        self._idle: list[asyncio.Future[None]] = []  # of hands that wait for one
        self._workers = [Hand() for _ in range(concurrency)]
        for hand in self._workers:
            hand.task = asyncio.create_task(self._serve(hand), name=f"lane {self.topic}/{self.partition}")

    @property
    def hands(self) -> Sequence[Hand]:
        return [self.hand, *self._workers]

    @property
    def oldest(self) -> Message | None:
        return self._open[0].record[0] if self._open else super().oldest

    def fail(self, reason: str) -> None:
        super().fail(reason)
        self._closing = True  # nothing behind the failure is begun

    async def _work(self, chunk: list[Message]) -> None:
        for record in self._new(chunk):
            while len(self._open) >= self._most and not self._closing:
                await (self._redrive() if self.shelf.queue else self._rest())
            if self._closing:
                return
            key = record[0].key()
            item = Item(record, record[1] if key is None else key, (record[1] + 1, self.progress.last))
            self._open.append(item)
            before, self._last[item.key] = self._last.get(item.key), item
            if before is not None:
                before.next = item
            else:
                self._ready.append(item)
                self._wake()
        if self._open:  # repeats at the end are done with the last one that is none
            self._open[-1].then = (offset_of(chunk[-1]) + 1, self.progress.last)
        else:
            await self._all_done(chunk)

    def _wake(self) -> None:
        while self._idle:
            if not (waiting := self._idle.pop()).done():  # a hand may have been cancelled
                waiting.set_result(None)
                return

    def _finish(self, item: Item) -> None:
        item.done = True
        if item.next is not None:
            self._ready.append(item.next)
        else:
            del self._last[item.key]
        while self._open and self._open[0].done:
            self.done = self._open.popleft().then
        self._arrived.set()

    async def _serve(self, hand: Hand) -> None:
        """One hand: the first record of a key, then that key stands behind the others."""
        with self._until_closed(hand):
            while not self._closing:
                if not self._ready:
                    self._idle.append(asyncio.get_running_loop().create_future())
                    await self._wait(hand, self._idle[-1])
                    continue
                item = self._ready.popleft()
                await self._handle(hand, (item.record,))
                if self.shelf.busy:
                    await self.shelf.flush()  # a record counts as done when its letter is written
                self._finish(item)
