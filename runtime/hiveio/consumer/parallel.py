"""Several keys of one partition at work at once, each in order; the offset follows the oldest that is not done."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from hiveio.consumer.dispatch import Dispatcher
from hiveio.consumer.envelopes import NewRecord
from hiveio.consumer.failures import HandlerSlot
from hiveio.consumer.intake import Intake
from hiveio.kafka import Message

AHEAD = 32  # records taken on and not done, for each slot: beyond it a slow key holds up the others


class Item(msgspec.Struct):
    """A record at work. ``then`` is the offset and the position to commit once it and all before it are done."""

    record: NewRecord
    key: Any  # bytes, or its offset where it has none
    then: tuple[int, bytes | None]
    next: "Item | None" = None  # of its key
    done: bool = False


class ParallelKeys:
    """As many keys at once as there are ``slots``. Records without a key have no order among each other.

    ``advance`` is called with the next offset, and the position, of what is done; ``rest`` waits for something to do;
    ``guard`` stands around each task: it ends with the partition, or with a fault.
    """

    def __init__(
        self,
        slots: list[HandlerSlot],
        intake: Intake,
        dispatcher: Dispatcher,
        advance: Callable[[int, bytes | None], None],
        guard: Callable[[HandlerSlot], AbstractContextManager[None]],
        name: str,
    ) -> None:
        self.slots, self._intake, self._dispatcher = slots, intake, dispatcher
        self._advance, self._guard = advance, guard
        self._most = AHEAD * len(slots)
        self._open: deque[Item] = deque()  # in the order of their offsets
        self._last: dict[Any, Item] = {}  # of keys that have records to handle
        self._ready: deque[Item] = deque()  # the first of each key at which nobody works
        self._idle: list[asyncio.Future[None]] = []  # of slots that wait for one
        for slot in slots:
            slot.run(self._serve(slot), name)

    @property
    def oldest(self) -> Message | None:
        """Of those that are not handled."""
        return self._open[0].record.message if self._open else None

    @property
    def full(self) -> bool:
        return len(self._open) >= self._most

    @property
    def idle(self) -> bool:
        return not self._open

    def take(self, record: NewRecord) -> None:
        """Put the record behind the others of its key."""
        key = record.message.key()
        item = Item(record, record.offset if key is None else key, (record.offset + 1, self._intake.last))
        self._open.append(item)
        before, self._last[item.key] = self._last.get(item.key), item
        if before is not None:
            before.next = item
        else:
            self._ready.append(item)
            self._wake()

    def up_to(self, offset: int) -> None:
        """The chunk has ended before this offset: repeats at its end are done with the last record that is none."""
        self._open[-1].then = (offset, self._intake.last)

    def _wake(self) -> None:
        while self._idle:
            if not (waiting := self._idle.pop()).done():  # a slot may have been cancelled
                waiting.set_result(None)
                return

    def _finish(self, item: Item) -> None:
        item.done = True
        if item.next is not None:
            self._ready.append(item.next)
        else:
            del self._last[item.key]
        while self._open and self._open[0].done:
            self._advance(*self._open.popleft().then)

    async def _serve(self, slot: HandlerSlot) -> None:
        """One slot: the first record of a key, then that key stands behind the others."""
        store = self._dispatcher.store
        with self._guard(slot):
            while not slot.closing:
                if not self._ready:
                    self._idle.append(asyncio.get_running_loop().create_future())
                    await slot.wait(self._idle[-1])
                    continue
                item = self._ready.popleft()
                await self._dispatcher.deliver(slot, item.record)
                if store.busy:
                    await store.flush()  # a record counts as done when its letter is written
                self._finish(item)
                if slot.slice_is_over():
                    await slot.give_way()
