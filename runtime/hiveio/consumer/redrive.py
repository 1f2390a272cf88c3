"""The redrive of dead letters: they are tried again because somebody has asked for it."""

import asyncio
import logging

from hiveio.consumer.dead_letters.format import ACTORS, OMITTED, headers_of, mark, origin_of, time_of
from hiveio.consumer.dead_letters.store import GROUP, DeadLetterStore
from hiveio.consumer.envelopes import Envelopes, as_batch
from hiveio.consumer.failures import HandlerSlot
from hiveio.consumer.reading import unknown_type
from hiveio.consumer.routing import Routing
from hiveio.errors import Problem, Unavailable
from hiveio.fault import about
from hiveio.kafka import Message

logger = logging.getLogger("hiveio.consumer")


class Redrive:
    """Tries the dead letters of one partition again, in ``slot``. Meanwhile nothing else of the partition begins."""

    def __init__(self, slot: HandlerSlot, store: DeadLetterStore, routing: Routing, envelopes: Envelopes) -> None:
        self.slot, self._store, self._routing, self._envelopes = slot, store, routing, envelopes

    async def run(self) -> None:
        """Try some dead letters again, in order. One that fails again stays, and its key stays parked."""
        done: list[Message] = []
        while len(done) < GROUP and not self.slot.closing and (dead_letter := self._store.next()) is not None:
            reason = await self._try(dead_letter)
            if reason is None:
                done.append(dead_letter)
                continue
            await self._close(done)
            done = []
            await self._store.write_marks(mark("failed", dead_letter, reason))
        await self._close(done)

    async def _close(self, done: list[Message]) -> None:
        if done:
            await self._store.write_marks(*(mark("done", dead_letter) for dead_letter in done))
            self._routing.counts.redriven += len(done)

    async def _try(self, dead_letter: Message) -> str | None:
        """Try one dead letter once. Returns None, or why it failed."""
        routing, found = self._routing, headers_of(dead_letter)
        actors = frozenset(found.get(ACTORS, b"").decode("utf-8", "replace").split(","))
        if unknown := actors - routing.names:
            return f"there is no actor {', '.join(sorted(unknown))} here"
        origin = origin_of(found)
        assert origin is not None
        original = dead_letter
        if OMITTED in found:
            try:
                original = await self._store.original(origin[2], time_of(found))
            except Unavailable as error:
                return f"{type(error).__name__}: {error}"
        try:
            envelope = self._envelopes.of_dead_letter(dead_letter, original)
        except Problem as error:
            keepers = routing.keepers(unknown_type(error))
            return f"{type(error).__name__}: {error}" if keepers & actors else None
        for target in routing.takers(envelope.message, routing.names - actors):
            envelope = self._envelopes.of_dead_letter(dead_letter, original)  # another actor may have changed the event
            failure = await self.slot.attempt(target, as_batch(envelope) if target.batch else envelope)
            if failure is not None:
                if self.slot.closing and isinstance(failure, Unavailable):
                    raise asyncio.CancelledError from None  # the next owner tries it
                text = f"{type(failure).__name__}: {failure}"
                where = "/".join(map(str, origin))
                logger.warning("%s: failed again: %s", where, text, extra=about(target.contract, envelope))
                return text
        return None
