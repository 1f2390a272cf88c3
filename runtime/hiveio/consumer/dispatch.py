"""The one place that decides which actors handle a record, and what happens with a record that fails."""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from hiveio.consumer.dead_letters.format import NOBODY
from hiveio.consumer.dead_letters.store import DeadLetterStore
from hiveio.consumer.envelopes import Envelopes, NewRecord
from hiveio.consumer.failures import Attempts, Failure, HandlerSlot
from hiveio.consumer.reading import unknown_type
from hiveio.consumer.redrive import Redrive
from hiveio.consumer.routing import Routing, Target
from hiveio.errors import Corrupt, Invalid, Problem, Refused
from hiveio.kafka import Message

logger = logging.getLogger("hiveio.consumer")

# A record whose effects may not be committed yet, and who handled it; None if it was put away, or is settled.
Uncommitted = tuple[NewRecord, Sequence[Target] | None]


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """The ``targets`` that handle an event. For the ``blocked`` actors its key is parked."""

    targets: Sequence[Target]
    blocked: frozenset[str]


class Dispatcher:
    """Gives the records of one partition to the actors that handle them.

    ``resumes`` says from which offset on a target handles records, where it is not the same for all; ``where`` is the
    partition, for the log.
    """

    def __init__(
        self,
        where: str,
        routing: Routing,
        resumes: Mapping[Target, int],
        envelopes: Envelopes,
        attempts: Attempts,
        store: DeadLetterStore,
        redrive: Redrive,
    ) -> None:
        self.routing, self.envelopes, self.attempts, self.store = routing, envelopes, attempts, store
        self._where, self._redrive = where, redrive
        self._deliveries = {kind: Delivery(targets, NOBODY) for kind, targets in routing.by_type.items()}
        self._resumes, self._resumed = resumes, max(resumes.values(), default=0)

    def decide(self, record: NewRecord) -> Delivery | Problem | None:
        """Who handles the record, or the Problem for which nobody can.

        None where the record is a dead letter already, or was parked here.
        """
        event, blocked = record.event, NOBODY
        if self.store.busy:
            found = self.store.blocked(record.message.key(), record.offset)
            if found is None:
                return None
            if found >= self.routing.names:
                self._park(record.message, found)
                return None
            blocked = found
        elif record.offset >= self._resumed and (usual := self._deliveries.get(type(event))) is not None:
            return usual
        if isinstance(event, Problem):
            return event
        targets = self.routing.takers(event, blocked)
        if record.offset < self._resumed:  # some actors have it in their stores already
            targets = [one for one in targets if record.offset >= self._resumes.get(one, 0)]
        return Delivery(targets, blocked)

    async def deliver(
        self, slot: HandlerSlot, records: Iterable[NewRecord], handled: Callable[[NewRecord], None]
    ) -> bool:
        """Give each record to all actors that handle it, one after the other, and call ``handled`` after it.

        Where an actor leaves a transaction open, records are handled when that is committed, and ``handled`` is called
        for the last of them. If an actor fails, the record becomes a dead letter, which may have to be flushed yet.
        When the slot is closing, the record in the handler is the last. Returns whether the commit after the last
        record has held up other tasks.
        """
        envelopes, counts, group = self.envelopes, self.routing.counts, slot.group
        uncommitted: list[Uncommitted] = []
        try:
            for record in records:
                delivery = self.decide(record)
                whole: Sequence[Target] | None = None  # who has handled it, without a failure
                if isinstance(delivery, Delivery):
                    targets, done, error = delivery.targets, 0, None
                    message = record.message  # the watchdog looks for it here, to say which record blocks the loop
                    event, meta = record.event, record.meta
                    for target in targets:
                        if done and self.changes(event, meta):
                            event, meta = envelopes.decode_again(record)
                        envelope = envelopes.make(record, event, meta, target)
                        slot.begin()
                        try:
                            await target.handle(envelope)
                        except BaseException as raised:
                            error = slot.failure(raised)
                            break
                        done += 1
                    if error is None and not delivery.blocked:
                        whole = targets
                    else:
                        lost = await self._commit(slot, uncommitted)
                        uncommitted = []
                        left = [one for at, one in enumerate(targets) if at >= done or one.contract.actor in lost]
                        failed = (targets[done], error) if error is not None else None
                        failures, parked = await self._one_by_one(slot, record, left, failed)
                        slot.end()
                        if failures or parked or delivery.blocked:
                            await self.dead_letter(slot, message, failures, delivery.blocked | parked)
                        else:
                            counts.handled += 1
                else:
                    if uncommitted and (delivery is not None or self.store.full):  # it takes time to put it away
                        await self._commit(slot, uncommitted)
                        uncommitted = []
                    slot.end()
                    await self.put_away(slot, record, delivery)
                if group.open or uncommitted:
                    if not uncommitted:
                        group.begun_at = time.monotonic()
                    uncommitted.append((record, whole))
                    if slot.closing or (slot.slice_is_over and not group.waits()):
                        await self._commit(slot, uncommitted)
                        uncommitted = []
                elif whole is not None:
                    counts.handled += 1
                if not uncommitted:
                    handled(record)
                if slot.closing:
                    break
                if slot.slice_is_over:
                    await slot.give_way()
        except Corrupt:  # events are missing before this record; those before the gap are handled
            await self._end(slot, uncommitted, handled)
            raise
        blocks = group.blocks
        await self._end(slot, uncommitted, handled)
        return blocks

    async def _end(
        self, slot: HandlerSlot, uncommitted: Sequence[Uncommitted], handled: Callable[[NewRecord], None]
    ) -> None:
        if uncommitted:
            await self._commit(slot, uncommitted)
            handled(uncommitted[-1][0])
        slot.end()

    async def _commit(self, slot: HandlerSlot, uncommitted: Sequence[Uncommitted]) -> Container[Any]:
        """Commit what is open. Returns the actors that have handled the records once more, because effects were lost.

        They handle them one by one and commit each, so that a record that cannot be committed fails alone.
        """
        lost = await slot.commit()
        handled = [(record, targets) for record, targets in uncommitted if targets is not None]
        if not lost:
            self.routing.counts.handled += len(handled)
            return lost
        await self.store.flush()  # then the store says exactly for whom a key is parked
        for record, targets in handled:
            if slot.closing:
                raise asyncio.CancelledError  # the next owner handles it
            losers = [target for target in targets if target.contract.actor in lost]
            failures, parked = await self._one_by_one(slot, record, losers)
            slot.end()
            if failures or parked:
                await self.dead_letter(slot, record.message, failures, parked)
                await self.store.flush()
            else:
                self.routing.counts.handled += 1
        return lost

    async def _one_by_one(
        self,
        slot: HandlerSlot,
        record: NewRecord,
        targets: Sequence[Target],
        failed: tuple[Target, Exception] | None = None,
    ) -> tuple[dict[str, Failure], frozenset[str]]:
        """Let actors handle a record, each with a commit of its own and, where it fails, with more attempts.

        ``failed`` is the one that has failed once already. Returns the actors that failed, and those for which the key
        was parked in the meantime.
        """
        key, failures, again = record.message.key(), dict[str, Failure](), self.envelopes.again
        blocked = self.store.parked(key) if key is not None and self.store.busy else NOBODY
        parked = frozenset(target.name for target in targets if target.name in blocked)
        for target in targets:
            if target.name in parked:
                continue
            envelope = self.envelopes.make(record, record.event, record.meta, target)
            make = partial(again, record, target)
            error = failed[1] if failed is not None and failed[0] is target else None
            if error is None:
                try:
                    envelope = make()
                except BaseException as raised:  # an actor's type may raise any error
                    error = slot.failure(raised)
                else:
                    error = await slot.attempt(target, envelope)
            if error is not None:
                failure = await self.attempts.more(slot, target, record.offset, envelope, error, make)
                if failure is not None:
                    failures[target.name] = failure
        return failures, parked

    def changes(self, event: Any, meta: Any) -> bool:
        """Whether an actor can change the event or its meta, so that the next actor needs its own copy."""
        return meta is not None or type(event) in self.routing.mutable

    async def put_away(self, slot: HandlerSlot, record: NewRecord, problem: Problem | None) -> None:
        """Keep or skip a record that no actor handles."""
        if problem is not None:
            await self._undecodable(slot, record.message, problem)
        elif self.store.full:
            await self.store.flush()

    async def dead_letter(
        self, slot: HandlerSlot, message: Message, failures: dict[str, Failure], blocked: frozenset[str]
    ) -> None:
        """Keep a record on which some actors have failed, or whose key is parked for some."""
        actors = blocked | failures.keys()
        error, attempts = next(iter(failures.values()), (None, 0))
        if error is None or attempts == 0:  # it waits behind another record of its key
            self._park(message, actors)
            if self.store.full:
                await self.store.flush()
            return
        reason = "refused" if isinstance(error, Refused) else "failed"
        await self._keep(slot, message, reason, error, attempts, actors)

    def _park(self, message: Message, actors: frozenset[str]) -> None:
        self.routing.counts.parked += 1
        self.store.put(message, "parked", "", 0, actors)

    async def _undecodable(self, slot: HandlerSlot, message: Message, error: Problem) -> None:
        kind = unknown_type(error)
        keepers = self.routing.keepers(kind)
        if not keepers:
            self.routing.counts.skipped += 1
        elif kind is None:
            await self._keep(slot, message, "undecodable", error, 1, keepers)
        else:
            self.routing.log_unknown(f"{self._where}/{message.offset()}", kind)
            await self._keep(slot, message, "unknown", Invalid(f"no actor takes the type {kind!r}"), 1, keepers)

    async def _keep(
        self, slot: HandlerSlot, message: Message, reason: str, error: Exception, attempts: int, actors: frozenset[str]
    ) -> None:
        """Write the record to the dead-letter topic, and park its key."""
        where, text = f"{self._where}/{message.offset()}", f"{type(error).__name__}: {error}"
        if reason != "unknown":  # there may be many of these: they are logged once for each type
            logger.error("%s: %s after %d attempts, so it is a dead letter: %s", where, reason, attempts, text)
        await self._wait_for_room(slot, f"{where}: {reason}: {text}")
        self.store.put(message, reason, text, attempts, actors)
        await self.store.flush()
        self.routing.counts.dead += 1

    async def _wait_for_room(self, slot: HandlerSlot, what: str) -> None:
        """Stop while as many keys are parked as CONSUMER_PARKED allows."""
        while not self.store.room:
            if slot.blocked_reason is None:
                reason = f"{what}; CONSUMER_PARKED=0 allows no dead letters, so this partition stops"
                if self.store.limit:
                    reason = (
                        f"{what}; as many keys as CONSUMER_PARKED={self.store.limit} allows are parked, so this "
                        "partition stops: `hiveio dead list` shows them, `hiveio dead retry` and `hiveio dead drop` "
                        "free them"
                    )
                slot.block(reason)
                logger.error("%s", reason)
            if self.store.queue and slot is self._redrive.slot:
                await self._redrive.run()
            else:
                await slot.wait(self.store.changed())
        slot.block(None)
