"""What an instance does as the leader of the scopes that it follows, and how it leaves a scope that nobody uses.

The leader of a scope that nobody uses stays until all of it is applied and published. Then it notes that the scope is
at rest, gives the lease back and leaves. Where the note does not say what the topics say, another instance has work.
It is modelled in Rest.tla.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from hiveio.errors import Unavailable
from hiveio.kafka.end_offsets import EndOffsets
from hiveio.kafka.threads import blocking
from hiveio.transaction.cache import Cache
from hiveio.transaction.deadlines import Deadlines, Fire, Resume
from hiveio.transaction.leader import Duty, Leader
from hiveio.transaction.outlet import Outlet
from hiveio.transaction.publisher import Publisher
from hiveio.transaction.scope import Scope

PAUSED_S = 3.0  # after a duty that failed because a backend was away, for which the scope is not left


class _Of(NamedTuple):
    leader: Leader
    publishers: Sequence[Publisher]
    duties: Sequence[Duty]


class Leadership:
    """The leaders of one instance."""

    def __init__(
        self,
        outlets: Sequence[Outlet],
        cache: Cache,
        holder: str,
        end_offsets: EndOffsets,
        fire: Fire | None,
        resume: Resume | None = None,
    ) -> None:
        """``outlets`` are the topics that are published. ``holder`` names this instance. ``fire`` and
        ``resume`` give deadlines, and inputs that wait, to their processes, if there are any."""
        self._outlets, self._cache, self._holder = outlets, cache, holder
        self._end_offsets, self._fire, self._resume = end_offsets, fire, resume
        self._scopes: dict[Scope, _Of] = {}

    def begin(self, scope: Scope) -> None:
        """Try to lead a scope from now on."""
        publishers = [outlet.publisher(scope, self._cache) for outlet in self._outlets]
        duties: list[Duty] = [*publishers]
        if self._fire is not None and self._resume is not None:
            duties.append(Deadlines(scope, self._cache, self._fire, self._resume))
        leader = Leader(scope, self._cache, self._holder, duties)
        self._scopes[scope] = _Of(leader, publishers, duties)
        leader.start()

    def leader(self, scope: Scope) -> str:
        """The name of the instance that leads a scope, as this one has learned last; "" where it does not know."""
        each = self._scopes.get(scope)
        return each.leader.name if each is not None else ""

    async def leave(self, scope: Scope) -> bool:
        """Lead a scope no more, and note that it is at rest if this instance led it. Returns False, and goes on, where
        there is work left."""
        leader, *_ = self._scopes[scope]
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
        """Whether everything that this instance has judged is applied and published, and no deadline is pending."""
        duties_rest = all(duty.rests for duty in self._scopes[scope].duties)
        return scope.applied and duties_rest and not scope.quarantine.entries

    async def _note_rest(self, scopes: Sequence[Scope]) -> None:
        with suppress(Unavailable):  # without the note, another instance finds that they are at rest
            judged = [(scope.partition, scope.view.next) for scope in scopes]
            topics = [outlet.topic for outlet in self._outlets]
            asked = [(topic, partition) for topic in topics for partition, _ in judged]
            ends = await blocking(self._end_offsets.ends, asked)
            written = [(p, following, [ends[topic, p] for topic in topics]) for p, following in judged]
            await asyncio.gather(*[self._cache.note_rest(*note) for note in written])

    def renew(self, topics: Collection[str]) -> None:
        """End all sessions that send to these topics. The next ones begin with new clients."""
        for each in self._scopes.values():
            for publisher in each.publishers:
                if publisher.topic in topics:
                    publisher.renew()

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
