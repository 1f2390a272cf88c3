"""Lists of events: the records of a chunk are handled together, in order, by actors that take lists."""

from functools import partial
from typing import Any

from hiveio.consumer.dead_letters.format import NOBODY
from hiveio.consumer.dispatch import Delivery, Dispatcher
from hiveio.consumer.envelopes import NewRecord
from hiveio.consumer.failures import Failure, HandlerSlot
from hiveio.consumer.intake import Intake
from hiveio.consumer.routing import Target
from hiveio.envelope import Envelope
from hiveio.kafka import Message

Decoded = tuple[NewRecord, Any, Any]  # with its event and its meta
Failed = dict[int, tuple[Message, dict[str, Failure]]]  # by offset


class Batches:
    """Handles at most EVENT_STORE_BUFFER records at once. A list that fails is handled again as lists of one event."""

    def __init__(self, slot: HandlerSlot, intake: Intake, dispatcher: Dispatcher) -> None:
        self._slot, self._intake, self._dispatcher = slot, intake, dispatcher

    async def handle(self, chunk: list[Message]) -> None:
        """Handle all records of the chunk. The dead letters of some may have to be flushed yet."""
        dispatcher = self._dispatcher
        lists: dict[Target, list[Decoded]] = {}
        count = 0
        for record in self._intake.new(chunk):
            delivery = dispatcher.decide(record)
            if not isinstance(delivery, Delivery):
                if delivery is not None:
                    await self._lists(lists, count)  # the records before it are handled before it is kept
                    lists, count = {}, 0
                await dispatcher.put_away(self._slot, record, delivery)
                continue
            event, meta, given = record.event, record.meta, False
            for target in delivery.targets:
                if given and dispatcher.changes(event, meta):
                    event, meta = dispatcher.envelopes.decode_again(record)
                given = True
                lists.setdefault(target, []).append((record, event, meta))
            if delivery.blocked:
                await dispatcher.dead_letter(self._slot, record.message, {}, delivery.blocked)
            else:
                count += 1
        await self._lists(lists, count)
        await self._slot.give_way()

    async def _lists(self, lists: dict[Target, list[Decoded]], count: int) -> None:
        """Handle the lists, which hold ``count`` records."""
        failed: Failed = {}
        for target in self._dispatcher.routing.targets:
            taken = lists.get(target)
            if taken and not (target.batch and await self._together(target, taken)):
                await self._apart(target, taken, failed)
        self._dispatcher.routing.counts.handled += count - len(failed)
        for _, (message, failures) in sorted(failed.items()):
            await self._dispatcher.dead_letter(self._slot, message, failures, NOBODY)

    async def _together(self, target: Target, taken: list[Decoded]) -> bool:
        """Handle a list. Returns whether it was handled."""
        attempts, envelopes = self._dispatcher.attempts, self._dispatcher.envelopes

        def make(events: list[Decoded]) -> Envelope:
            records = [envelopes.make(*one, target).record for one in events] if target.with_record else None
            return Envelope(message=[event for _, event, _ in events], record=records)

        def again() -> Envelope:
            return make([(record, *envelopes.decode_again(record)) for record, _, _ in taken])

        envelope = make(taken)
        error = await self._slot.attempt(target, envelope)
        if error is None:
            return True
        offset = taken[0][0].offset
        return await attempts.more(self._slot, target, offset, envelope, error, again, once=True) is None

    async def _apart(self, target: Target, taken: list[Decoded], failed: Failed) -> None:
        """Handle the events one after the other. After one that fails, no others of its key are handled."""
        attempts, envelopes = self._dispatcher.attempts, self._dispatcher.envelopes
        broken: dict[Any, Failure] = {}
        for record, event, meta in taken:
            key: Any = record.message.key()
            failure: Failure | None = (broken[key][0], 0) if key in broken else None
            if failure is None:
                again = partial(envelopes.again, record, target)
                # A list that failed may have changed its events.
                envelope = again() if target.batch else envelopes.make(record, event, meta, target)
                error = await self._slot.attempt(target, envelope)
                if error is not None:
                    failure = await attempts.more(self._slot, target, record.offset, envelope, error, again)
            if failure is not None:
                failed.setdefault(record.offset, (record.message, {}))[1][target.name] = failure
                if key is not None:
                    broken.setdefault(key, failure)
