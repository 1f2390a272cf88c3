"""Several keys of one partition are handled at once, each in order. The offset follows the oldest record in work."""

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

MAX_UNFINISHED = 32  # records for each slot; with more, a slow key would hold up the others


class Item(msgspec.Struct):
    """An unfinished record. ``then`` is the offset and the position to commit once it and all before it are done."""

    record: NewRecord
    key: Any  # bytes, or its offset where it has none
    then: tuple[int, bytes | None]
    next: "Item | None" = None  # of its key
    done: bool = False


class ParallelKeys:
    """Handles as many keys at once as there are ``slots``. Records without a key have no order among each other.

    ``advance`` is called with the next offset, and the position, of what is done. ``guard`` is the frame of each task:
    a fault in the task stops the partition.
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
        self._most = MAX_UNFINISHED * len(slots)
        self._open: deque[Item] = deque()  # in the order of their offsets
        self._last: dict[Any, Item] = {}  # of keys that have records to handle
        self._ready: deque[Item] = deque()  # the first record of each key that no slot handles
        self._idle: list[asyncio.Future[None]] = []  # of slots that wait for a record
        for slot in slots:
            slot.run(self._serve(slot), name)

    @property
    def oldest(self) -> Message | None:
        """The oldest record that is not done."""
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
        """The chunk ends before this offset. Repeats at its end are done together with the last new record."""
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
        """Serve one slot: it handles the first record of a key, which then waits behind the other keys."""
        store = self._dispatcher.store
        item: Item

        def handled(record: NewRecord) -> None:
            if not store.busy:
                self._finish(item)

        with self._guard(slot):
            while not slot.closing:
                if not self._ready:
                    self._idle.append(asyncio.get_running_loop().create_future())
                    await slot.wait(self._idle[-1])
                    continue
                item = self._ready.popleft()
                await self._dispatcher.deliver(slot, (item.record,), handled)
                if not item.done:
                    await store.flush()  # a record counts as done when its dead letter is written
                    self._finish(item)
