"""One try to open an aggregate: its locks and its entry are requested in one round trip."""

import asyncio
from collections.abc import Callable, Sequence

from hiveio.errors import Conflict, Problem, Unavailable, backend_away
from hiveio.transaction.cache import CacheReply, Entry
from hiveio.transaction.lock import LOCKED, UNLOCKED, Locked
from hiveio.transaction.scope import Scope

Opened = Callable[["Opening", Locked, "CacheReply | BaseException"], None]


class Opening:
    """``done`` is called when both answers have come. ``names`` are the aggregates to lock, all of them or none.
    ``asked`` is the offset of the watermark when the entry was requested. ``unlocked`` says that it is tried without
    the locks."""

    __slots__ = ("_done", "_locked", "_reply", "asked", "names", "shared", "unlocked")

    def __init__(self, names: Sequence[str], asked: int, done: Opened, *, unlocked: bool) -> None:
        self.names, self.asked, self._done, self.unlocked = names, asked, done, unlocked
        self._locked: Locked | None = UNLOCKED if unlocked else None
        self._reply: CacheReply | BaseException | None = None
        self.shared = False

    def share(self) -> None:
        """Another pipeline of this instance has locked the aggregate meanwhile."""
        self.shared = True

    def on_locked(self, locked: Locked) -> None:
        self._locked = locked
        if self._reply is not None:
            self._done(self, locked, self._reply)

    def on_read(self, future: "asyncio.Future[CacheReply]") -> None:
        self._reply = future.exception() or future.result()
        if self._locked is not None:
            self._done(self, self._locked, self._reply)

    def entry(
        self, scope: Scope, name: str, locked: Locked, reply: CacheReply | BaseException, *, full: bool
    ) -> Entry | Problem:
        """The entry of the aggregate by these answers, or why it is not opened: it is not if too much is in work."""
        if isinstance(reply, BaseException):
            return reply if isinstance(reply, Unavailable) else backend_away(str(reply))
        if not locked.until:
            return backend_away(locked.reason) if locked.away else Conflict(LOCKED)
        if full:
            return Unavailable("Too much is in work. Try again later.")
        if scope.mirror.observe_watermark(reply.watermark, self.asked) and scope.ready:
            return scope.reconcile(name, reply) or scope.unavailable()
        return scope.unavailable()
