"""A projection in PostgreSQL. It needs the extra ``hiveio[postgres]`` (psycopg)."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, LiteralString

from psycopg import AsyncConnection, sql
from psycopg.pq import TransactionStatus

from hiveio.actor import Actor
from hiveio.envelope import Context
from hiveio.errors import Unavailable, backend_away
from hiveio.group_commit import current
from hiveio.projection.collected import Collected
from hiveio.projection.pipeline import Statement, send
from hiveio.projection.pool import Pool, connecting
from hiveio.projection.position import ADD_TOPIC_ID, BEHIND, TABLES, OffsetRange, check_owner

READY_S = 1.0  # the time that readiness waits for a connection
logger = logging.getLogger("hiveio.projection")


class PostgresProjection(Actor):
    """An actor that keeps its projection in a schema of its own in PostgreSQL, together with its position.

    ::

        class Totals(PostgresProjection):
            schema = "totals"
            tables = "CREATE TABLE IF NOT EXISTS total (account TEXT PRIMARY KEY, amount BIGINT)"

            async def perform(self, event: Deposited, context: Context) -> None:
                await self.once(context, lambda db: db.execute(…))

    - ``url`` is a connection string (default: the variable POSTGRES_URL). ``schema`` is the search path, and belongs to
      this actor alone.
    - ``once`` gives each event its effect exactly once, over crashes, rebalances and dead letters that are tried again.
      Effects of events that arrive together are sent and committed together, if nobody uses the answers.
    - ``pool`` gives connections for queries, each in a transaction. Instances and workers may share the database.
    - Events wait for a database that is unreachable, silent, full, locked or read-only. They become no dead letters.
    - It keeps no state in a session beyond a transaction, so it can use a pooler in transaction mode.
    """

    url: ClassVar[str] = ""
    schema: ClassVar[str] = "projection"
    tables: ClassVar[str] = ""  # statements that create the tables where they are missing

    def __init__(self) -> None:
        self.space = self.schema
        self._collects = True  # as long as no effect needs the answer of a statement

    async def start(self) -> None:
        """Open the pool. It returns without the database too, and readiness says so.

        Raises ConfigError for a schema of another actor.
        """
        self.pool = Pool(self.url or os.environ.get("POSTGRES_URL", ""), self.space, self._settle)
        self._made = False
        self._checking: asyncio.Task[Any] | None = None
        await self.pool.open()
        try:
            await self._in_transaction(_nothing)
        except Unavailable as error:
            logger.warning("the projection %s waits for its database: %s", type(self).__name__, error)

    async def stop(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
        await self.pool.close()

    async def ready(self) -> bool:
        # The probe gives up early. A cancelled statement would wait for the server once more, so this one goes on.
        if self._checking is None or self._checking.done():
            check = self._in_transaction(lambda db: db.execute("SELECT 1"), READY_S)
            self._checking = asyncio.create_task(check, name="PostgreSQL ready")
        await asyncio.shield(self._checking)
        return True

    async def _make(self, db: AsyncConnection[Any]) -> None:
        # Without a lock, two instances that start at once would both create the tables, and one would fail.
        await db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self.space,))
        # Only what is missing: even IF NOT EXISTS needs the right to create it.
        if not await _is_there(db, "SELECT FROM pg_namespace WHERE nspname = %s", self.space):
            await db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.space)))
        if not await _is_there(db, _OUR_TABLES):
            await db.execute(TABLES)
            await db.execute(ADD_TOPIC_ID.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"))
        own = type(self).name or type(self).__name__
        await db.execute("INSERT INTO hive_owner SELECT %s WHERE NOT EXISTS (SELECT * FROM hive_owner)", (own,))
        (owner,) = await (await db.execute("SELECT name FROM hive_owner")).fetchone() or (own,)
        check_owner(f"PostgreSQL: the schema {self.space}", owner, own)
        if self.tables:
            await db.execute(self.tables)

    async def position(self, topic: str, partition: int) -> tuple[int, str]:
        """The next offset to consume, and the topic's id. An empty store begins at the first event.

        The offset that the group has committed does not matter: it is committed after the effect, and a crash between
        the two would repeat the effect.
        """
        found: tuple[int, str] = await self._in_transaction(lambda db: _position(db, topic, partition))
        return found

    async def once(
        self, context: Context | Sequence[Context], effect: Callable[[AsyncConnection[Any]], Awaitable[Any]]
    ) -> bool:
        """Run the effect of an event, or of a list of them, and store the position, in one transaction.

        In a consumer that transaction may hold the effects of other events too, if they are INSERT, UPDATE, DELETE and
        MERGE statements whose answers nobody uses. They are sent together, before any of the events counts as handled.
        Where that fails, the events are handled again, one by one. Then, and wherever an effect does more than that,
        each event has a transaction of its own, which has ended when this returns.

        Returns False without an effect when the database has it already. Raises what ``effect`` raises, and then
        nothing of it is stored. Raises Unavailable when the database is unreachable, silent, full, locked or read-only,
        and when the time of the handler ends while it waits for the database outside of ``effect``.
        """
        offsets, group = OffsetRange.of(context), current.get()
        if group is None or not self._collects:
            return await self._alone(offsets, effect)
        collected: Any = group.open.get(self)
        if collected is None:
            collected = group.open[self] = Collected(self._send)
        refused = ""
        if collected.takes(offsets) and not (refused := await collected.take(offsets, effect)):
            if collected.full:
                await self._settle()
            return True
        await self._settle()  # in order
        stored = await self._alone(offsets, effect)
        if refused and self._collects:
            self._collects = False
            logger.info(
                "the projection %s commits each event alone, because an effect uses %s", type(self).__name__, refused
            )
        return stored

    async def _settle(self) -> None:
        """Store what the handler that runs has collected. Raises Unavailable if that fails."""
        group = current.get()
        collected = group.open.get(self) if group is not None else None
        if collected is None:
            return
        try:
            await collected.commit()
        except Exception as error:
            raise backend_away(f"PostgreSQL: the events before were not stored: {error}") from error

    async def _send(self, offsets: OffsetRange, statements: list[Statement]) -> None:
        async def work(db: AsyncConnection[Any]) -> None:
            if not await _advance(db, offsets):
                raise Unavailable(inside=f"another instance has stored {offsets.topic}/{offsets.partition}")
            await send(db, statements)

        await self._in_transaction(work)

    async def _alone(self, offsets: OffsetRange, effect: Callable[[AsyncConnection[Any]], Awaitable[Any]]) -> bool:
        in_effect = False

        async def work(db: AsyncConnection[Any]) -> bool:
            nonlocal in_effect
            if not await _advance(db, offsets):
                return False
            in_effect = True
            await effect(db)
            in_effect = False
            if db.info.transaction_status == TransactionStatus.INERROR:  # COMMIT would roll back, and say nothing
                raise RuntimeError("the effect went on after an error of PostgreSQL, so nothing of it can be stored")
            return True

        try:
            return bool(await self._in_transaction(work))
        except asyncio.CancelledError:
            if in_effect:
                raise
            # The time went to the position or the commit, and no event is to blame for that.
            raise backend_away("PostgreSQL: the transaction did not end within the time of the handler") from None

    async def _in_transaction(
        self, work: Callable[[AsyncConnection[Any]], Awaitable[Any]], wait_s: float | None = None
    ) -> Any:
        """Raises Unavailable when the database cannot be reached, also at the commit."""
        async with self.pool.transaction(wait_s) as db:
            if not self._made:
                await self._make(db)
            result = await work(db)
        self._made = True
        return result

    # -- hiveio replay

    async def reset(self) -> None:
        """Empty the projection, with its positions."""

        async def work(db: AsyncConnection[Any]) -> None:
            await db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.space)))
            await self._make(db)

        await self._in_transaction(work)

    async def begin_at(self, topic: str, partition: int, offset: int) -> None:
        """Let an empty store begin at this event."""
        query, row = (
            "INSERT INTO hive_position (topic, partition, next) VALUES (%s, %s, %s)",
            (topic, partition, offset),
        )
        await self._in_transaction(lambda db: db.execute(query, row))

    async def begin_shadow(self) -> None:
        """Build in a shadow of the schema in use. It is called before ``start``."""
        await self.start()
        await self._in_transaction(_nothing)  # there may be no schema yet
        await self.stop()
        self.space = f"{self.schema}_shadow"
        async with await AsyncConnection.connect(self.url or os.environ.get("POSTGRES_URL", ""), **connecting()) as db:
            await db.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.space)))

    async def end_shadow(self, *, swap: bool) -> bool:
        """Replace the projection in use by the shadow, in one transaction. False if the shadow is still behind it."""
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


# With the column that the table of an older version lacks.
_OUR_TABLES = (
    "SELECT FROM pg_attribute WHERE attrelid = to_regclass('hive_position') AND attname = 'topic_id' "
    "AND to_regclass('hive_redriven') IS NOT NULL AND to_regclass('hive_owner') IS NOT NULL"
)


async def _is_there(db: AsyncConnection[Any], query: LiteralString, *values: str) -> bool:
    return (await db.execute(query, values)).rowcount > 0


async def _nothing(db: AsyncConnection[Any]) -> None:
    """Check only whether the database answers."""


async def _position(db: AsyncConnection[Any], topic: str, partition: int) -> tuple[int, str]:
    query = "SELECT next, topic_id FROM hive_position WHERE topic = %s AND partition = %s FOR UPDATE"
    return await (await db.execute(query, (topic, partition))).fetchone() or (0, "")


async def _advance(db: AsyncConnection[Any], offsets: OffsetRange) -> bool:
    if offsets.redriven:
        query = "INSERT INTO hive_redriven VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
        return (await db.execute(query, offsets.redriven_row)).rowcount > 0
    # It is one statement: of two instances at once, the second waits for the first and then finds its position.
    query = (
        "INSERT INTO hive_position AS p (topic, partition, next, topic_id) VALUES (%s, %s, %s, %s) "
        "ON CONFLICT (topic, partition) DO UPDATE SET next = EXCLUDED.next, topic_id = EXCLUDED.topic_id "
        "WHERE p.next <= %s OR (p.topic_id <> EXCLUDED.topic_id AND '' NOT IN (p.topic_id, EXCLUDED.topic_id))"
    )
    moved = await db.execute(
        query, (offsets.topic, offsets.partition, offsets.last + 1, offsets.topic_id, offsets.first)
    )
    if moved.rowcount:
        return True
    offsets.is_stored(*await _position(db, offsets.topic, offsets.partition))
    return False
