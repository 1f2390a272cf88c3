"""The effects of a group of events as statements that are sent to PostgreSQL together, in one transaction.

A statement takes a round trip, and most effects do not use the answer. Such an effect is only recorded when it runs. An
effect that does more than that is refused here, and runs in a transaction of its own.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast
from uuid import UUID

from psycopg import AsyncConnection

from hiveio.errors import Unavailable, backend_away
from hiveio.projection.pipeline import Statement, converted
from hiveio.projection.position import OffsetRange

Effect = Callable[[AsyncConnection[Any]], Awaitable[Any]]

MAX_STATEMENTS = 5_000
MAX_BYTES = 4 << 20
# Of other types a value might change before it is sent.
_LASTING = frozenset(
    (type(None), bool, int, float, str, bytes, Decimal, UUID, date, datetime, time, timedelta)
)  # fmt: skip
_CHANGES = re.compile(r"\s*(?:insert|update|delete|merge)\b[^;]*;?\s*", re.IGNORECASE)


class AnswerNeeded(Exception):
    """An effect uses more than a connection's ``execute``, or the answer of a statement."""


@lru_cache(maxsize=1_000)
def _changes_rows(query: str) -> bool:
    """Whether it is one statement that changes rows, and nothing about the transaction or the session."""
    return _CHANGES.fullmatch(query) is not None


class _Answer:
    """Stands for the cursor of a statement that is not sent yet."""

    def __init__(self, recorder: "Recorder") -> None:
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        self._recorder.refuse(f"the cursor's {name}")

    def __aiter__(self) -> Any:
        self._recorder.refuse("the rows of the cursor")

    async def __aenter__(self) -> Any:
        self._recorder.refuse("the cursor")

    async def __aexit__(self, *error: object) -> None: ...


class Recorder:
    """Stands for a connection, and records what an effect executes. ``refused`` says what it cannot stand for."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.size = 0  # in bytes, about
        self.refused = ""

    def refuse(self, what: str) -> Any:
        self.refused = self.refused or what
        raise AnswerNeeded(what)

    def __getattr__(self, name: str) -> Any:
        return self.refuse(f"the connection's {name}")

    async def execute(self, query: Any, parameters: Any = None, **more: Any) -> _Answer:
        if more or type(query) is not str or not _changes_rows(query):
            self.refuse("a statement that is no INSERT, UPDATE, DELETE or MERGE")
        values: tuple[Any, ...] = ()
        text = query
        if parameters is not None:
            found = converted(query) or self.refuse("placeholders other than %s or %(name)s")
            if isinstance(parameters, dict) and not found.unnamed:
                values = tuple(parameters[name] for name in found.names)
            elif isinstance(parameters, list | tuple) and not found.names and len(parameters) == found.unnamed:
                values = tuple(parameters)
            else:
                self.refuse("parameters that do not fit the placeholders")
            text = found.text
        if not _LASTING.issuperset(map(type, values)):
            self.refuse("a parameter that may change before it is sent")
        self.statements.append(Statement(text, values))
        self.size += len(text)
        for value in values:
            if type(value) is str or type(value) is bytes:
                self.size += len(value)
        return _Answer(self)


class Collected:
    """What the events of a group have executed and what is not sent yet. ``send`` stores it, or raises.

    Once that has failed, ``error`` says why, and nothing more is taken: no event may be stored before those in it.
    """

    waits = True  # nothing is open in the database

    def __init__(self, send: Callable[[OffsetRange, list[Statement]], Awaitable[Any]]) -> None:
        self._send = send
        self._statements: list[Statement] = []
        self._size = 0
        self._first: OffsetRange | None = None  # of the events, and the last of them
        self._last: OffsetRange | None = None
        self.error: Exception | None = None

    @property
    def full(self) -> bool:
        """Whether it is to be sent before it takes more: an effect may be much larger than its event."""
        return len(self._statements) >= MAX_STATEMENTS or self._size >= MAX_BYTES

    def takes(self, offsets: OffsetRange) -> bool:
        """Whether the event comes after those that are collected."""
        return self._last is None or offsets.follows(self._last)

    async def take(self, offsets: OffsetRange, effect: Effect) -> str:
        """Take an event, or return why that is not possible. Then nothing of its effect has happened.

        Raises Unavailable if the events before it were not stored.
        """
        if self.error is not None:
            raise backend_away(f"PostgreSQL: the events before were not stored: {self.error}")
        recorder = Recorder()
        try:
            await effect(cast("AsyncConnection[Any]", recorder))
        except Exception as error:  # it may be for the lack of a connection
            return recorder.refused or f"{type(error).__name__}: {error}"
        if recorder.refused:
            return recorder.refused
        self._statements += recorder.statements
        self._size += recorder.size
        self._first, self._last = self._first or offsets, offsets
        return ""

    async def commit(self) -> None:
        if self.error is not None:
            raise self.error
        first, last, statements = self._first, self._last, self._statements
        await self.rollback()
        if first is None or last is None:
            return
        try:
            await self._send(first.up_to(last.last), statements)
        except asyncio.CancelledError:
            # The time of the handler has ended, and no event is to blame for that.
            self.error = Unavailable(inside="PostgreSQL: the events were not stored within the time of the handler")
            raise self.error from None
        except Exception as error:
            self.error = error
            raise

    async def rollback(self) -> None:
        self._first = self._last = None
        self._statements, self._size = [], 0
