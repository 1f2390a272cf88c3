"""A partition whose actors take lists: what has come at once, in order, is handled together."""

import asyncio
from functools import partial
from typing import Any

from hiveio.consumer.careful import Failure, as_batch, settled
from hiveio.consumer.lane import New, WorkLane
from hiveio.consumer.reading import undecoded
from hiveio.consumer.routing import Target
from hiveio.consumer.shelf import NOBODY
from hiveio.envelope import Envelope
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
            except BaseException as error:
                await self._lists(lists, count)  # what stands before it is done before it is kept
                lists, count = {target: [] for target in self.routing.targets}, 0
                await self._undecodable(self.hand, record[0], undecoded(error))
                continue
            given = False
            for target in by_type[type(event)]:
                if (blocked and target.name in blocked) or (
                    record[1] < self._settled and record[1] < self._resumes.get(target, 0)
                ):
                    continue
                if given and (meta is not None or type(event) in self.routing.mutable):
                    event, meta = self._reread(record)  # another actor may change it
                given = True
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
                await self._apart(target, taken, failures, again=target.batch)
        self.routing.counts.handled += count - len(failures)
        for _, (message, of) in sorted(failures.items()):
            await self._bury(self.hand, message, of, NOBODY)

    async def _together(self, target: Target, taken: list[Taken]) -> bool:
        """Whether the list was handled."""
        fresh = iter([taken])  # as they were decoded; then anew, for what an attempt has changed

        def make() -> Envelope:
            now = next(fresh, None) or [(record, *self._reread(record)) for record, _, _ in taken]
            records = [self._envelope(*one, target).record for one in now] if target.with_record else None
            return Envelope(message=[event for _, event, _ in now], record=records)

        return await self._attempt(self.hand, taken[0][0][0], target, make, once=True) is None

    async def _apart(self, target: Target, taken: list[Taken], failures: Failures, *, again: bool) -> None:
        """One after the other; behind one that fails, those of its key are not handled any more."""
        broken: dict[Any, Failure] = {}
        for record, event, meta in taken:
            message = record[0]
            key: Any = message.key()
            failed = (broken[key][0], 0) if key in broken else None
            if failed is None:
                fresh = [] if again else [self._envelope(record, event, meta, target)]
                make = partial(self._first, fresh, record, target)
                failed = await self._attempt(self.hand, message, target, make)
            if failed is not None:
                failures.setdefault(record[1], (message, {}))[1][target.name] = failed
                if key is not None:
                    broken.setdefault(key, failed)

    def _first(self, fresh: list[Envelope], record: New, target: Target) -> Envelope:
        """What is there already, and then what is decoded anew."""
        if not fresh:
            return self._anew(record, target)
        return as_batch(fresh.pop()) if target.batch else fresh.pop()
