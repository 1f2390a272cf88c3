"""One try to open an aggregate: its locks and its entry are requested in one round trip."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from hiveio.errors import Conflict, Problem, Unavailable, backend_away
from hiveio.transaction.access import Access
from hiveio.transaction.command import InFlight
from hiveio.transaction.entry import CacheReply, Entry
from hiveio.transaction.lock import LOCKED, UNLOCKED, Locked
from hiveio.transaction.scope import Scope

Opened = Callable[["Opening", Locked, "CacheReply | BaseException"], None]


class Opening:
    """``done`` is called when both answers have come. ``names`` are the aggregates to lock, all of them or none.
    ``unlocked`` says that it is tried without the locks."""

    __slots__ = (
        "_access",
        "_again",
        "_asked",
        "_done",
        "_locked",
        "_name",
        "_reply",
        "_scope",
        "names",
        "shared",
        "unlocked",
    )

    def __init__(
        self, access: Access, scope: Scope, name: str, names: Sequence[str], done: Opened, *, unlocked: bool
    ) -> None:
        self._access, self._scope, self._name, self._done = access, scope, name, done
        self.names, self.unlocked = names, unlocked
        self._locked: Locked | None = UNLOCKED if unlocked else None
        self._reply: CacheReply | BaseException | None = None
        self._asked = 0  # the offset of the watermark when the entry was requested
        self._again = self.shared = False

    def begin(self, queue: Sequence[InFlight]) -> None:
        """Request the locks, for the first command of the queue, and the entry."""
        if not self.unlocked:
            self._access.acquire(self._scope, self.names, self._on_locked, queue)
        self._read()

    def share(self) -> None:
        """Another pipeline of this instance has locked the aggregate meanwhile."""
        self.shared = True

    def _read(self) -> None:
        self._reply, self._asked = None, self._scope.mirror.watermark.offset
        self._access.read(self._scope, self._name).add_done_callback(self._on_read)

    def _on_locked(self, locked: Locked) -> None:
        self._scope.predecessors.wait(locked.after, partial(self._on_turn, locked))

    def _on_turn(self, locked: Locked) -> None:
        self._locked = locked
        self._try_to_end()

    def _on_read(self, future: "asyncio.Future[CacheReply]") -> None:
        self._reply = future.exception() or future.result()
        self._try_to_end()

    def _try_to_end(self) -> None:
        if self._locked is None or self._reply is None:
            return
        if self._locked.after and not self._again and self._scope.view.entry(self._name) is None:
            self._again = True  # others have applied what was waited for, and this reply may be older
            self._read()
        else:
            self._done(self, self._locked, self._reply)

    def entry(self, locked: Locked, reply: CacheReply | BaseException, *, full: bool) -> Entry | Problem:
        """The entry of the aggregate by these answers, or why it is not opened: it is not if too much is in work."""
        if isinstance(reply, BaseException):
            return reply if isinstance(reply, Unavailable) else backend_away(str(reply))
        if not locked.until:
            return backend_away(locked.reason) if locked.away else Conflict(LOCKED)
        if full:
            return Unavailable("Too much is in work. Try again later.")
        scope = self._scope
        if scope.mirror.observe_watermark(reply.watermark, self._asked) and scope.ready:
            return scope.reconcile(self._name, reply) or scope.unavailable()
        return scope.unavailable()
