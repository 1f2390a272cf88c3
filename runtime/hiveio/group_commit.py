"""Group commit: the effects of several events in one transaction, which is committed before they count as handled.

The consumer keeps a ``Group`` for each task that runs handlers, and makes it ``current`` there. A store that finds one
leaves its transaction open in it. The consumer commits it when nothing more has arrived, when an event fails, and when
other tasks are to work, or after LONGEST_S where it may stay open meanwhile. Where the commit fails, it gives the
events to the actor again, one by one and without a group.
"""

import time
from contextvars import ContextVar
from typing import Any, Protocol

LONGEST_S = 0.05  # of a group that stays open while other tasks work


class OpenTransaction(Protocol):
    """A transaction that holds the effects of some events.

    ``waits`` says whether it may stay open while other tasks work.
    """

    waits: bool

    async def commit(self) -> None:
        """Raises if effects are not stored."""
        ...

    async def rollback(self) -> None: ...


class Group:
    """The transactions that are open in one task, by the actor that has begun them."""

    __slots__ = ("begun_at", "open")

    def __init__(self) -> None:
        self.open: dict[Any, OpenTransaction] = {}
        self.begun_at = 0.0

    def waits(self) -> bool:
        """Whether it may be committed later than before other tasks work."""
        return time.monotonic() - self.begun_at < LONGEST_S and not self.blocks

    @property
    def blocks(self) -> bool:
        """Whether no other task works until it is committed."""
        return not all(one.waits for one in self.open.values())

    async def rollback(self) -> None:
        while self.open:
            _, transaction = self.open.popitem()
            await transaction.rollback()


current: ContextVar[Group | None] = ContextVar("current", default=None)
"""The group of the task that runs a handler. None where nobody would commit: the store commits by itself then."""
