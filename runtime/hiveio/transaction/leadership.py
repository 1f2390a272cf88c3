"""What an instance does as the leader of the scopes that it follows, and how it leaves a scope that nobody uses.

The leader of a scope that nobody uses stays until all of it is applied and published. Then it notes that the scope is
at rest, gives the lease back and leaves. Where the note does not say what the topics say, another instance has work.
It is modelled in Rest.tla.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from hiveio.errors import Unavailable
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.log_reader import LogReader
from hiveio.kafka.session_clients import SessionClients
from hiveio.kafka.tail import Tail
from hiveio.kafka.threads import blocking
from hiveio.transaction.cache import Cache
from hiveio.transaction.leader import Leader
from hiveio.transaction.publisher import Publisher
from hiveio.transaction.scope import Scope
from hiveio.types import Observer

PAUSED_S = 3.0  # after a duty that failed because a backend was away, for which the scope is not left


class _Of(NamedTuple):
    leader: Leader
    publisher: Publisher


class Leadership:
    """The leaders of one instance."""

    def __init__(
        self,
        topic: str,
        cache: Cache,
        holder: str,
        tail: Tail,
        events: LogReader,
        end_offsets: EndOffsets,
        clients: SessionClients,
        observer: Observer | None,
    ) -> None:
        """``topic`` is the event topic, which ``events`` reads. ``holder`` names this instance. ``tail`` is for
        publishing alone."""
        self._topic, self._cache, self._holder, self._tail = topic, cache, holder, tail
        self._events, self._end_offsets, self._clients, self._observer = events, end_offsets, clients, observer
        self._scopes: dict[Scope, _Of] = {}

    def begin(self, scope: Scope) -> None:
        """Try to lead a scope from now on."""
        publisher = Publisher(self._topic, scope, self._cache, self._tail, self._events, self._clients, self._observer)
        leader = Leader(scope, self._cache, self._holder, [publisher])
        self._scopes[scope] = _Of(leader, publisher)
        leader.start()

    async def leave(self, scope: Scope) -> bool:
        """Lead a scope no more, and note that it is at rest if this instance led it. Returns False, and goes on, where
        there is work left."""
        leader, _ = self._scopes[scope]
        if leader.leads:
            if not self._rests(scope):
                return False
            await self._note_rest([scope])
        elif time.monotonic() - leader.paused_at < PAUSED_S:
            return False
        await leader.stop(0.0)
        del self._scopes[scope]
        return True

    def _rests(self, scope: Scope) -> bool:
        """Whether everything that this instance has judged is applied and published."""
        return scope.applied and self._scopes[scope].publisher.done and not scope.quarantine.entries

    async def _note_rest(self, scopes: Sequence[Scope]) -> None:
        with suppress(Unavailable):  # without the note, another instance finds that they are at rest
            judged = [(scope.partition, scope.view.next) for scope in scopes]
            ends = await blocking(self._end_offsets.ends, [(self._topic, partition) for partition, _ in judged])
            writes = [self._cache.note_rest(p, following, ends[self._topic, p]) for p, following in judged]
            await asyncio.gather(*writes)

    def renew(self) -> None:
        """End all sessions. The next ones begin with new clients."""
        for each in self._scopes.values():
            each.publisher.renew()

    @property
    def paused(self) -> bool:
        """Whether a duty failed a moment ago because a backend was away."""
        now = time.monotonic()
        return any(now - each.leader.paused_at < PAUSED_S for each in self._scopes.values())

    async def stop(self, timeout_s: float) -> None:
        """Publish the accepted events within the bound, and give all leases back."""
        led = [scope for scope, each in self._scopes.items() if each.leader.leads]
        await asyncio.gather(*[each.leader.stop(timeout_s) for each in self._scopes.values()])
        if resting := [scope for scope in led if scope.ready and self._rests(scope)]:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._note_rest(resting)
