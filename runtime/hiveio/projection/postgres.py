"""A projection in PostgreSQL. Needs the extra ``hiveio[postgres]`` (psycopg)."""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import psycopg
from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hiveio.actor import Actor
from hiveio.envelope import Context
from hiveio.errors import Unavailable
from hiveio.projection.place import ADD_TOPIC_ID, BEHIND, TABLES, Place

WAIT_S = 5.0  # for a connection
MOST = 8  # connections of a process


class PostgresProjection(Actor):
    """An actor that keeps its projection in a schema of its own in PostgreSQL, with the position of what is in it.

    ::

        class Totals(PostgresProjection):
            schema = "totals"
            tables = "CREATE TABLE IF NOT EXISTS total (account TEXT PRIMARY KEY, amount BIGINT)"

            async def perform(self, event: Deposited, context: Context) -> None:
                await self.once(context, lambda db: db.execute(…))

    - ``url`` is a connection string (default: the variable POSTGRES_URL). ``schema`` is the search path.
    - ``once`` gives each event its effect exactly once, over crashes, rebalances and letters that are tried again.
    - ``pool`` gives connections for queries. Instances and workers may share the database.
    - A database that is away is waited for: that is no dead letter.
    """

    url: ClassVar[str] = ""
    schema: ClassVar[str] = "projection"
    tables: ClassVar[str] = ""  # statements that make them where they are not there

    def __init__(self) -> None:
        self.space = self.schema

    async def start(self) -> None:
        """Raises Unavailable when there is no answer."""
        self.pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            self.url or os.environ.get("POSTGRES_URL", ""),
            kwargs={"options": f"-c search_path={self.space}"},
            min_size=1,
            max_size=MOST,
            timeout=WAIT_S,
            open=False,
        )
        await self.pool.open()
        await self._in_transaction(self._make)

    async def stop(self) -> None:
        await self.pool.close()

    async def ready(self) -> bool:
        await self._in_transaction(lambda db: db.execute("SELECT 1"))
        return True

    async def _make(self, db: AsyncConnection[Any]) -> None:
        # Instances that start at once would both make them, and one would fail.
        await db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self.space,))
        await db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(self.space)))
        await db.execute(TABLES)
        await db.execute(ADD_TOPIC_ID.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"))
        if self.tables:
            await db.execute(self.tables)

    async def position(self, topic: str, partition: int) -> tuple[int, str]:
        """The next offset to consume, and the topic's id; an empty store begins at the first event.

        Whatever the group has committed: Kafka's own offset is committed after the effect, and a crash between would
        repeat it.
        """
        found: tuple[int, str] = await self._in_transaction(lambda db: _position(db, topic, partition))
        return found

    async def once(
        self, context: Context | Sequence[Context], effect: Callable[[AsyncConnection[Any]], Awaitable[Any]]
    ) -> bool:
        """Run the effect of an event, or of a list of them, and store the position, in one transaction.

        False, and no effect, when it is in the database already. Raises what ``effect`` raises, and then nothing is
        stored; Unavailable when the database is away.
        """
        place = Place.of(context)

        async def work(db: AsyncConnection[Any]) -> bool:
            if not await _advance(db, place):
                return False
            await effect(db)
            return True

        return bool(await self._in_transaction(work))

    async def _in_transaction(self, work: Callable[[AsyncConnection[Any]], Awaitable[Any]]) -> Any:
        async with AsyncExitStack() as stack:
            try:
                db = await stack.enter_async_context(self.pool.connection())
            except PoolTimeout as error:
                raise Unavailable(f"PostgreSQL: {error}") from None
            try:
                return await work(db)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                raise Unavailable(f"PostgreSQL: {error}") from error

    # -- hiveio replay

    async def reset(self) -> None:
        """Empty it, positions too."""

        async def work(db: AsyncConnection[Any]) -> None:
            await db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.space)))
            await self._make(db)

        await self._in_transaction(work)

    async def begin_at(self, topic: str, partition: int, offset: int) -> None:
        """Begin a store that is empty at this event."""
        query, row = (
            "INSERT INTO hive_position (topic, partition, next) VALUES (%s, %s, %s)",
            (topic, partition, offset),
        )
        await self._in_transaction(lambda db: db.execute(query, row))

    async def begin_shadow(self) -> None:
        """To be called before ``start``: build beside the schema that is in use."""
        await self.start()  # there may be no schema yet
        await self.stop()
        self.space = f"{self.schema}_shadow"
        async with await AsyncConnection.connect(self.url or os.environ.get("POSTGRES_URL", "")) as db:
            await db.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.space)))

    async def end_shadow(self, *, swap: bool) -> bool:
        """Put what was built in the place of what is in use, in one transaction; False if it is behind that still."""
        live, shadow = sql.Identifier(self.schema), sql.Identifier(self.space)

        async def work(db: AsyncConnection[Any]) -> bool:
            if swap:
                await db.execute(sql.SQL("LOCK TABLE {}.hive_position IN ACCESS EXCLUSIVE MODE").format(live))
                query = sql.SQL(
                    "SELECT count(*) FROM {}.hive_position AS a LEFT JOIN {}.hive_position AS b "
                    f"USING (topic, partition) WHERE {BEHIND}"
                )
                found = await (await db.execute(query.format(live, shadow))).fetchone()
                if found and found[0]:
                    return False
                await db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(live))
                await db.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(shadow, live))
            else:
                await db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(shadow))
            return True

        return bool(await self._in_transaction(work))


async def _position(db: AsyncConnection[Any], topic: str, partition: int) -> tuple[int, str]:
    query = "SELECT next, topic_id FROM hive_position WHERE topic = %s AND partition = %s FOR UPDATE"
    return await (await db.execute(query, (topic, partition))).fetchone() or (0, "")


async def _advance(db: AsyncConnection[Any], place: Place) -> bool:
    if place.redriven:
        query = "INSERT INTO hive_redriven VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
        return (await db.execute(query, place.letter)).rowcount > 0
    # One statement: of two instances that are here at once, the second waits for the first and finds its position.
    query = (
        "INSERT INTO hive_position AS p (topic, partition, next, topic_id) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (topic, partition) DO UPDATE SET next = EXCLUDED.next, topic_id = EXCLUDED.topic_id "
        "WHERE p.next <= %s OR (p.topic_id <> EXCLUDED.topic_id AND '' NOT IN (p.topic_id, EXCLUDED.topic_id))"
    )
    moved = await db.execute(query, (place.topic, place.partition, place.last + 1, place.topic_id, place.first))
    if moved.rowcount:
        return True
    place.stored(*await _position(db, place.topic, place.partition))
    return False
