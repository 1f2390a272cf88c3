"""One try to open an aggregate: a set of locks and its entry, asked for in one round trip."""

import asyncio
from collections.abc import Callable, Sequence

from hiveio.transaction.cache import CacheReply
from hiveio.transaction.lock import Locked

Opened = Callable[["Opening", Locked, "CacheReply | BaseException"], None]


class Opening:
    """``done`` is called when both answers are there. ``names`` are locked, all of them or none; the cache stood at
    ``asked`` when it was asked."""

    __slots__ = ("_done", "_locked", "_reply", "asked", "names", "shared")

    def __init__(self, names: Sequence[str], asked: int, done: Opened) -> None:
        self.names, self.asked, self._done = names, asked, done
        self._locked: Locked | None = None
        self._reply: CacheReply | BaseException | None = None
        self.shared = False

    def share(self) -> None:
        """Another pipeline of this instance has got the lock meanwhile."""
        self.shared = True

    def on_locked(self, locked: Locked) -> None:
        self._locked = locked
        if self._reply is not None:
            self._done(self, locked, self._reply)

    def on_read(self, future: "asyncio.Future[CacheReply]") -> None:
        self._reply = future.exception() or future.result()
        if self._locked is not None:
            self._done(self, self._locked, self._reply)
