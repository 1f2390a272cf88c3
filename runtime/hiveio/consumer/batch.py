"""A partition whose actors take lists: what has come at once, in order, is handled together."""

import asyncio
from typing import Any

from hiveio.consumer.careful import Failure, as_batch, enveloped, settled
from hiveio.consumer.lane import New, WorkLane
from hiveio.consumer.routing import Target
from hiveio.consumer.shelf import NOBODY
from hiveio.envelope import Envelope
from hiveio.errors import Problem
from hiveio.kafka import Message

Taken = tuple[New, Any, Any]  # record, event, meta
Failures = dict[int, tuple[Message, dict[str, Failure]]]  # by offset


class BatchLane(WorkLane):
    """At most EVENT_STORE_BUFFER records at once. A list that fails is handled again as lists of one event."""

    async def _work(self, chunk: list[Message]) -> None:
        shelf, decode, by_type = self.shelf, self.routing.codec.decode, self.routing.by_type
        lists: dict[Target, list[Taken]] = {target: [] for target in self.routing.targets}
        count = 0
        for record in self._new(chunk):
            blocked: frozenset[str] | None = NOBODY
            if shelf.busy and (blocked := await self._blocked(record[0])) is None:
                continue
            try:
                event, meta = decode(value, record[3] or ()) if type(value := record[2]) is bytes else settled(value)
            except Problem as error:
                await self._lists(lists, count)  # what stands before it is done before it is kept
                lists, count = {target: [] for target in self.routing.targets}, 0
                await self._undecodable(self.hand, record[0], error)
                continue
            for target in by_type[type(event)]:
                if (blocked and target.name in blocked) or (
                    record[1] < self._settled and record[1] < self._resumes.get(target, 0)
                ):
                    continue
                lists[target].append((record, event, meta))
            if blocked:
                await self._bury(self.hand, record[0], {}, blocked)
            else:
                count += 1
        await self._lists(lists, count)
        await self._all_done(chunk)
        await asyncio.sleep(0)

    async def _lists(self, lists: dict[Target, list[Taken]], count: int) -> None:
        """What is in hand of ``count`` records."""
        failures: Failures = {}
        for target, taken in lists.items():
            if taken and not (target.batch and await self._together(target, taken)):
                await self._apart(target, taken, failures)
        self.routing.counts.handled += count - len(failures)
        for _, (message, of) in sorted(failures.items()):
            await self._bury(self.hand, message, of, NOBODY)

    async def _together(self, target: Target, taken: list[Taken]) -> bool:
        """Whether the list was handled."""
        records = [self._envelope(*one).record for one in taken] if target.with_record else None
        envelope = Envelope(message=[event for _, event, _ in taken], record=records)
        return await self._attempt(self.hand, taken[0][0][0], target, envelope, once=True) is None

    async def _apart(self, target: Target, taken: list[Taken], failures: Failures) -> None:
        """One after the other; behind one that fails, those of its key are not handled any more."""
        broken: dict[Any, Failure] = {}
        for record, event, meta in taken:
            message = record[0]
            key: Any = message.key()
            failed = (broken[key][0], 0) if key in broken else None
            if failed is None:
                envelope = self._envelope(record, event, meta)
                one = as_batch(envelope) if target.batch else envelope
                failed = await self._attempt(self.hand, message, target, one)
            if failed is not None:
                failures.setdefault(record[1], (message, {}))[1][target.name] = failed
                if key is not None:
                    broken.setdefault(key, failed)

    def _envelope(self, record: New, event: Any, meta: Any) -> Envelope:
        message, offset, _, headers, position = record
        envelope = enveloped(message, event, meta)
        self._set_record(envelope, message, headers, position, offset, message.timestamp()[1])
        return envelope
