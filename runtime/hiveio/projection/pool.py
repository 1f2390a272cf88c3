"""Connections to PostgreSQL, each in a transaction. Errors and silence of the server become Unavailable."""

import asyncio
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hiveio import outages
from hiveio.errors import backend_away

WAIT_S = 5.0  # the wait for a connection, and for an answer before it is checked whether the server is there
WATCH_S = 0.5
LOST_S = 30  # the time without any packet after which the system breaks a connection
MAX_CONNECTIONS = 8  # of a process
# Errors of the database and not of a statement: https://www.postgresql.org/docs/current/errcodes-appendix.html
_AWAY_CLASSES = {
    "08",  # connection exceptions, a pooler's among them
    "53",  # no room on the disk, no memory, too many connections
    "57",  # shutting down, starting, a statement that took too long
    "58",  # input and output
}
_AWAY = {
    "25006",  # read-only: a standby, or a database that is being moved
    "25P03",  # the transaction was idle for too long
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # a lock that could not be taken
}

outage = outages.of("PostgreSQL")


def _worth_a_line(record: logging.LogRecord) -> bool:
    """A filter for the log lines of the pool, which writes one for each connection and each attempt."""
    text = record.getMessage()
    if text.startswith(("error connecting", "reconnection attempt")):
        outage.away(text)
        return False
    return not text.startswith("discarding")  # the user of the connection logs why


_pool_logger = logging.getLogger("psycopg.pool")
_pool_logger.setLevel(logging.WARNING)  # at level info it has several lines for each event
_pool_logger.addFilter(_worth_a_line)


def connecting() -> dict[str, Any]:
    """Options of every connection. Some detect a connection that is broken although the server works."""
    return {
        "connect_timeout": int(WAIT_S),
        "tcp_user_timeout": LOST_S * 1000,
        "keepalives_idle": LOST_S // 3,
        "keepalives_interval": LOST_S // 6,
        "keepalives_count": 4,
    }


class Pool(AsyncConnectionPool[AsyncConnection[Any]]):
    """Gives connections in a transaction whose search path is the schema.

    ``before`` is awaited before a connection is given to an actor. ``reason`` says why no connection can be made, and
    is empty otherwise.

    A pooler in transaction mode gives another session to each transaction. It refuses options of a session, and what
    was set or prepared in a session is missing in the next transaction.

    A statement may take any time. Where no answer comes within WAIT_S, the pool opens another connection. If the server
    is silent there too, the connections that wait for an answer are broken.
    """

    def __init__(self, url: str, space: str, before: Callable[[], Awaitable[None]]) -> None:
        self.reason = ""
        self._url, self._before = url, before
        self._begin = sql.SQL("BEGIN; SET LOCAL search_path TO {}").format(sql.Identifier(space))
        self._pending: dict[AsyncConnection[Any], float] = {}  # since when each waits for an answer
        self._silent: set[AsyncConnection[Any]] = set()  # those of them that were broken here
        self._unclosed = False
        self._watching: asyncio.Task[None] | None = None
        super().__init__(
            url,
            # BEGIN is ours, so that it goes with the search path in one round trip.
            kwargs={"autocommit": True, "prepare_threshold": None, **connecting()},
            connection_class=self._watched(),
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=WAIT_S,
            reconnect_timeout=WAIT_S,  # then the next request tries again; the pool's pauses grow to minutes
            open=False,
        )

    def _watched(self) -> type[AsyncConnection[Any]]:
        pool = self

        class Watched(AsyncConnection[Any]):
            @classmethod
            async def connect(cls, *arguments: Any, **named: Any) -> Any:
                try:
                    made = await super().connect(*arguments, **named)
                except psycopg.Error as error:
                    pool.reason = str(error).strip()
                    pool._unclosed = True
                    raise
                pool.reason = ""
                return made

            async def wait(self, *arguments: Any, **named: Any) -> Any:
                pool._pending[self] = monotonic()
                try:
                    return await super().wait(*arguments, **named)
                except psycopg.OperationalError:
                    if self in pool._silent:
                        raise psycopg.OperationalError(_SILENT) from None
                    raise
                finally:
                    pool._pending.pop(self, None)
                    pool._silent.discard(self)

        return Watched

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        await super().open(wait, timeout)
        self._watching = asyncio.create_task(self._watch(), name="PostgreSQL watch")

    async def close(self, timeout: float = 5.0) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await super().close(timeout)

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection for an actor, which finds what its handler has stored.

        Raises Unavailable when the database cannot be reached, also at the commit.
        """
        await self._before()
        async with self.transaction(timeout) as db:
            yield db

    @asynccontextmanager
    async def transaction(self, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Any]]:
        """The same without a look at what a handler has stored."""
        try:
            async with super().connection(timeout) as db:
                await db.execute(self._begin)
                yield db  # then it commits, or rolls back what raises
        except PoolTimeout:
            busy = f"none of the {MAX_CONNECTIONS} connections of this process was free within {timeout or WAIT_S:g} s"
            reason = self.reason or busy
            if self.reason:
                outage.away(reason)
            raise backend_away(f"PostgreSQL: {reason}") from None
        except psycopg.Error as error:
            if not _is_away(error):
                raise
            outage.away(str(error).strip())
            raise backend_away(f"PostgreSQL: {str(error).strip()}") from error
        outage.back()

    async def _watch(self) -> None:
        """One watchdog for all connections: a timer for each statement would cost more."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._unclosed:  # psycopg leaves the socket of an attempt that timed out to the collector
                self._unclosed = False
                gc.collect()
            if not self._late():
                continue
            if await self._answers():
                self._pending |= dict.fromkeys(self._late(), monotonic())
                continue
            outage.away(_SILENT)
            for db in self._late():
                self._silent.add(db)
                _break(db)

    def _late(self) -> list[AsyncConnection[Any]]:
        latest = monotonic() - WAIT_S
        return [db for db, since in self._pending.items() if since < latest]

    async def _answers(self) -> bool:
        """Whether the server answers a new connection; a refusal is an answer."""
        try:
            other = await self.connection_class.connect(self._url, **connecting())
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.Error:
            return True
        await other.close()
        return True


_SILENT = "it answers neither a statement nor a new connection"


def _break(db: AsyncConnection[Any]) -> None:
    """End a connection for whoever waits for its answer. The user of the connection closes it, not this function."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(db.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


def _is_away(error: psycopg.Error) -> bool:
    state = error.sqlstate
    if state is None:  # the connection is broken
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state in _AWAY or state[:2] in _AWAY_CLASSES
