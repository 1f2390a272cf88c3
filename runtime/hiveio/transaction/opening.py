"""One try to open an aggregate: its locks and its entry are requested in one round trip."""

import asyncio
from collections.abc import Callable, Sequence

from hiveio.transaction.cache import CacheReply
from hiveio.transaction.lock import Locked

Opened = Callable[["Opening", Locked, "CacheReply | BaseException"], None]


class Opening:
    """``done`` is called when both answers have come. ``names`` are the aggregates to lock, all of them or none.
    ``asked`` is the offset of the watermark when the entry was requested."""

    __slots__ = ("_done", "_locked", "_reply", "asked", "names", "shared")

    def __init__(self, names: Sequence[str], asked: int, done: Opened) -> None:
        self.names, self.asked, self._done = names, asked, done
        self._locked: Locked | None = None
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
