"""The one place that decides which actors handle a record, and what happens with a record that fails."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from hiveio.errors import Invalid, Problem, Refused
from hiveio.kafka import Message

logger = logging.getLogger("hiveio.consumer")


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
    ) -> None:
        """Give each record to all actors that handle it, one after the other, and call ``handled`` after it.

        If an actor fails, the record becomes a dead letter, which may have to be flushed yet. When the slot is closing,
        the record in the handler is the last.
        """
        envelopes, counts = self.envelopes, self.routing.counts
        for record in records:
            delivery = self.decide(record)
            if isinstance(delivery, Delivery):
                message = record.message  # the watchdog looks for it here, to say which record blocks the loop
                event, meta, failures, given = record.event, record.meta, None, False
                for target in delivery.targets:
                    if given and self.changes(event, meta):
                        event, meta = envelopes.decode_again(record)
                    given = True
                    envelope = envelopes.make(record, event, meta, target)
                    slot.begin()
                    try:
                        await target.handle(envelope)
                        continue
                    except BaseException as raised:
                        error = slot.failure(raised)
                    make = partial(envelopes.again, record, target)
                    failure = await self.attempts.more(slot, target, record.offset, envelope, error, make)
                    if failure is not None:
                        failures = {**(failures or {}), target.name: failure}
                if failures or delivery.blocked:
                    slot.end()
                    await self.dead_letter(slot, message, failures or {}, delivery.blocked)
                else:
                    counts.handled += 1
            else:
                slot.end()
                await self.put_away(slot, record, delivery)
            handled(record)
            if slot.closing:
                break
            if slot.slice_is_over:
                await slot.give_way()
        slot.end()

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
