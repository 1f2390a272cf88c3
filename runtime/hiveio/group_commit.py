"""Group commit: the effects of several events in one transaction, which is committed before they count as handled.

The consumer keeps a ``Group`` for each task that runs handlers, and makes it ``current`` there. A store that finds one
leaves its transaction open in it. The consumer commits it when nothing more has arrived, when other tasks are to work,
and when an event fails. Where the commit fails, it gives the events to the actor again, one by one and without a group.
"""

from contextvars import ContextVar
from typing import Any, Protocol


class OpenTransaction(Protocol):
    """A transaction that holds the effects of some events."""

    async def commit(self) -> None:
        """Raises if effects are not stored."""
        ...

    async def rollback(self) -> None: ...


class Group:
    """The transactions that are open in one task, by the actor that has begun them."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open: dict[Any, OpenTransaction] = {}

    async def rollback(self) -> None:
        while self.open:
            _, transaction = self.open.popitem()
            await transaction.rollback()


current: ContextVar[Group | None] = ContextVar("current", default=None)
"""The group of the task that runs a handler. None where nobody would commit: the store commits by itself then."""
