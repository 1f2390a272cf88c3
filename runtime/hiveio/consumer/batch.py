"""A partition whose actors take lists: what has come at once, in order, is handled together."""

import asyncio
from time import monotonic
from typing import Any

from hiveio.consumer.careful import Failure, as_batch, id_of
from hiveio.consumer.lane import WorkLane
from hiveio.consumer.routing import Target
from hiveio.consumer.shelf import NOBODY
from hiveio.envelope import Envelope
from hiveio.errors import Problem, Stop, Unavailable
from hiveio.kafka import Message

Taken = tuple[Message, Envelope]


class BatchLane(WorkLane):
    """At most EVENT_STORE_BUFFER records at once. A list that fails is handled again as lists of one event."""

    async def _work(self, chunk: list[Message]) -> None:
        routing, shelf, hand = self.routing, self.shelf, self.hand
        decode, by_type, counts = routing.codec.decode, routing.by_type, routing.counts
        lists: dict[Target, list[Taken]] = {target: [] for target in routing.targets}
        hand.since = monotonic()
        for message in chunk:
            headers, position, new = self._look(message)
            offset = message.offset()
            assert offset is not None
            if offset < self.start:
                continue
            blocked: frozenset[str] | None = NOBODY
            if not new:
                counts.repeated += 1
            elif (value := message.value()) is None:
                counts.skipped += 1
            elif shelf.busy and (blocked := await self._blocked(message)) is None:
                pass
            else:
                try:
                    event, meta = decode(value)
                except Problem as error:
                    await self._handle(lists)  # what stands before it is done before it is kept
                    await self._undecodable(hand, message, value, error)
                    lists = {target: [] for target in routing.targets}
                    continue
                key = message.key()
                envelope = Envelope(message=event, id=id_of(key) if key else "", meta=meta)
                for target in by_type[type(event)]:
                    if (offset < self._settled and offset < self._resumes.get(target, 0)) or target.name in (
                        blocked or NOBODY
                    ):
                        continue
                    if target.with_record and envelope.record is None:
                        self._add_record(envelope, message, headers, position)
                    lists[target].append((message, envelope))
                if blocked:
                    await self._bury(hand, message, {}, blocked)
        await self._handle(lists)
        await shelf.flush()
        last = chunk[-1].offset()
        assert last is not None
        if last >= self.start:
            self.done = (last + 1, self.progress.last)
        hand.since = None
        await asyncio.sleep(0)

    async def _handle(self, lists: dict[Target, list[Taken]]) -> None:
        failures: dict[int, tuple[Message, dict[str, Failure]]] = {}
        for target, taken in lists.items():
            if not taken or (target.batch and await self._together(target, taken)):
                continue
            for message, failed in await self._apart(target, taken):
                failures.setdefault(message.offset() or 0, (message, {}))[1][target.name] = failed
        self.routing.counts.handled += sum(map(len, lists.values()))
        for _, (message, of) in sorted(failures.items()):
            await self._bury(self.hand, message, of, NOBODY)

    async def _together(self, target: Target, taken: list[Taken]) -> bool:
        """Whether the list was handled."""
        records: Any = [envelope.record for _, envelope in taken] if target.with_record else None
        envelope = Envelope(message=[envelope.message for _, envelope in taken], record=records)
        self.hand.since = monotonic()
        try:
            await target.handle(envelope)
            return True
        except BaseException as error:
            failure = self.hand.told(error, self.retry.timeout_s)
        if isinstance(failure, Stop):
            raise failure
        if self._closing:
            raise asyncio.CancelledError
        if isinstance(failure, Unavailable):
            return await self._again(self.hand, taken[0][0], target, envelope, failure) is None
        return False

    async def _apart(self, target: Target, taken: list[Taken]) -> list[tuple[Message, Failure]]:
        """One after the other; behind one that fails, those of its key are not handled any more."""
        failures: list[tuple[Message, Failure]] = []
        broken: dict[Any, Failure] = {}
        for message, envelope in taken:
            key: Any = message.key()
            if key is not None and key in broken:
                failures.append((message, (broken[key][0], 0)))
                continue
            one = as_batch(envelope) if target.batch else envelope
            self.hand.since = monotonic()
            try:
                await target.handle(one)
            except BaseException as error:
                failed = await self._again(self.hand, message, target, one, error)
                if failed is not None:
                    failures.append((message, failed))
                    if key is not None:
                        broken[key] = failed
            self.hand.since = None
        return failures
