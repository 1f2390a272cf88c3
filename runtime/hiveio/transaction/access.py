"""How the pipelines of an instance reach aggregates: by their locks and their entries in the cache."""

import asyncio
from collections.abc import Callable, Sequence

from hiveio.transaction.cache import Cache
from hiveio.transaction.command import InFlight
from hiveio.transaction.entry import CacheReply
from hiveio.transaction.lock import Locked, Redlock
from hiveio.transaction.scope import Scope


class Access:
    """The lock and the cache, for the aggregates of all scopes. ``turn_s`` is how long a holder keeps a lock while
    other instances wait for it."""

    def __init__(self, cache: Cache, lock: Redlock, timeout_s: float) -> None:
        """``timeout_s`` is the time of a command from the request to its deadline."""
        self._cache, self._lock, self._timeout_s = cache, lock, timeout_s
        self.turn_s = lock.turn_s

    def acquire(
        self, scope: Scope, names: Sequence[str], done: Callable[[Locked], None], queue: Sequence[InFlight] = ()
    ) -> None:
        """Lock these aggregates, all or none, and call ``done``. The first command of the queue says for how long they
        have been waited for."""
        waited_s = self._timeout_s - (queue[0].deadline - asyncio.get_running_loop().time()) if queue else 0.0
        self._lock.acquire(self._cache.scope(scope.partition), names, done, waited_s)

    def release(self, scope: Scope, names: Sequence[str], tip: str = "") -> None:
        """See Redlock."""
        self._lock.release(self._cache.scope(scope.partition), names, tip)

    def read(self, scope: Scope, name: str) -> "asyncio.Future[CacheReply]":
        return self._cache.read(scope.partition, name)
